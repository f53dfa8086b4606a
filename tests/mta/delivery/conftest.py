"""Deliveries sync a lot, and these tests make hundreds of them: they work in memory where that can be had."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Give a directory of our own, on a file system on which syncing costs nothing, if there is one."""
    if not os.access(_SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY, prefix="mta-test-") as name:
        yield Path(name)
