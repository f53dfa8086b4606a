"""The one seam: every effect that the server has on the world goes through here.

Nothing else in `mta` may open, write, sync, rename, unlink, connect, look up, spawn, or read a clock
(a lint rule says so), so that a test can make the n-th effect fail, hang, or be the last one.
Every effect names its `op` and a `site`, the place that asked for it.

An effect calls `Effects.point` before it touches the world and `Effects.done` after it, on the thread
that does the work; effects that a coroutine waits for call `Effects.apoint` instead. All three do
nothing here. A subclass that overrides them sees every effect, in order, and can raise (the effect
did not happen, or it happened and its result was lost), block (it hangs), or end the process. Reading
a clock is not a point: it cannot fail.
"""

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import os
import random
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

from mta.clock import Clock

_T = TypeVar("_T")
_P = TypeVar("_P", bound=asyncio.BaseProtocol)

PRIVATE_FILE: Final = 0o600
"""Mode of every file and socket that the server makes: mail is nobody else's business."""
PRIVATE_DIRECTORY: Final = 0o700


class NotLoopbackError(OSError):
    """The server was told to connect to loopback only, and this address is somewhere else.

    An `OSError`, so that whoever handles a failed connect handles it as one: a temporary failure.
    """

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, "not a loopback address, and relay.allow is loopback")
        self.address = address


