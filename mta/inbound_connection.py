"""The transport of one inbound session: bytes that come, bytes that go, time, and the end.

Nothing here knows a command; `mta.inbound_session` cuts the input into them. Everything has a limit, and nothing
waits without a timer.
"""

import asyncio
from typing import Any, Final, cast

from aiosmtpd.smtp import SMTP

from mta.core import admission
from mta.core.ids import SessionId, show_session
from mta.core.limits import SmtpLimits
from mta.core.reply import Reply
from mta.inbound_door import PLAIN, Door, Listener
from mta.inbound_log import quote_for_log
from mta.inbound_phase import BUSY, WAITING, Phase

LINGER_S: Final = 1.0
"""How long a client that was sent away may take to read why, before the connection is reset."""
LINGER_BYTES: Final = 1024 * 1024
"""How much it may still send meanwhile."""


_GOODBYE: Final = Reply(421, *admission.LOCAL_ERROR[1:])
_COMMAND: Final = Phase.COMMAND
"""For the hottest call: a member of an enumeration is found by its metaclass."""


class Connection(SMTP):
    """One connection with one client, from greeting to goodbye; `Session` obeys commands."""

    def __init__(
        self,
        door: Door,
        listener: Listener = PLAIN,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Prepare a session; `connection_made` starts it.

        aiosmtpd's constructor is not called: it inspects the whole class for every connection and makes
        a StreamReader, a Session and an Envelope that nothing here uses.
        """
        self.loop = loop or asyncio.get_running_loop()
        self.session = None
        self.envelope = None
        self.transport = None
        self.hostname = door.hostname
        self.door = door
        self.listener = listener
        self.limits = door.limits
        self.session_id = SessionId(0)
        self.peer = "unknown"
        """Address of the client."""
        self.announced: tuple[str, int] | None = None
        """Who the client really is, and its port, if a proxy said so before `connection_made`."""
        self.peer_name = ""
        """Its name, if somebody who is trusted said it."""
        self.login = ""
        """As whom it has logged in."""
        self.helo = ""
        self.tls = ""
        """Protocol, cipher and bits; empty in clear."""
        self.esmtp = False
        self.phase = Phase.COMMAND
        self.started_at = 0.0
        self._id = ""
        self._wire: asyncio.Transport | None = None
        self._welcome = False
        self._input = b""
        self._output: list[bytes] = []
        self._ended = False
        self._draining = False
        self._read_paused = False
        self._write_paused = False
        self._discarded = 0
        self._reason = "disconnect"
        self._timer: asyncio.TimerHandle | None = None
        self._active_at = 0.0
        self._deadline = 0.0

    def _obey(self, data: bytes) -> None:
        """Carry out the complete commands in ``data`` with their chunks; keep what is left."""
        raise NotImplementedError

    def _go_on(self) -> None:
        """Read and obey again after a wait."""
        raise NotImplementedError

    def _receive(self, data: bytes) -> None:
        """Take a piece of a message."""
        raise NotImplementedError

    def _open_secure(self) -> None:
        """Begin with TLS."""
        raise NotImplementedError

    def _tls_over(self) -> None:
        """Account for TLS that ended with its connection."""
        raise NotImplementedError

    def tls_failed(self, problem: str) -> None:
        """End a connection whose handshake failed or took too long."""
        raise NotImplementedError

    def _lock(self) -> None:
        """See whether commands have to wait for TLS, or a login."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Drop the transaction; idempotent, and never while its message is being committed."""
        raise NotImplementedError

    # -- the transport calls these ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client, or tell it to come back later."""
        # uvloop's transports are Transports by behaviour only.
        wire = self.transport = self._wire = cast("asyncio.Transport", transport)
        peername = self.announced or wire.get_extra_info("peername")
        if isinstance(peername, tuple) and peername:
            self.peer = str(peername[0]).removeprefix("::ffff:")
        self.limits = self.door.limits  # since the constructor others may have come to count
        implicit = self.listener.tls == "implicit"
        if implicit:
            self.phase = Phase.HANDSHAKE
        self._lock()
        now = self._active_at = self.loop.time()
        self._deadline = now + self.limits.max_session_s
        self._arm(self._due() - now)
        refusal: Reply | None
        try:
            self.session_id = self.door.next_session()
            self._id = show_session(self.session_id)
            self.started_at = self.door.now()
            refusal = self.door.connect(self.peer)
            self._welcome = refusal is None
        except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 421 for the client
            self._log_fault("connect", error)
            refusal = _GOODBYE
        if refusal is not None:
            self.door.log(f'{self._id} smtp refused address={self._address()} result="{refusal}"')
            self.door.rejected(refusal, connection=True)
            self._reason = "refused"
            self._abandon(refusal)
            return
        self.door.log(
            f"{self._id} smtp connected address={self._address()} host={self._name()}"
            f" listener={self.listener.name}"
        )
        if self.announced is not None:
            proxy = wire.get_extra_info("peername")
            self.door.log(f"{self._id} smtp proxied port={self.announced[1]} proxy={proxy[0]}")
        if implicit:
            self._open_secure()
            return
        self._greet_client()
        self._flush()

    def _greet_client(self) -> None:
        self._output.append(f"220 {self.hostname} ESMTP\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Take input; in the phase COMMAND it is commands, in MESSAGE a message, in CHUNK first a chunk."""
        phase = self.phase
        if phase is Phase.MESSAGE:
            self._arrived(len(data))
            self._receive(data)
        elif phase is Phase.CLOSING:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES and self._wire is not None:
                self._wire.abort()
        elif (phase is not _COMMAND and phase in BUSY) or self._write_paused:
            # Not more than one read's worth: the client pipelines, and may wait.
            self._input += data
            self._pause_reading()
        else:
            self._obey(self._input + data if self._input else data)

    def _arrived(self, size: int) -> None:
        """Take a piece of a message for activity."""
        now = self.loop.time()
        rate = self.limits.min_data_rate
        # With a rate, what comes buys so much time as it may take, and not a byte the whole timeout.
        self._active_at = min(now, self._active_at + size / rate) if rate else now

    def eof_received(self) -> bool:
        """Keep the connection for writing if an answer is due."""
        self._ended = True
        return self.phase in (Phase.COMMIT, Phase.LOOKUP)

    def pause_writing(self) -> None:
        """Stop obeying a client that doesn't read the answers."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Go on with what waited."""
        self._write_paused = False
        if self.phase not in WAITING:
            self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        """End the session. A commit that is under way goes on without it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tls_over()
        self.transport = self._wire = None
        if self.phase is not Phase.COMMIT:
            self._reset()
        self._input = b""
        self._output.clear()
        self.phase = Phase.CLOSING
        if not self._welcome:
            return
        self._welcome = False
        reason = self._reason
        if error is not None and reason == "disconnect":
            reason = f'"io-error: {quote_for_log(str(error))}"'
        self.door.log(f"{self._id} smtp disconnected reason={reason}")
        self.door.disconnect(self.peer)

    # -- the server calls these --------------------------------------------------------------------

    def bind(self, limits: SmtpLimits) -> None:
        """Obey other limits from now on; a client that was idle for too long by them goes at once."""
        self.limits = limits
        if self._wire is not None and self.phase is not Phase.CLOSING:
            self._arm(max(0.0, self._due() - self.loop.time()))

    def drain(self) -> None:
        """End the session with 421 as soon as no message is half-way (RFC 5321 3.8). Idempotent."""
        self._draining = True
        if self.phase in (Phase.COMMAND, Phase.AUTH):
            self._shut_down()
        elif self.phase is Phase.HANDSHAKE:
            self.tls_failed("shutdown")

    # -- time -----------------------------------------------------------------------------------------

    def _due(self) -> float:
        """Return when the client has been idle, or here, for too long."""
        if self.phase is Phase.HANDSHAKE:
            allowed = min(self.limits.tls_handshake_s, self.limits.timeout_s)
            return min(self._active_at + allowed, self._deadline)
        if self.phase in BUSY:
            # The answer to a message is worth more than a punctual end, and not the client's to hurry.
            return self._active_at + self.door.commit_timeout_s
        return min(self._active_at + self.limits.timeout_s, self._deadline)

    def _arm(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(delay, self._time_is_up)

    def _time_is_up(self) -> None:
        """See whether the client was idle for too long, or is just here for too long.

        One timer per session, set again when it fires too early. What counts as activity is a complete
        command, or any piece of a message: a client can't stay by sending a command letter by letter.
        """
        self._timer = None
        assert self._wire is not None, "connection_lost cancels the timer"
        if self.phase is Phase.CLOSING:
            self._wire.abort()
            return
        now = self.loop.time()
        due = self._due()
        if now < due:
            self._arm(due - now)
            return
        self._reason = "timeout"
        if self.phase is Phase.HANDSHAKE:
            self.tls_failed("timeout")
        elif self.phase is Phase.COMMIT:
            # The commit may still succeed; then the client's next try is a duplicate, never a loss.
            self._abandon(_GOODBYE)
        else:
            reply = admission.SESSION_TOO_LONG if now >= self._deadline else admission.IDLE
            self.door.rejected(reply)
            self._abandon(reply)

    # -- output ------------------------------------------------------------------------------------

    def _say(self, reply: Reply) -> None:
        """Add a reply to the output."""
        self._output.append(f"{reply}\r\n".encode())

    async def push(self, status: Any) -> None:
        """Add a line to the output. For commands that are aiosmtpd's own."""
        self._output.append((status if isinstance(status, bytes) else status.encode()) + b"\r\n")

    def _flush(self) -> None:
        output = self._output
        if output and self._wire is not None:
            data = output[0] if len(output) == 1 else b"".join(output)
            output.clear()
            if self.door.tracing:
                for line in data.decode("utf-8", "replace").splitlines():
                    self.door.trace("smtp", f"{self._id} >>> {line}")
            self._wire.write(data)

    def _pause_reading(self) -> None:
        if not self._read_paused and self._wire is not None and not self._ended:
            self._read_paused = True
            self._wire.pause_reading()

    # -- the end ------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        self._reason = "shutdown"
        self._abandon(admission.SHUTTING_DOWN)

    def _abandon(self, reply: Reply) -> None:
        """Say a last word and end the session.

        The connection is closed for writing first: closing it with input unread would reset it, and
        the client might never see the reply.
        """
        if self.phase is not Phase.HANDSHAKE:  # a client that expects TLS would not understand
            self._say(reply)
            self._flush()
        if self.phase is not Phase.COMMIT:
            self._reset()
        self.phase = Phase.CLOSING
        self._input = b""
        wire = self._wire
        assert wire is not None, "nobody is left to be told"
        self._arm(LINGER_S)
        if self._ended or not wire.can_write_eof():
            wire.close()
            return
        wire.write_eof()
        if self._read_paused:
            self._read_paused = False
            wire.resume_reading()

    def _hang_up(self) -> None:
        """End a connection without a word."""
        self.phase = Phase.CLOSING
        self._input = b""
        assert self._wire is not None, "closed already"
        self._arm(LINGER_S)
        self._wire.close()

    def _close(self) -> None:
        """End the session politely."""
        self._flush()
        self._reset()
        self.phase = Phase.CLOSING
        self._input = b""
        assert self._wire is not None, "closed already"
        self._arm(self.limits.timeout_s)
        self._wire.close()

    def _log_fault(self, where: str, error: BaseException) -> None:
        self.door.log(
            f'{self._id} smtp local-error where={where} error="'
            f'{quote_for_log(f"{type(error).__name__}: {error}")}"'
        )

    def _address(self) -> str:
        return f"[{self.peer}]" if ":" in self.peer else self.peer

    def _name(self) -> str:
        """Return the client's name. No look-up: the test-bed lives on loopback."""
        if self.peer_name:
            return self.peer_name
        return "localhost" if self.peer.startswith("127.") or self.peer == "::1" else "unknown"
