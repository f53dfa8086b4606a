"""``python -m mta.reference [--check] [DIRECTORY]``: write the reference, or say what of it is out of date."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mta.effects import Effects
from mta.reference import pages


def run(arguments: Sequence[str]) -> int:
    """Write pages into a directory (``docs/reference``), or compare; return the exit status.

    0 done; 1 ``--check`` found a page that differs; 2 asked wrongly, or the directory can't be written.
    """
    check = "--check" in arguments
    rest = [word for word in arguments if word != "--check"]
    if len(rest) > 1 or any(word.startswith("-") for word in rest):
        print("usage: python -m mta.reference [--check] [DIRECTORY]", file=sys.stderr)
        return 2
    directory = Path(rest[0] if rest else "docs/reference")
    effects = Effects()
    stale = []
    try:
        for name, text in pages().items():
            path = directory / name
            try:
                same = effects.read_file(path, site="reference") == text.encode()
            except FileNotFoundError:
                same = False
            if not same:
                stale.append(path)
                if not check:
                    effects.write_file(path, text.encode(), site="reference")
    except OSError as error:
        print(f"mta.reference: {directory}: {error.strerror}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path}: {'differs from the code' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