class LockHeldError(OSError):
    """Another process holds a lock file."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(errno.EWOULDBLOCK, "locked by another process", str(path))
        self.content = content
        """What the holder wrote into the file: its process id, unless it was just starting."""


class Space(NamedTuple):
    """Room on a file system."""

    free_bytes: int
    """What an unprivileged process may still write."""
    total_bytes: int

    @property
    def free_ratio(self) -> float:
        """Free share of the file system, 0 to 1."""
        return self.free_bytes / self.total_bytes if self.total_bytes else 0.0


class FileLock:
    """A lock file that this process holds until `release` or its end, however it ends.

    The file stays: unlinking it would let two processes lock two files of the same name.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def is_loopback(address: str) -> bool:
    """Say whether an IP address literal is of this host (127.0.0.0/8, ::1, and both as mapped)."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)


class Effects:
    """Every effect on the world. One instance per server."""

    def __init__(
        self, *, allow: Literal["loopback", "any"] = "loopback", clock: Clock | None = None
    ) -> None:
        self.allow = allow
        clock = clock or Clock()
        # Why bound methods as attributes? The clock is read several times per message.
        self.now: Callable[[], float] = clock.now
        """Seconds since the epoch, never decreasing."""
        self.monotonic: Callable[[], float] = clock.monotonic
        """Seconds since an arbitrary instant, for durations."""

    # ---- where faults come in

    def point(self, op: str, site: str) -> None:
        """Be told that ``op`` is about to happen for ``site``; whatever this raises, the effect raises."""

    def done(self, op: str, site: str) -> None:
        """Be told that ``op`` has happened for ``site``; raising here loses its result."""

    async def apoint(self, op: str, site: str) -> None:
        """`point` for effects that are awaited: an override can also hang until it is cancelled."""
        self.point(op, site)

    # ---- chance

    def entropy(self, *, site: str = "seed") -> int:
        """Return 64 unpredictable bits, to seed `random.Random` with."""
        self.point("entropy", site)
        bits = random.SystemRandom().getrandbits(64)
        self.done("entropy", site)
        return bits

    # ---- files

    def read_file(self, path: Path, *, site: str) -> bytes:
        """Return a file's bytes.

        Raises:
            OSError: as `open` and `read` do.
        """
        self.point("read", site)
        with path.open("rb", buffering=0) as file:
            data = file.readall()
        self.done("read", site)
        return data

    def write_new(self, path: Path, data: bytes, *, site: str) -> None:
        """Create a file that was not there, write all bytes, sync it, close it.

        Its name is durable only after `fsync_dir`. On any failure but `FileExistsError` nothing of
        the file stays; an existing file is never touched (deleting it on EEXIST is how OpenSMTPD's
        queue_fs.c can lose another envelope).

        Raises:
            FileExistsError: there is a file of this name.
            OSError: disk full, I/O error, no permission.
        """
        self.point("create", site)
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE
        )
        try:
            try:
                self.done("create", site)
                self._write_all(descriptor, data, site)
                self._fsync(descriptor, site)
            finally:
                os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def write_file(self, path: Path, data: bytes, *, site: str) -> None:
        """Replace a file's content, or make the file: afterwards it is whole, old or new, and durable.

        Raises:
            OSError: nothing has changed.
        """
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        with contextlib.suppress(FileNotFoundError):
            self.unlink(fresh, site=site)
        self.write_new(fresh, data, site=site)
        try:
            self.rename(fresh, path, site=site)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        self.fsync_dir(path.parent, site=site)

    def open_append(self, path: Path, *, site: str) -> int:
        """Open a file to append to, made with mode 0600 if missing, and return its descriptor.

        For logs and traces; write with `write`, close with `close`.
        """
        self.point("open", site)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, PRIVATE_FILE)
        try:
            self.done("open", site)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def write(self, descriptor: int, data: bytes, *, site: str) -> None:
        """Write all bytes to an open descriptor. After an error some of them may be there."""
        self._write_all(descriptor, data, site)

    def close(self, descriptor: int, *, site: str) -> None:
        """Close a descriptor. It is closed even when this raises."""
        try:
            self.point("close", site)
        finally:
            os.close(descriptor)
        self.done("close", site)

    def fsync_dir(self, path: Path, *, site: str) -> None:
        """Make the names in a directory durable. Postfix, qmail and OpenSMTPD do not; Exim does."""
        self.point("fsync_dir", site)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.done("fsync_dir", site)

    def rename(self, old: Path, new: Path, *, site: str) -> None:
        """Give a file another name, replacing what had it."""
        self.point("rename", site)
        old.replace(new)
        self.done("rename", site)

    def unlink(self, path: Path, *, site: str) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: it was not there.
        """
        self.point("unlink", site)
        path.unlink()
        self.done("unlink", site)

    def lstat(self, path: Path, *, site: str) -> os.stat_result:
        """Return what there is of a name, without following links.

        Raises:
            FileNotFoundError: nothing.
        """
        self.point("stat", site)
        found = path.lstat()
        self.done("stat", site)
        return found

    def mkdir(self, path: Path, *, site: str) -> None:
        """Make a directory with mode 0700, and its parents; one that is there stays as it is."""
        self.point("mkdir", site)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
        self.done("mkdir", site)

    def listdir(self, path: Path, *, site: str) -> list[str]:
        """Return the names in a directory, in no order."""
        self.point("listdir", site)
        names = os.listdir(path)  # noqa: PTH208  # the names, not as many Path objects
        self.done("listdir", site)
        return names

    def space(self, path: Path, *, site: str) -> Space:
        """Return the room on the file system of ``path``."""
        self.point("statvfs", site)
        answer = os.statvfs(path)
        self.done("statvfs", site)
        return Space(answer.f_bavail * answer.f_frsize, answer.f_blocks * answer.f_frsize)

    def lock(self, path: Path, content: bytes, *, site: str) -> FileLock:
        """Lock a file, made if missing, for this process, and write ``content`` into it.

        Raises:
            LockHeldError: another process holds it.
            OSError: the file can't be made or written.
        """
        self.point("lock", site)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockHeldError(path, os.pread(descriptor, 4096, 0)) from None
            os.ftruncate(descriptor, 0)
            self._write_all(descriptor, content, site)
            self.done("lock", site)
        except BaseException:
            os.close(descriptor)
            raise
        return FileLock(descriptor)

    def _write_all(self, descriptor: int, data: bytes, site: str) -> None:
        self.point("write", site)
        rest = memoryview(data)
        # Why a loop? A write may be short: on a full disk, at RLIMIT_FSIZE, beyond 2 GiB.
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        self.done("write", site)

    def _fsync(self, descriptor: int, site: str) -> None:
        self.point("fsync", site)
        os.fsync(descriptor)
        self.done("fsync", site)

    # ---- the database

    def sqlite(self, path: Path, *, site: str) -> sqlite3.Connection:
        """Open a SQLite database in autocommit mode, made with mode 0600 if missing.

        The connection may be used by any one thread at a time. Whoever runs statements on it calls
        `point` and `done` for them.
        """
        self.point("sqlite.connect", site)
        # Why not leave it to SQLite? It would make the file, and the log beside it, world-readable.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
        connection = sqlite3.connect(
            path, timeout=5.0, isolation_level=None, check_same_thread=False, cached_statements=128
        )
        try:
            self.done("sqlite.connect", site)
        except BaseException:
            connection.close()
            raise
        return connection

    # ---- the network

    async def create_connection(
        self,
        protocol_factory: Callable[[], _P],
        address: str,
        port: int,
        *,
        timeout_s: float,
        source: str = "",
        site: str,
    ) -> tuple[asyncio.Transport, _P]:
        """Connect to an IP address over TCP.

        Raises:
            NotLoopbackError: ``address`` is not of this host, and the server may not leave it.
            TimeoutError: ``timeout_s`` seconds passed.
            OSError: as `connect` does.
        """
        if self.allow != "any" and not is_loopback(address):
            raise NotLoopbackError(address)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            await self.apoint("connect", site)
            transport, protocol = await loop.create_connection(
                protocol_factory, address, port, local_addr=(source, 0) if source else None
            )
        try:
            self.done("connect", site)
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        address: str,
        port: int,
        *,
        backlog: int = 1024,
        site: str,
    ) -> asyncio.Server:
        """Accept TCP connections on an address and port (0: any that is free).

        The backlog is not OpenSMTPD's 5: twenty clients with a connection per message lose SYNs
        there, and each costs its client a second.

        Raises:
            OSError: the port is taken, or not ours to take.
        """
        await self.apoint("listen", site)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocol_factory, address, port, backlog=backlog)
        try:
            self.done("listen", site)
        except BaseException:
            server.close()
            raise
        return server

    async def create_unix_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: Path,
        *,
        backlog: int = 64,
        site: str,
    ) -> asyncio.Server:
        """Accept connections on a Unix socket of mode 0600. There must be no file of that name.

        The mode is set between bind and listen: before listen nobody can connect, so there is no
        instant at which others could.

        Raises:
            OSError: the name is taken (EADDRINUSE), too long, or not ours to make.
        """
        await self.apoint("listen", site)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(str(path))
            try:
                path.chmod(PRIVATE_FILE)  # noqa: ASYNC240  # once per start, and local
                loop = asyncio.get_running_loop()
                server = await loop.create_unix_server(
                    protocol_factory, sock=listener, backlog=backlog
                )
            except BaseException:
                with contextlib.suppress(OSError):
                    path.unlink()  # noqa: ASYNC240  # likewise
                raise
        except BaseException:
            listener.close()
            raise
        try:
            self.done("listen", site)
        except BaseException:
            server.close()
            raise
        return server

    async def create_unix_connection(
        self, protocol_factory: Callable[[], _P], path: Path, *, timeout_s: float, site: str
    ) -> tuple[asyncio.Transport, _P]:
        """Connect to a Unix socket.

        Raises:
            TimeoutError: ``timeout_s`` seconds passed.
            OSError: as `connect` does.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            await self.apoint("connect", site)
            transport, protocol = await loop.create_unix_connection(protocol_factory, str(path))
        try:
            self.done("connect", site)
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    async def create_datagram(
        self, protocol_factory: Callable[[], _P], address: str, port: int, *, site: str
    ) -> tuple[asyncio.DatagramTransport, _P]:
        """Open a UDP socket that talks to one address."""
        await self.apoint("datagram", site)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            protocol_factory, remote_addr=(address, port)
        )
        try:
            self.done("datagram", site)
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    async def dns_query(self, query: Callable[[], Awaitable[_T]], *, site: str) -> _T:
        """Run one query to a name server, given as a function that returns an awaitable."""
        await self.apoint("dns", site)
        answer = await query()
        self.done("dns", site)
        return answer
