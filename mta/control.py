"""The control socket: what the operator asks, one JSON line each, and what the server answers.

A request is one object on one line: ``{"verb": "show queue", "id": "0000002a"}``. Its answer is any
number of lines ``{"row": {...}}`` and one last line, ``{"end": {...}}`` or ``{"error": "why"}``; an answer
without its last line was cut off. Requests on one connection are answered in order.

Nothing that a client does may hurt mail: connections, request lines and what waits to be read are
bounded, whoever reads too slowly is dropped, a long answer is made in pieces between which the event loop
goes on, and a line that is no request costs its sender the connection and nobody else anything. (A
malformed message on the local socket could end OpenSMTPD: CVE-2025-62875.) The socket has mode 0600, and
the kernel tells who connects: only the server's own user and root are answered.

The server side only; `mta.ctl` is the client.
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from mta.controlverbs import (
    ROWS,
    VERBS,
    ControlTarget,
    Request,
    RequestError,
    Row,
    changes,
    encode,
    read_request,
    show_request,
)
from mta.effects import Effects
from mta.queue.base import QueueUnavailableError

__all__ = [
    "ControlLimits",
    "ControlServer",
    "ControlSocketBusyError",
    "ControlTarget",
    "Peer",
    "peer_of",
]

PIECE: Final = 64 * 1024
"""Bytes of an answer that are written before the event loop goes on with other things."""


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What the clients of the control socket may do. All ours; OpenSMTPD has none of them."""

    max_conn: int = 32
    """Open connections; one more is told so and closed."""
    max_line: int = 64 * 1024
    """Bytes of a request."""
    idle_s: float = 60.0
    """How long a client may say nothing, seconds."""
    slow_s: float = 10.0
    """How long a client may leave an answer unread, seconds."""
    max_unread: int = 256 * 1024
    """Bytes of an answer that wait for the client before more is made."""
    interval_min_s: float = 0.1
    """Least time between two lines of `monitor`, seconds."""
    interval_max_s: float = 3600.0
    """Longest time between two lines of `monitor`, seconds."""


class ControlSocketBusyError(Exception):
    """The socket can't be ours: another server answers on it, or it is not a socket. One line."""


def _nothing(text: str) -> None:
    pass


class ControlServer:
    """Listens on the socket. `start`, then `close`; both on the event loop's thread."""

    def __init__(
        self,
        path: Path,
        target: ControlTarget,
        effects: Effects,
        *,
        log: Callable[[str], None] = _nothing,
        trace: Callable[[str], None] = _nothing,
        limits: ControlLimits | None = None,
    ) -> None:
        """Make a server that does not listen yet.

        Args:
            path: of the socket; its directory must be there.
            target: what it shows and steers.
            effects: how it listens.
            log: told what an operator changed, and who was refused.
            trace: told every request and how its answer ended; subsystem ``control``.
            limits: what clients may do.
        """
        self.path = path
        self.target = target
        self.limits = limits or ControlLimits()
        self.log = log
        self.trace = trace
        self.now = effects.now
        self._effects = effects
        self._server: asyncio.Server | None = None
        self._gone: asyncio.Future[None] | None = None
        """Done when the last connection is gone."""
        self._inode: tuple[int, int] | None = None
        self._open: set[_Session] = set()
        self._admitted: set[_Session] = set()

    def __len__(self) -> int:
        """Return how many clients are connected (``control.session``)."""
        return len(self._admitted)

    async def start(self) -> None:
        """Listen. A socket that a dead server left behind is removed.

        Raises:
            ControlSocketBusyError: another server answers on it, or there is something else of that name.
            OSError: the socket can't be made.
        """
        await self._clear()
        self._server = await self._effects.create_unix_server(
            lambda: _Session(self), self.path, site="control"
        )
        found = self._effects.lstat(self.path, site="control")
        self._inode = (found.st_dev, found.st_ino)

    async def close(self) -> None:
        """Stop listening, cut clients off, remove the socket. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        # Why before closing? Once nobody listens, a server that starts now may take the name.
        with contextlib.suppress(OSError):
            found = self._effects.lstat(self.path, site="control")
            if (found.st_dev, found.st_ino) == self._inode:
                self._effects.unlink(self.path, site="control")
        for _ in range(4):
            # Why? So many turns asyncio takes from accept to connection_made; a connection that is
            # between the two when its server closes is lost with its descriptor.
            await asyncio.sleep(0)
        server.close()
        for session in list(self._open):
            session.abort()
        if self._open:
            # Why not leave it to wait_closed? Before Python 3.12 it does not wait for connections.
            self._gone = asyncio.get_running_loop().create_future()
            await self._gone
        await server.wait_closed()

    async def _clear(self) -> None:
        """Remove a socket on which nobody listens."""
        try:
            mode = self._effects.lstat(self.path, site="control").st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ControlSocketBusyError(f"{self.path}: there is a file of this name, not a socket")
        try:
            transport, _ = await self._effects.create_unix_connection(
                asyncio.Protocol, self.path, timeout_s=5.0, site="control"
            )
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                self._effects.unlink(self.path, site="control")
        except TimeoutError:
            # Its queue of connections is full: it hangs, but it is there.
            raise ControlSocketBusyError(f"{self.path}: another server has this socket") from None
        else:
            transport.abort()
            raise ControlSocketBusyError(f"{self.path}: another server answers on this socket")

    def admit(self, session: "_Session", who: "Peer | None") -> str:
        """Return why a client may not come in, or nothing."""
        self._open.add(session)
        if who is not None and who.uid not in (0, os.geteuid()):
            self.log(f"control refused uid={who.uid} pid={who.pid}")
            return "permission denied"
        if len(self._admitted) >= self.limits.max_conn:
            return "too many connections"
        self._admitted.add(session)
        return ""

    def leave(self, session: "_Session") -> None:
        """Forget a client."""
        self._open.discard(session)
        self._admitted.discard(session)
        if not self._open and self._gone is not None and not self._gone.done():
            self._gone.set_result(None)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, as the kernel knows."""

    pid: int
    uid: int
    gid: int


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Return who connected; None where the system can't tell (the socket's mode has to do then)."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "SO_PEERCRED", None)
    if connection is None or option is None:
        return None
    size = struct.calcsize("3i")
    return Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, size)))


