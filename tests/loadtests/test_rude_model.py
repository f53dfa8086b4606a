"""The model's clients that send no mail say what those of the load say."""

import json
import subprocess
import sys

from sim import beside


def test_lines_are_as_long():
    """In a process of its own: Locust replaces what this one waits with."""
    code = "import json; from loadtests.rude_users import LINES; print(json.dumps([len(line) for line in LINES]))"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True, timeout=60
    )
    assert (*json.loads(found.stdout), len(b"RSET\r\n")) == beside.LINES
