"""Files that are there whole or not at all, however a command ends."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; only when the block ends well does the file appear, or replace the one that is there.

    A device or a pipe is written to as it is.

    Raises:
        OSError: the file can't be put there.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    # The ending stays: it says to writers what is wanted.
    new = path.with_name(f".{os.getpid()}.new-{path.name}")
    try:
        yield new
        new.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(new):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            new.unlink()
        raise


@contextmanager
def none_left(folder: Path, pattern: str) -> Iterator[None]:
    """Remove the files of a folder that the block wrote, if it does not end well; what it did not touch stays."""
    before = _stamps(folder, pattern)
    try:
        yield
    except BaseException:
        for path, stamp in _stamps(folder, pattern).items():
            if before.get(path) != stamp:
                with contextlib.suppress(OSError):
                    path.unlink()
        raise


def _stamps(folder: Path, pattern: str) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path] = (status.st_mtime_ns, status.st_size)
    return found
