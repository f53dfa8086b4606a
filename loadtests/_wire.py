"""One connection on the event loop of gevent: what a client needs of a socket, and nothing that costs time.

gevent's own socket tries to read before anything can be there, and makes an object for each timeout. Here a wait is
a watcher, which is kept as long as the connection, and a timer.
"""

import _socket
import errno
import os
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Final

import gevent.socket
import gevent.ssl
from gevent import get_hub, getcurrent

READ_BYTES: Final = 65_536
"""Asked for at a time: the replies to a group of commands come in one piece."""

JOINED_BYTES_MAX: Final = 65_536
"""Pieces that are smaller together go out in one write; larger ones are not copied."""

_BIND_WITHOUT_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of linux/in.h, which the socket module doesn't name: the port is chosen at connect, and one
may serve for several destinations."""

_READ, _WRITE = 1, 2


class Wire:
    """One connection. Used by one greenlet; every wait has a deadline of `time.perf_counter`."""

    def __init__(self, address: tuple[str, int], *, deadline: float, source: str = "") -> None:
        """Connect.

        Args:
            address: in figures, and port.
            deadline: of the connection.
            source: address to come from; empty for the system's choice.

        Raises:
            OSError: refused, unreachable, no port left.
            TimeoutError: not by the deadline.
        """
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._raw: Any = _socket.socket(family, socket.SOCK_STREAM)
        self._tls: Any = None
        self._watchers: dict[int, Any] = {}
        try:
            self._raw.setblocking(False)
            self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source:
                self._raw.setsockopt(socket.IPPROTO_IP, _BIND_WITHOUT_PORT, 1)
                self._raw.bind((source, 0))
            problem = self._raw.connect_ex(address)
            if problem == errno.EINPROGRESS:
                self._wait(_WRITE, deadline)
                problem = self._raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if problem:
                raise OSError(problem, os.strerror(problem))  # noqa: TRY301  # closed below
        except BaseException:
            self.close()
            raise

    @property
    def encrypted(self) -> bool:
        """Whether STARTTLS was done."""
        return self._tls is not None

    def secure(self, context: ssl.SSLContext, *, deadline: float) -> None:
        """Go on in TLS.

        Raises:
            OSError: the handshake failed (`ssl.SSLError`), or the connection did.
            TimeoutError: not by the deadline.
        """
        self._forget_watchers()
        plain: Any = gevent.socket.socket(self._raw.family, fileno=self._raw.detach())
        try:
            plain.settimeout(max(deadline - time.perf_counter(), 0.001))
            self._tls = context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise

    def send(self, pieces: Sequence[bytes | memoryview], *, deadline: float) -> None:
        """Write everything; small pieces together, large ones without a copy.

        Raises:
            OSError: the connection is gone.
            TimeoutError: not by the deadline.
        """
        if len(pieces) > 1 and sum(map(len, pieces)) <= JOINED_BYTES_MAX:
            pieces = (b"".join(pieces),)
        for piece in pieces:
            self._send(piece, deadline)

    def _send(self, piece: bytes | memoryview, deadline: float) -> None:
        if self._tls is not None:
            self._tls.settimeout(max(deadline - time.perf_counter(), 0.001))
            self._tls.sendall(piece)
            return
        try:
            sent = self._raw.send(piece)
        except BlockingIOError:
            sent = 0
        while sent < len(piece):
            rest = memoryview(piece)[sent:]
            self._wait(_WRITE, deadline)
            try:
                sent += self._raw.send(rest)
            except BlockingIOError:
                continue

    def receive(self, *, deadline: float) -> bytes:
        """Wait for something to read and return it; nothing means that the other side has closed.

        Raises:
            OSError: the connection is gone.
            TimeoutError: not by the deadline.
        """
        if self._tls is not None:
            self._tls.settimeout(max(deadline - time.perf_counter(), 0.001))
            return bytes(self._tls.recv(READ_BYTES))
        while True:
            self._wait(_READ, deadline)
            try:
                return bytes(self._raw.recv(READ_BYTES))
            except BlockingIOError:
                continue

    def close(self) -> None:
        """Close at once. Idempotent."""
        self._forget_watchers()
        if self._tls is not None:
            self._tls.close()
        self._raw.close()

    def _forget_watchers(self) -> None:
        for watcher in self._watchers.values():
            watcher.stop()
            watcher.close()
        self._watchers.clear()

    def _wait(self, what: int, deadline: float) -> None:
        hub = get_hub()
        watcher = self._watchers.get(what)
        if watcher is None:
            watcher = self._watchers[what] = hub.loop.io(self._raw.fileno(), what)
        left = deadline - time.perf_counter()
        if left <= 0:
            raise TimeoutError
        timer = hub.loop.timer(left)
        timer.start(getcurrent().throw, TimeoutError)
        try:
            hub.wait(watcher)
        finally:
            timer.stop()
            timer.close()
