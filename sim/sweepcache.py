"""Records of runs that were made, by the digest of everything that they come from: a sweep that was killed goes on.

An entry is a file of its own, written whole and renamed into place, with a digest of its content. One that does not
keep to that is computed again: a cache may be slow to be right, never wrong.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from mta.core.settings import ConfigError
from sim.sweeptask import NUMBERS, Record, canonical

ENTRIES_MAX: Final = 100_000
"""Entries; when a sweep begins with more, the oldest are removed. About 1 kB each."""

FOLDER: Final = Path("runs") / ".sweeps"
"""Where they are by default."""


class Cache:
    """A directory of records."""

    def __init__(self, folder: Path, *, entries_max: int = ENTRIES_MAX) -> None:
        """Make the directory if need be.

        Raises:
            ConfigError: it can't be made or written to.
        """
        self.folder = folder
        self.damaged = 0
        """Entries found that were not what was written."""
        self.problem = ""
        """Why an entry could not be written; the sweep goes on without."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"can't be made: {error.strerror}"
            raise ConfigError("--cache", value=str(folder), problem=problem) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            problem = "can't be written: Permission denied"
            raise ConfigError("--cache", value=str(folder), problem=problem)
        self._trim(entries_max)

    def get(self, key: str) -> Record | None:
        """Return the record of a key, or None if there is none that can be trusted."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        record = _checked(key, content)
        if record is None:
            self.damaged += 1
        return record

    def put(self, key: str, record: Record) -> None:
        """Keep a record; see `problem` if it can't be written."""
        path = self._path(key)
        body = [record.numbers, record.arrivals, record.fingerprint]
        text = json.dumps({"key": key, "sha256": _sha256(body), "record": body}, allow_nan=False)
        # The process's own name: two sweeps may share a cache.
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(exist_ok=True)
            new.write_text(text + "\n", encoding="ascii")
            new.replace(path)
        except OSError as error:
            self.problem = self.problem or f"{path.parent}: {error.strerror}"
            with contextlib.suppress(OSError):
                new.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _trim(self, entries_max: int) -> None:
        """Remove the oldest entries above the limit, and what was left half-written by who was killed."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("??/*"):
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime_ns, path))
        left = [path for _, path in found if path.suffix == ".new"]
        kept = sorted(each for each in found if each[1].suffix != ".new")
        for path in [*left, *(path for _, path in kept[: max(0, len(kept) - entries_max)])]:
            with contextlib.suppress(OSError):
                path.unlink()


def _sha256(body: Any) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


def _checked(key: str, content: bytes) -> Record | None:
    try:
        found = json.loads(content)
        if found["key"] != key or found["sha256"] != _sha256(found["record"]):
            return None
        numbers, arrivals, fingerprint = found["record"]
        if list(numbers) != list(NUMBERS):
            return None
        return Record(numbers, arrivals, fingerprint)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
