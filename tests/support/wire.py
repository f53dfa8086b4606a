"""A connection without a network: a transport in memory, a clock that the test turns, a client."""

import asyncio
import heapq
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from mta.inbound import Inbound
    from mta.inbound_door import Listener
    from tests.support.door import FakeDoor


class _Timer:
    def __init__(self, when: float, callback: "Callable[[], None]") -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: "_Timer") -> bool:
        return self.when < other.when


class ManualLoop:
    """The part of an event loop that a session uses: a clock and timers, turned by `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[_Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: "Callable[[], None]") -> _Timer:
        timer = _Timer(self.now + delay, callback)
        heapq.heappush(self.timers, timer)
        return timer

    def pending(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0].when <= end:
            timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                self.now = timer.when
                timer.callback()
        self.now = end


class MemoryWire(asyncio.Transport):
    """A transport that keeps what is written. A client that doesn't read is `stuck`."""

    def __init__(self, session: "Inbound", peer: str) -> None:
        super().__init__({"peername": (peer, 40000)})
        self.session = session
        self.protocol: asyncio.BaseProtocol = session
        """Who gets what comes: the session, or TLS below it."""
        self.writes: list[bytes] = []
        self.reading = True
        self.stuck = False
        self.eof_written = False
        self.closing = False
        self.lost = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def write(self, data: Any) -> None:
        assert not self.eof_written, "written after the end"
        if not self.closing:
            self.writes.append(bytes(data))
            if self.stuck:
                self.protocol.pause_writing()

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """The connection is gone; a real transport says so once, from the loop."""
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(error)


class Client:
    """Speaks with one session; `send` returns what it answers at once."""

    def __init__(
        self,
        door: "FakeDoor",
        *,
        peer: str = "127.0.0.1",
        loop: ManualLoop | None = None,
        listener: "Listener | None" = None,
    ) -> None:
        from mta.inbound import Inbound
        from mta.inbound_door import PLAIN

        self.clock = loop or ManualLoop()
        self.session = Inbound(
            door, listener or PLAIN, loop=cast("asyncio.AbstractEventLoop", self.clock)
        )
        self.wire = MemoryWire(self.session, peer)
        self.session.connection_made(self.wire)
        self.greeting = self.take()

    def take(self) -> str:
        """Return what was written since the last call; a connection closed by the server is gone then."""
        return self.take_bytes().decode()

    def take_bytes(self) -> bytes:
        """Return it as it is."""
        data = b"".join(self.wire.writes)
        self.wire.writes.clear()
        if self.wire.closing:
            self.wire.lose(None)
        return data

    def send(self, data: bytes | str) -> str:
        assert self.wire.reading, "the server doesn't read now"
        if not self.wire.closing:
            self.feed(data.encode() if isinstance(data, str) else data)
        return self.take()

    def feed(self, data: bytes) -> None:
        """Give the server what was read from the socket."""
        cast("asyncio.Protocol", self.wire.protocol).data_received(data)

    def say(self, *lines: str) -> str:
        """Send lines one after another, each after the answer to the last; return the last answer."""
        answer = ""
        for line in lines:
            answer = self.send(line + "\r\n")
        return answer

    def shut(self) -> None:
        """Half-close: nothing more will be sent."""
        if not cast("asyncio.Protocol", self.wire.protocol).eof_received():
            self.wire.close()

    @property
    def is_open(self) -> bool:
        return not (self.wire.closing or self.wire.eof_written)

    def ready(self, *recipients: str, sender: str = "a@src.test") -> "Client":
        """Get as far as 354."""
        self.say("EHLO client.test", f"MAIL FROM:<{sender}>")
        for recipient in recipients or ("b@dst.test",):
            assert self.say(f"RCPT TO:<{recipient}>").startswith("250 "), recipient
        assert self.say("DATA").startswith("354 ")
        return self
