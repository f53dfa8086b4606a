"""One connection to a scripted host: bytes in, the host's verdicts out, in order and on time.

Everything that could be an opinion is `sim.remote.RemoteHost`'s; here are syntax, limits and time.
Verdicts are made when commands arrive; replies leave when they are due. Memory is bounded: a line, a
message, the replies that wait.
"""

import asyncio
import contextlib
import re
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from mta.core.reply import Reply
from sim.behaviours.base import VERBS
from sim.remote import SIZE_MAX, Conn, RemoteHost, Verdict
from sim.workload import identify

if TYPE_CHECKING:
    from testbed.world.sink import Listener

LINE_MAX: Final = 4096
"""Bytes of a command line; RFC 5321 4.5.3.1.4 asks for 512, SMTPUTF8 and parameters for more."""

REPLIES_MAX: Final = 2000
"""Replies that wait; a client that has sent so many commands is not read until some left."""

ERRORS_MAX: Final = 100
"""Commands that make no sense before the connection is closed with 421."""

_EARLY_S: Final = 0.0005
"""Event loops count milliseconds: a reply may leave this much early rather than one tick late."""

_RESET_TRIES: Final = 25
"""How often a reset waits 2 ms for replies that left the sink to reach the kernel."""

_CRLF: Final = b"\r\n"
_END: Final = b"\r\n.\r\n"
_LINGER_OFF: Final = struct.pack("ii", 1, 0)

_PATH = r'<((?:"(?:[^"\\\r\n]|\\[^\r\n])*"|[^"<>\s])*)>'
_MAIL = re.compile(rf"FROM: ?{_PATH}(?: +(\S.*))?", re.IGNORECASE)
_RCPT = re.compile(rf"TO: ?{_PATH}(?: +(\S.*))?", re.IGNORECASE)
_SOURCE_ROUTE = re.compile(r"(?:@[^@,:]+,)*@[^@,:]+:")

_SYNTAX = Reply(501, "5.5.4", "Syntax error in parameters")
_PARAMETER = Reply(555, "5.5.4", "Unsupported parameter")
_NEEDS_UTF8 = Reply(553, "5.6.7", "Address needs SMTPUTF8")
_LINE_TOO_LONG = Reply(500, "5.5.6", "Line too long")
_ERRORS = Reply(421, "4.7.0", "Too many errors")
_IDLE = Reply(421, "4.4.2", "Idle for too long")
_FULL = Reply(421, "4.3.2", "Too many connections to the sink")
_SHORT = Reply(452, "4.3.1", "Insufficient system storage")


class _Taken(NamedTuple):
    """A message that the host takes, if its reply leaves."""

    mail_from: str
    rcpts: list[str]
    message: bytes
    connections: int
    """That the host had let in when the final dot came."""


class _Waiting(NamedTuple):
    """A reply that is not due yet."""

    due_at: float
    data: bytes
    taken: _Taken | None
    close: bool


def _render(reply: Reply) -> bytes:
    return f"{reply}\r\n".encode("ascii")


class _Rendered(dict[Reply, bytes]):
    """Replies as bytes. The replies of a scenario are few: those of its hosts and ours."""

    def __missing__(self, reply: Reply) -> bytes:
        data = _render(reply)
        if len(self) < 1000:
            self[reply] = data
        return data


_RENDERED: Final = _Rendered()


