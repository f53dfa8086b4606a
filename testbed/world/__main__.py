"""``python -m testbed.world``: see `testbed.world.world`."""

import sys

from testbed.world.world import main

if __name__ == "__main__":
    sys.exit(main())
