"""A disk for the queue's tests: in memory where there is one, because they open hundreds of queues.

What they are about is not whether an fsync is slow. The tests with real processes get the real disk.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a directory of the test's own."""
    if request.node.get_closest_marker("system") or not os.access(_IN_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY, prefix="queue-") as directory:
        yield Path(directory)