class SinkSession(asyncio.Protocol):
    """Speaks SMTP for one connection. Made by a `Listener`."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._sink = listener.sink
        self._host: RemoteHost = listener.host
        self._now = listener.sink.clock.now
        self._id = ""
        self._transport: asyncio.Transport | None = None
        self._conn: Conn | None = None
        self._buffer = b""
        self._data: bytearray | None = None
        """The message that is being received; None between messages."""
        self._data_at = 0
        """Where in `_data` to look for its end."""
        self._overflow = 0
        """Bytes of the message that were not kept."""
        self._eight_bit_declared = False
        self._utf8 = False
        self._deaf = False
        """Nothing that comes is looked at any more."""
        self._errors = 0
        self._ehlo = listener.ehlo
        self._out: list[bytes] = []
        self._waiting: deque[_Waiting] = deque()
        self._left_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._read_paused = False
        self._write_paused = False
        self._eof = False
        self._resets = 0
        self.active_at = 0.0
        """When the client last said something, or a reply left; the event loop's time, because scenario
        time jumps when the start is set."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or not."""
        self._transport = cast("asyncio.Transport", transport)
        self._id = self._sink.next_session_id()
        self.active_at = self._sink.loop.time()
        now = self._now()
        self._listener.sessions.add(self)
        tally = self._sink.tally
        tally.connections += 1
        tally.open += 1
        if tally.open > self._sink.connections_max:
            self._say("CONNECT", Verdict(_FULL, close=True), now)
            self._flush(now)
            return
        peer = transport.get_extra_info("peername")
        self._conn, verdict = self._host.connect(peer[0] if peer else "", now)
        reply = verdict.reply
        if reply is not None and reply.code == 220:
            verdict = verdict._replace(
                reply=reply._replace(text=f"{self._listener.name} {reply.text}")
            )
        self._say("CONNECT", verdict, now)
        self._flush(now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; messages whose reply did not leave were not taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tally = self._sink.tally
        tally.open -= 1
        tally.abandoned += sum(one.taken is not None for one in self._waiting)
        self._waiting.clear()
        self._drop_data()
        if self._conn is not None:
            self._host.disconnect(self._conn, self._now())
        self._listener.sessions.discard(self)
        self._sink.session_ended()

    def data_received(self, data: bytes) -> None:
        """Answer what has come; all of it arrived now."""
        if self._deaf:
            return
        self.active_at = self._sink.loop.time()
        now = self._now()
        # A loop and not mutual calls: hostile clients put a thousand messages into one segment.
        while data and not self._deaf:
            data = self._commands(data, now) if self._data is None else self._more_data(data, now)
        self._flush(now)

    def eof_received(self) -> bool:
        """Stay while replies wait, but not for a message: FIN is also how a client gives up.

        It may have closed its half or all of it, and only a write would tell. A message that waits is
        not taken then: the client is not going to be told, or did not want to wait. Unless it said QUIT
        behind the message: Exim sends both at once, closes its half, and reads on.
        """
        self._eof = True
        waiting = self._waiting
        return bool(waiting) and (waiting[-1].close or all(each.taken is None for each in waiting))

    def pause_writing(self) -> None:
        """Stop reading: who does not take replies may not send commands."""
        self._write_paused = True
        self._pace()

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        self._pace()

    def reset(self) -> None:
        """Break the connection: RST, as from a host that went down.

        Replies that were not due are gone, and with them the messages that they would have taken.
        """
        if not self._deaf or self._waiting or self._timer is not None:
            self._deaf = True
            self._sink.tally.abandoned += sum(one.taken is not None for one in self._waiting)
            self._waiting.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        transport = self._transport
        assert transport is not None
        self._resets += 1
        # An event loop may keep what was written until its next turn (uvloop does), and abort would
        # throw it away: a 250 that was recorded has to leave first.
        if transport.get_write_buffer_size() and self._resets <= _RESET_TRIES:
            self._timer = self._sink.loop.call_later(0.002, self.reset)
            return
        self._sink.tally.resets += 1
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        transport.abort()

    def give_up(self, now: float) -> None:
        """Close a connection that has been idle for too long."""
        assert self._transport is not None
        if self._waiting:
            return
        if self._conn is None or self._deaf or self._transport.is_closing():
            self.reset()
            return
        self._say("IDLE", Verdict(_IDLE, close=True), now)
        self._flush(now)

    def _commands(self, data: bytes, now: float) -> bytes:
        """Carry out every whole line; return what comes after DATA, if that was among them."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at = 0
        while not self._deaf:
            end = data.find(b"\n", at)
            if (len(data) if end < 0 else end) - at > LINE_MAX:
                self._say("LINE", Verdict(_LINE_TOO_LONG, close=True), now)
                return b""
            if end < 0:
                self._buffer = data[at:]
                return b""
            line = data[at:end]
            at = end + 1
            self._command(line[:-1] if line.endswith(b"\r") else line, now)
            if self._data is not None:
                return data[at:]
        return b""

    def _command(self, line: bytes, now: float) -> None:
        conn = self._conn
        assert conn is not None
        verb_bytes, _, rest = line.partition(b" ")
        try:
            verb = verb_bytes.decode("ascii").upper()
            argument = rest.decode("utf-8").strip()
        except UnicodeDecodeError:
            self._wrong("SYNTAX", _SYNTAX, now)
            return
        size = 0
        if verb in ("MAIL", "RCPT"):
            parsed = self._path(verb, argument)
            if isinstance(parsed, Reply):
                self._wrong(verb, parsed, now)
                return
            argument, size = parsed
        elif verb in ("HELO", "EHLO") and not argument:
            self._wrong(verb, _SYNTAX, now)
            return
        verdict = self._host.command(conn, verb, argument, now, size=size)
        reply = verdict.reply
        if reply is not None:
            if reply.code == 354:
                # The line end of DATA is the first half of the end mark of an empty message.
                self._data, self._data_at, self._overflow = bytearray(_CRLF), 0, 0
                self._sink.bytes_held += len(_CRLF)
            elif verb not in VERBS:
                self._wrong("UNKNOWN", reply, now)
                return
            elif verb == "EHLO" and reply.code == 250:
                self._enqueue(verdict, self._ehlo, now)
                return
            elif verb == "HELO" and reply.code == 250:
                verdict = verdict._replace(reply=reply._replace(text=self._listener.name))
        self._say(verb, verdict, now)

    def _path(self, verb: str, argument: str) -> tuple[str, int] | Reply:
        """Return (address, declared size), or what is wrong."""
        found = (_MAIL if verb == "MAIL" else _RCPT).fullmatch(argument)
        if found is None:
            return _SYNTAX
        address = found[1]
        if address.startswith("@"):
            # RFC 5321 appendix C: source routes are accepted and ignored.
            address = _SOURCE_ROUTE.sub("", address, count=1)
        size = 0
        utf8 = self._utf8 and verb == "RCPT"
        eight_bit = False
        if found[2]:
            if verb == "RCPT":
                return _PARAMETER
            for parameter in found[2].split():
                key, _, value = parameter.upper().partition("=")
                if key == "SIZE":
                    if not (value.isascii() and value.isdigit() and len(value) <= 20):
                        return _SYNTAX
                    size = int(value)
                elif key == "BODY":
                    if value not in ("7BIT", "8BITMIME"):
                        return _SYNTAX
                    eight_bit = value == "8BITMIME"
                elif key == "SMTPUTF8" and not value:
                    utf8 = True
                else:
                    return _PARAMETER
        if not address and verb == "RCPT":
            return _SYNTAX
        if not address.isascii() and not utf8:
            return _NEEDS_UTF8
        if verb == "MAIL":
            self._eight_bit_declared, self._utf8 = eight_bit or utf8, utf8
        return address, size

    def _more_data(self, data: bytes, now: float) -> bytes:
        """Take bytes of a message; return what comes after its end."""
        held = self._data
        assert held is not None
        sink = self._sink
        if len(held) == len(_CRLF):
            # The whole message in one piece is the common case; it is not copied twice.
            if data.startswith(_END[2:]):
                self._message(b"", 0, now)
                return data[3:]
            end = data.find(_END)
            if end >= 0:
                self._message(data[: end + 2], 0, now)
                return data[end + 5 :]
        held += data
        sink.bytes_held += len(data)
        end = held.find(_END, self._data_at)
        if end >= 0:
            message = bytes(memoryview(held)[2 : end + 2])
            rest = bytes(memoryview(held)[end + 5 :])
            self._message(message, self._overflow, now)
            return rest
        if sink.bytes_held > sink.bytes_max or len(held) > SIZE_MAX + len(_CRLF):
            # Keep only what may be the beginning of the end mark.
            spilt = len(held) - 4
            if spilt > 0:
                self._overflow += spilt
                sink.bytes_held -= spilt
                del held[:spilt]
        self._data_at = max(0, len(held) - 4)
        return b""

    def _drop_data(self) -> None:
        if self._data is not None:
            self._sink.bytes_held -= len(self._data)
            self._data = None
        self._data_at = 0

    def _message(self, raw: bytes, overflow: int, now: float) -> None:
        """Judge a message whose end has come."""
        conn = self._conn
        assert conn is not None
        self._drop_data()
        self._overflow = 0
        tally = self._sink.tally
        crlf = raw.count(b"\r\n")
        if crlf != raw.count(b"\n") or crlf != raw.count(b"\r"):
            tally.altered += 1
        if not self._eight_bit_declared and not raw.isascii():
            tally.eight_bit += 1
        message = raw[1:] if raw.startswith(b".") else raw
        if b"\r\n." in message:
            message = message.replace(b"\r\n.", b"\r\n")
        mail_from, rcpts = conn.sender or "", conn.rcpts
        size = len(message) + overflow
        verdict = self._host.end_of_data(conn, size, now)
        taken = None
        if verdict.reply is not None and verdict.reply.code == 250:
            if overflow:
                # The sink itself is short of memory: our fault, so temporary.
                verdict = verdict._replace(reply=_SHORT)
            else:
                taken = _Taken(mail_from, rcpts, message, self._host.open_count)
        self._say(".", verdict, now, taken)

    def _wrong(self, what: str, reply: Reply, now: float) -> None:
        """Answer what makes no sense; not for ever."""
        self._errors += 1
        if self._errors > ERRORS_MAX:
            self._say("ERRORS", Verdict(_ERRORS, close=True), now)
        else:
            self._say(what, Verdict(reply), now)

    def _say(self, verb: str, verdict: Verdict, now: float, taken: _Taken | None = None) -> None:
        """Put a verdict behind those before it."""
        reply = verdict.reply
        if reply is None:
            self._deaf = True
            if verdict.close:
                self._waiting.append(_Waiting(max(now, self._left_at), b"", None, close=True))
            return
        if reply.code >= 400:
            self._sink.tally.refused[f"{verb} {reply.code}"] += 1
        self._enqueue(verdict, _RENDERED[reply], now, taken)

    def _enqueue(
        self, verdict: Verdict, data: bytes, now: float, taken: _Taken | None = None
    ) -> None:
        due_at = self._left_at = verdict.due_at(now, self._left_at)
        if verdict.close:
            self._deaf = True
        if due_at <= now and not self._waiting and not verdict.close:
            if taken is not None:
                self._taken(taken)
            self._out.append(data)
        else:
            self._waiting.append(_Waiting(due_at, data, taken, verdict.close))

    def _flush(self, now: float) -> None:
        """Let leave what is due; see to it that the rest does when it is."""
        transport = self._transport
        assert transport is not None
        if transport.is_closing():
            self._out.clear()
            return
        out, waiting = self._out, self._waiting
        close = reset = False
        while waiting and not close and waiting[0].due_at <= now + _EARLY_S:
            each = waiting.popleft()
            if each.taken is not None:
                self._taken(each.taken)
            out.append(each.data)
            close, reset = each.close, each.close and not each.data
        if out:
            self.active_at = self._sink.loop.time()
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if reset:
            self.reset()
        elif close or (self._eof and not waiting):
            transport.close()
        elif waiting and self._timer is None:
            delay_s = max(0.0, waiting[0].due_at - now)
            self._timer = self._sink.loop.call_later(delay_s, self._due)
        self._pace()

    def _due(self) -> None:
        self._timer = None
        self._flush(self._now())

    def _pace(self) -> None:
        """Read only while there is room for replies."""
        transport = self._transport
        assert transport is not None
        full = self._write_paused or len(self._waiting) > REPLIES_MAX
        if full == self._read_paused or transport.is_closing() or self._eof:
            return
        self._read_paused = full
        if full:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _taken(self, taken: _Taken) -> None:
        tally = self._sink.tally
        tally.messages += 1
        tally.recipients += len(taken.rcpts)
        tally.bytes += len(taken.message)
        found = identify(taken.message)
        self._sink.records.add(
            t=self._sink.clock.wall(),
            address=self._listener.address,
            session=self._id,
            mail_from=taken.mail_from,
            rcpts=taken.rcpts,
            size=len(taken.message),
            run=found.run,
            seq=found.seq,
            digest=found.digest,
            code=250,
            connections=taken.connections,
        )