class _Session(asyncio.Protocol):
    """One client. No task: what it waits for are callbacks of its transport and timers."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._input = bytearray()
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None
        self._busy = False
        """A request is being answered."""
        self._answer: Iterator[bytes] | None = None
        """What is left of the answer, unless it is a stream."""
        self._end: Row = {}
        self._unfollow: Callable[[], None] | None = None
        self._skipped = 0
        """Lines of a followed trace that were left out because the client did not read."""
        self._eof = False
        self._deaf = False
        """We stopped reading until the request that is being answered is done."""
        self._paused = False
        """The client does not read."""
        self._deadline: asyncio.TimerHandle | None = None
        self._tick: asyncio.Handle | None = None
        """The next piece of an answer, or the next line of a monitor."""

    # The transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Why no isinstance? uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._peer = peer_of(transport)
        refusal = self._server.admit(self, self._peer)
        if refusal:
            self._fail(refusal)
            return
        self._transport.set_write_buffer_limits(high=self._limits.max_unread)
        self._set_deadline(self._limits.idle_s)

    def data_received(self, data: bytes) -> None:
        self._input += data
        if self._busy and len(self._input) > self._limits.max_line and self._transport is not None:
            self._deaf = True
            self._transport.pause_reading()
        self._next()

    def eof_received(self) -> bool:
        self._eof = True
        if self._busy and self._answer is None:
            self._finish()  # whoever stops talking to a stream wants it to end
        self._next()
        return True

    def pause_writing(self) -> None:
        self._paused = True
        self._set_deadline(self._limits.slow_s)

    def resume_writing(self) -> None:
        self._paused = False
        self._clear_deadline()
        if self._skipped:
            self._write({"row": {"line": f"{self._skipped} lines left out: read faster"}})
            self._skipped = 0
        if not self._busy:
            self._set_deadline(self._limits.idle_s)
        elif self._answer is not None and self._tick is None:
            self._tick = self._loop.call_soon(self._pump)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._stop()
        self._clear_deadline()
        self._server.leave(self)

    # One request after the other

    def abort(self) -> None:
        """Cut the client off."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        """Begin with the next request, if the last one is answered and there is one."""
        transport = self._transport
        if self._busy or transport is None or transport.is_closing():
            return
        end = self._input.find(b"\n", 0, self._limits.max_line + 1)
        if end >= 0:
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            self._begin(line)
        elif len(self._input) > self._limits.max_line:
            self._fail(f"request longer than {self._limits.max_line} bytes")
        elif self._eof and self._input:
            self._fail("request without its end")
        elif self._eof:
            transport.close()
            self._set_deadline(self._limits.slow_s)

    def _begin(self, line: bytes) -> None:
        try:
            request = read_request(line)
        except RequestError as error:
            self._fail(str(error))
            return
        self._busy = True
        self._server.trace(f"request {show_request(request)}{self._who()}")
        self._end = {}
        if not self._paused:
            self._clear_deadline()
        if request.verb == "monitor":
            self._monitor(request)
        elif request.verb == "trace" and request.follow:
            self._follow(request)
        else:
            self._answer = self._guarded(request)
            # Why not at once? So that many requests in one packet do not hold up the event loop.
            self._tick = self._loop.call_soon(self._pump)

    def _guarded(self, request: Request) -> Iterator[bytes]:
        """Answer in lines, nothing where the loop should have a turn; log what was changed."""
        try:
            for row in VERBS[request.verb][1](self._server.target, request, self._end):
                yield b"" if row is None else encode({"row": row})
        except Exception as error:  # noqa: BLE001  # `_explain` passes on what is our fault
            self._end = self._explain(request, error)
        if changes(request.verb):
            self._tell(request)

    def _explain(self, request: Request, error: Exception) -> Row:
        """Return the last line for what went wrong."""
        if isinstance(error, RequestError):
            return {"error": str(error), "usage": error.usage}
        if isinstance(error, QueueUnavailableError | OSError):
            return {"error": f"the queue can't be read now: {error}", "usage": False}
        # Ours. The client need not know more; whoever minds the loop's exceptions must.
        self._loop.call_exception_handler(
            {"message": f"control: {request.verb} failed", "exception": error, "protocol": self}
        )
        return {"error": "internal error", "usage": False}

    def _tell(self, request: Request) -> None:
        words = [f"control {show_request(request)}"]
        if "error" in self._end:
            words.append(f'error="{self._end["error"]}"')
        elif "envelopes" in self._end:
            words.append(f"envelopes={self._end['envelopes']}")
        elif "changed" in self._end:
            words.append(self._end["changed"])
        self._server.log(" ".join(words) + self._who())

    def _who(self) -> str:
        return "" if self._peer is None else f" uid={self._peer.uid} pid={self._peer.pid}"

    def _pump(self) -> None:
        """Write the next piece of the answer; go on when the loop had a turn and the client has read."""
        self._tick = None
        if self._paused or self._answer is None or self._transport is None:
            return
        piece = bytearray()
        for count, line in enumerate(self._answer, 1):
            piece += line
            if not line or count == ROWS or len(piece) >= PIECE:
                if piece:
                    self._transport.write(bytes(piece))
                if not self._paused:
                    self._tick = self._loop.call_soon(self._pump)
                return
        if piece:
            self._transport.write(bytes(piece))
        self._finish()

    def _finish(self) -> None:
        """Write the last line of an answer, and look for another request."""
        self._stop()
        error, usage = self._end.pop("error", None), self._end.pop("usage", False)
        self._server.trace(f"answered {'ok' if error is None else error}{self._who()}")
        self._write({"end": self._end} if error is None else {"error": error, "usage": usage})
        self._busy = False
        if self._deaf and self._transport is not None and not self._eof:
            self._deaf = False
            self._transport.resume_reading()
        if not self._paused:
            self._set_deadline(self._limits.idle_s)
        self._next()

    def _fail(self, text: str) -> None:
        """Say why, and hang up."""
        self._write({"error": text, "usage": True})
        self._stop()
        if self._transport is not None:
            self._transport.close()
            self._set_deadline(self._limits.slow_s)

    def _stop(self) -> None:
        """End whatever is under way. Idempotent."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        unfollow, self._unfollow = self._unfollow, None
        if unfollow is not None:
            unfollow()
        self._answer = None

    # Streams

    def _monitor(self, request: Request) -> None:
        interval_s = 1.0 if request.interval_s is None else request.interval_s
        left = request.count or 0
        if not self._limits.interval_min_s <= interval_s <= self._limits.interval_max_s or left < 0:
            self._end = {"error": "count or interval_s out of range", "usage": True}
            self._finish()
            return
        self._write({"begin": {}})
        self._beat(request, self._loop.time(), interval_s, left)

    def _beat(self, request: Request, at: float, interval_s: float, left: int) -> None:
        """Write one line of counters; come back ``interval_s`` later unless it was the last."""
        self._tick = None
        try:
            line = encode({"row": {"t": self._server.now(), **self._server.target.stats()}})
        except Exception as error:  # noqa: BLE001  # `_explain` passes on what is our fault
            self._end = self._explain(request, error)
            self._finish()
            return
        if not self._paused and self._transport is not None:
            self._transport.write(line)
        if left == 1:
            self._finish()
            return
        at = max(at + interval_s, self._loop.time())
        self._tick = self._loop.call_at(at, self._beat, request, at, interval_s, max(left - 1, 0))

    def _follow(self, request: Request) -> None:
        subsystem = request.subsystem or ""
        try:
            self._unfollow = self._server.target.follow(
                subsystem, self._trace_line, request.only or ""
            )
        except ValueError as error:
            self._end = {"error": str(error), "usage": True}
            self._finish()
            return
        self._write({"begin": {"subsystem": subsystem}})

    def _trace_line(self, text: str) -> None:
        """Pass on a line of a trace. Called from the middle of anything: never fails, never waits."""
        if self._paused:
            self._skipped += 1
        else:
            self._write({"row": {"line": text}})

    # Small things

    def _write(self, record: Row) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(record))

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        if self._transport is not None:
            self._deadline = self._loop.call_later(seconds, self.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
