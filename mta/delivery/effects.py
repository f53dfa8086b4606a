"""What local delivery does to the world, beyond `mta.effects`: files below a directory, locks, commands.

Every effect here is a point of the server's one `Effects` (see there), so a test that makes its n-th
effect fail reaches these too. Files are named relative to an open directory and links are never
followed: what was checked is what is used, whoever renames things meanwhile.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from mta.effects import PRIVATE_DIRECTORY, PRIVATE_FILE, Effects

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLAIN: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_HAS_OFD: Final = sys.platform == "linux" and sys.maxsize > 2**32
"""Open-file-description locks, whose C structure we lay out by hand."""


class Child:
    """A command that runs in a process group of its own.

    It stays a zombie from its end until `reap`, so that its number, which is also that of its group,
    belongs to nobody else as long as we may send signals to it.
    """

    __slots__ = ("_effects", "_process", "_reaped", "exited", "status")

    def __init__(self, process: "subprocess.Popen[bytes]", effects: Effects) -> None:
        self._process = process
        self._effects = effects
        self._reaped = False
        self.status: int | None = None
        """Exit status, or the negative number of the signal; None until `reap`."""
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the command itself has ended, whatever of its group goes on."""

    @property
    def pid(self) -> int:
        """The process id, and the id of its group."""
        return self._process.pid

    def kill(self, number: signal.Signals, *, site: str) -> None:
        """Send a signal to the whole group, if it is still ours."""
        if self._reaped:
            return
        # Why is no fault of these let through? Nothing better could be done about it.
        with contextlib.suppress(OSError):
            self._effects.point("kill", site)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, number)
        with contextlib.suppress(OSError):
            self._effects.done("kill", site)

    def reap(self) -> None:
        """Take the status of a command that has ended."""
        assert self.exited.done(), self.pid
        self._reaped = True
        self.status = self._process.wait()

    def abandon(self) -> None:
        """Kill the group; the command is reaped when it ends. Idempotent."""
        if self._reaped:
            return
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self.exited.add_done_callback(self._reap_late)

    def _reap_late(self, _: object) -> None:
        if not self._reaped:
            self.reap()

    def watch(self) -> None:
        """See to it that `exited` gets done."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            # No such call here, or no descriptor left for it: a thread waits.
            threading.Thread(target=self._wait, args=(loop,), daemon=True, name="mda wait").start()
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._set_exited()

        loop.add_reader(descriptor, ended)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(self._set_exited)

    def _set_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


class DeliveryEffects:
    """The effects of local delivery. Those that are not coroutines may be called on any thread."""

    __slots__ = ("_effects", "now")

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self.now = effects.now

    # ---- directories

    def open_directory(self, path: Path, *, site: str) -> int:
        """Open a directory that the operator named, following links.

        Raises:
            OSError: as `open` does.
        """
        return self._opened(site, lambda: os.open(path, _DIRECTORY))

    def open_subdirectory(self, directory: int, name: str, *, site: str) -> int:
        """Open a directory in a directory; a link is not followed.

        Raises:
            OSError: ENOTDIR or ELOOP for what is no directory.
        """
        return self._opened(
            site, lambda: os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        )

    def mkdir_at(self, directory: int, name: str, *, site: str) -> None:
        """Make a directory with mode 0700.

        Raises:
            FileExistsError: there is something of this name.
        """
        self._effects.point("mkdir", site)
        os.mkdir(name, PRIVATE_DIRECTORY, dir_fd=directory)
        self._effects.done("mkdir", site)

    def is_empty(self, directory: int, *, site: str) -> bool:
        """Return whether a directory has nothing in it."""
        self._effects.point("listdir", site)
        names = os.listdir(directory)  # of an open directory
        self._effects.done("listdir", site)
        return not names

    # ---- files

    def create_at(self, directory: int, name: str, *, site: str) -> int:
        """Make a file that was not there, mode 0600, and open it for writing.

        Raises:
            FileExistsError: there is something of this name, if only a link.
        """
        self._effects.point("create", site)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _PLAIN
        descriptor = os.open(name, flags, PRIVATE_FILE, dir_fd=directory)
        try:
            self._effects.done("create", site)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise
        return descriptor

    def open_append_at(self, directory: int, name: str, *, site: str) -> int:
        """Open a file that is there, to append to; neither a link is followed nor a FIFO waited for."""
        flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | _PLAIN
        return self._opened(site, lambda: os.open(name, flags, dir_fd=directory))

    def _opened(self, site: str, opening: Callable[[], int]) -> int:
        self._effects.point("open", site)
        descriptor = opening()
        try:
            self._effects.done("open", site)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def stat(self, descriptor: int, *, site: str) -> os.stat_result:
        """Return what an open file is."""
        self._effects.point("stat", site)
        found = os.fstat(descriptor)
        self._effects.done("stat", site)
        return found

    def stat_at(self, directory: int, name: str, *, site: str) -> os.stat_result:
        """Return what a name leads to; a link leads to itself."""
        self._effects.point("stat", site)
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        self._effects.done("stat", site)
        return found

    def chown(self, descriptor: int, uid: int, gid: int, *, site: str) -> None:
        """Give an open file to a user."""
        self._effects.point("chown", site)
        os.fchown(descriptor, uid, gid)
        self._effects.done("chown", site)

    def write(self, descriptor: int, data: bytes, *, site: str) -> None:
        """Write all bytes. After an error some of them may be there."""
        self._effects.write(descriptor, data, site=site)

    def fsync(self, descriptor: int, *, site: str) -> None:
        """Make a file's content, or a directory's names, durable."""
        self._effects.point("fsync", site)
        os.fsync(descriptor)
        self._effects.done("fsync", site)

    def truncate(self, descriptor: int, size: int, *, site: str) -> None:
        """Cut a file to a size."""
        self._effects.point("truncate", site)
        os.ftruncate(descriptor, size)
        self._effects.done("truncate", site)

    def read_end(self, descriptor: int, count: int, *, site: str) -> bytes:
        """Return the last bytes of a file."""
        self._effects.point("read", site)
        data = os.pread(descriptor, count, max(0, os.fstat(descriptor).st_size - count))
        self._effects.done("read", site)
        return data

    def rename_at(self, directory: int, name: str, target: int, *, site: str) -> None:
        """Move a file to another directory under the same name."""
        self._effects.point("rename", site)
        os.rename(name, name, src_dir_fd=directory, dst_dir_fd=target)
        self._effects.done("rename", site)

    def unlink_at(self, directory: int, name: str, *, site: str) -> None:
        """Remove a name.

        Raises:
            FileNotFoundError: it was not there.
        """
        self._effects.point("unlink", site)
        os.unlink(name, dir_fd=directory)
        self._effects.done("unlink", site)

    def close(self, descriptor: int, *, site: str) -> None:
        """Close a descriptor. It is closed even when this raises."""
        self._effects.close(descriptor, site=site)

    def lock(self, descriptor: int, *, site: str) -> None:
        """Lock an open file as mail programs do, by fcntl and by flock, or not at all.

        Why an open-file-description lock? It excludes whoever uses POSIX locks, yet it is not lost
        when another thread closes the same file, and two of our own threads exclude each other.
        Closing the descriptor unlocks.

        Raises:
            BlockingIOError: somebody else has one of them.
        """
        self._effects.point("lock", site)
        try:
            if _HAS_OFD:
                whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole)
            else:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PermissionError as error:  # POSIX lets a held lock be EACCES, too
            raise BlockingIOError(error.errno, "locked") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock(descriptor)
            raise
        self._effects.done("lock", site)

    def _unlock(self, descriptor: int) -> None:
        """Let go of the lock by fcntl, so that two programs with opposite orders do not wait in turn."""
        if _HAS_OFD:
            whole = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)

    # ---- commands

    def pipe(self, *, site: str) -> tuple[int, int]:
        """Return the reading and the writing end of a pipe, neither of which a child inherits."""
        self._effects.point("pipe", site)
        ends = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        try:
            self._effects.done("pipe", site)
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        return ends

    def read_some(self, descriptor: int, count: int, *, site: str) -> bytes:
        """Return what a pipe has, b"" at its end.

        Raises:
            BlockingIOError: it has nothing now.
        """
        self._effects.point("read", site)
        data = os.read(descriptor, count)
        self._effects.done("read", site)
        return data

    def write_some(self, descriptor: int, data: bytes | memoryview, *, site: str) -> int:
        """Write what a pipe takes, and return how much it was.

        Raises:
            BlockingIOError: it takes nothing now.
            BrokenPipeError: nobody will read it.
        """
        self._effects.point("write", site)
        count = os.write(descriptor, data)
        self._effects.done("write", site)
        return count

    async def spawn(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        stdin: int,
        stdout: int,
        identity: tuple[int, int] | None,
        executor: Executor | None,
        site: str,
    ) -> Child:
        """Start a command in a process group of its own, without a shell.

        Args:
            arguments: the program and its arguments; a name without a slash is looked for in PATH.
            environment: all that the command finds in its environment.
            directory: where it starts.
            stdin: descriptor to read from.
            stdout: descriptor for both outputs.
            identity: (uid, gid) to run as, without any other group; None for our own.
            executor: where to fork, which takes milliseconds when the server is large.
            site: who asks.

        Raises:
            OSError: there is no such command or directory, no right to run it, no process left. No
                process is left behind, nor when this is cancelled.
        """
        uid, gid = identity or (None, None)
        await self._effects.apoint("spawn", site)
        # Why copies? A caller that is cancelled closes its descriptors, and the thread must not find
        # somebody else's file under their numbers.
        ours: list[int] = []
        fork = _Fork()

        def close_ours() -> None:
            while ours:
                os.close(ours.pop())

        def start() -> "subprocess.Popen[bytes]":
            try:
                return fork.start(
                    lambda: subprocess.Popen(  # noqa: S603  # a list, never a shell
                        list(arguments),
                        stdin=ours[0],
                        stdout=ours[1],
                        stderr=ours[1],
                        cwd=directory,
                        env=dict(environment),
                        process_group=0,
                        user=uid,
                        group=gid,
                        extra_groups=None if uid is None else [],
                        umask=0o077,
                    )
                )
            finally:
                close_ours()

        try:
            ours.append(os.dup(stdin))
            ours.append(os.dup(stdout))
            future = asyncio.get_running_loop().run_in_executor(executor, start)
        except BaseException:
            close_ours()
            raise
        try:
            process = await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled():  # the executor was shut down before it came to us
                close_ours()
            fork.forget()
            # Somebody has to look at it, or asyncio complains.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        child = Child(process, self._effects)
        try:
            child.watch()
            self._effects.done("spawn", site)
        except BaseException:
            child.abandon()
            raise
        return child


class _Fork:
    """A command that a thread starts and that may not be wanted any more by then.

    What nobody wants is killed and reaped by threads: the event loop may have ended meanwhile.
    """

    __slots__ = ("_mutex", "_process", "_unwanted")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted = False

    def start(self, popen: "Callable[[], subprocess.Popen[bytes]]") -> "subprocess.Popen[bytes]":
        """Start the command, on the thread.

        Raises:
            OSError: it can't be started, or it was not wanted any more.
        """
        if not self._unwanted:
            process = popen()
            with self._mutex:
                self._process = process
                if not self._unwanted:
                    return process
            _end(process)
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def forget(self) -> None:
        """Let there be no command, whether it has started or not."""
        with self._mutex:
            self._unwanted = True
            process = self._process
        if process is not None:
            threading.Thread(target=_end, args=(process,), daemon=True, name="mda end").start()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command with its group, and reap it."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_plain_file(found: os.stat_result) -> bool:
    """Return whether this is a regular file with one name: no link, FIFO, device or second name."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def can_act_as(uid: int) -> bool:
    """Return whether this process may do things for a user: it is that user, or root."""
    return os.geteuid() in (0, uid)


def must_give_away(uid: int) -> bool:
    """Return whether what this process makes for a user belongs to somebody else at first."""
    return os.geteuid() != uid
