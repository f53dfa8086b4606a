"""The bodies of large messages: a file each, durable with its name before its row is committed.

A crash between the two leaves a file without a row, which the next start removes; there is never a
row without a file.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from mta.core.ids import MsgId, show_msgid
from mta.effects import Effects


class BodyFiles:
    """The directory ``bodies``. Methods may be called on any thread."""

    def __init__(self, directory: Path, effects: Effects) -> None:
        self._directory = directory
        self._effects = effects

    def _path(self, msgid: int) -> Path:
        return self._directory / show_msgid(MsgId(msgid))

    def open(self) -> None:
        """Make the directory if it is missing.

        Raises:
            OSError: it can't be made.
        """
        self._effects.mkdir(self._directory, site="queue.bodies")

    def write(self, msgid: MsgId, body: bytes) -> None:
        """Write a body and make it durable.

        Raises:
            OSError: nothing of it is left.
        """
        path = self._path(msgid)
        self._effects.write_new(path, body, site="queue.body")
        try:
            self._effects.fsync_dir(self._directory, site="queue.bodies")
        except BaseException:
            self._effects.unlink(path, site="queue.body")
            raise

    def read(self, msgid: MsgId) -> bytes:
        """Return a body.

        Raises:
            OSError: it can't be read.
        """
        return self._effects.read_file(self._path(msgid), site="queue.body")

    def remove(self, msgids: Iterable[int]) -> str:
        """Remove bodies; return empty, or what was in the way: then the next start removes them."""
        problem = ""
        for msgid in msgids:
            try:
                self._effects.unlink(self._path(msgid), site="queue.body")
            except FileNotFoundError:
                pass
            except OSError as error:
                problem = f"body of {show_msgid(MsgId(msgid))} stays: {error.strerror}"
        return problem

    def remove_orphans(self, is_known: Callable[[int], bool], note: Callable[[str], None]) -> None:
        """Remove the files of messages that are not known.

        Raises:
            OSError: the directory can't be read, or a file not be removed.
        """
        count = 0
        for name in self._effects.listdir(self._directory, site="queue.bodies"):
            try:
                msgid = int(name, 16)
            except ValueError:
                msgid = 0
            if not msgid or name != show_msgid(MsgId(msgid)):
                note(f"queue: {self._directory / name} is none of ours")
            elif not is_known(msgid):
                self._effects.unlink(self._directory / name, site="queue.orphan")
                count += 1
        if count:
            note(f"queue: removed {count} messages that were never accepted")
