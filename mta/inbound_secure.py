"""STARTTLS (RFC 3207) and AUTH (RFC 4954) at the door.

The rules: what was said in clear is forgotten once there is TLS, and what was sent in clear behind STARTTLS
is never obeyed after it (CVE-2011-0411, CVE-2021-38371): such a client is sent away. No password is ever
logged or traced. What can't be done now is 454, and the session goes on as it was.
"""

import asyncio
from functools import partial
from typing import Final

from aiosmtpd.smtp import syntax

from mta.core import sasl
from mta.core.reply import Reply
from mta.inbound_door import Verdict
from mta.inbound_log import quote_for_log
from mta.inbound_phase import Phase
from mta.inbound_session import OUT_OF_STEP, Session
from mta.tlswire import TlsWire

TLS_UNAVAILABLE: Final = Reply(454, "4.7.0", "TLS not available now, try again later")
"""RFC 3207 4."""
TLS_REQUIRED: Final = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
"""RFC 3207 4."""

_BEFORE_TLS: Final = frozenset({b"EHLO", b"HELO", b"NOOP", b"QUIT", b"STARTTLS"})
"""RFC 3207 4; HELO as Postfix, which leads nowhere."""
_BEFORE_AUTH: Final = _BEFORE_TLS | {b"AUTH", b"RSET", b"HELP", b"XCLIENT"}
"""RFC 4954 6."""
_NOT_IMPLEMENTED: Final = Reply(502, "5.5.1", "Command not implemented")
_BAD_SEQUENCE: Final = Reply(503, "5.5.1", "Command not allowed at this point")


class SecureSession(Session):
    """A session that can be encrypted, and whose client can say who it is."""

    _exchange: sasl.Exchange | None = None
    _auth_failures = 0

    def _has_transaction(self) -> bool:
        """Say whether MAIL was accepted and its message did not end."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what the client said of itself."""
        self._reset()
        self.helo = self.login = ""
        self.esmtp = False

    def _lock(self) -> None:
        """See whether commands are refused until there is TLS, or a login."""
        listener = self.listener
        self._locked = (listener.tls == "required" and not self.tls) or (
            listener.auth == "required" and not self.login
        )

    def _refusal(self, verb: bytes) -> Reply | None:
        """Return why a command is not allowed yet, or None."""
        if self.listener.tls == "required" and not self.tls:
            return None if verb in _BEFORE_TLS else TLS_REQUIRED
        return None if verb in _BEFORE_AUTH else sasl.REQUIRED

    def secure_extensions(self) -> tuple[str, ...]:
        """Return what EHLO offers here and now."""
        offers = []
        if self._may_start_tls():
            offers.append("STARTTLS")
        if self._may_log_in():
            offers.append(f"AUTH {' '.join(sasl.MECHANISMS)}")
        return tuple(offers)

    # -- TLS -----------------------------------------------------------------------------------------

    def _may_start_tls(self) -> bool:
        return not self.tls and self.listener.tls in ("starttls", "required")

    @syntax("STARTTLS")
    async def smtp_STARTTLS(self, arg: str) -> None:
        """RFC 3207 4. Nothing may be pipelined behind it: that was checked before."""
        if self.listener.tls not in ("starttls", "required"):
            self.fail(_BAD_SEQUENCE if self.tls else _NOT_IMPLEMENTED)
        elif arg:
            self.fail(Reply(501, "5.5.4", "Syntax: STARTTLS"))
        elif self.tls or not self.esmtp:
            self.fail(_BAD_SEQUENCE)
        else:
            self._flush()
            try:
                secure = self._secured()
            except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 4xx for the client
                self._log_fault("STARTTLS", error)
                self.fail(TLS_UNAVAILABLE)
                return
            self._output.append(b"220 2.0.0 Ready to start TLS\r\n")
            self._flush()
            self._shake_hands(secure)

    def _open_secure(self) -> None:
        """Begin with TLS, before the greeting."""
        try:
            secure = self._secured()
        except Exception as error:  # noqa: BLE001 - our fault; there are no words for it before TLS
            self._log_fault("TLS", error)
            self.tls_failed("local error")
            return
        self._shake_hands(secure)

    def _secured(self) -> TlsWire:
        context = self.door.tls_context()
        assert self._wire is not None, "only a client can ask"
        return TlsWire(self._wire, self, context)

    def _shake_hands(self, secure: TlsWire) -> None:
        self.transport = self._wire = secure
        self.phase = Phase.HANDSHAKE
        self._active_at = now = self.loop.time()
        self._arm(max(0.0, self._due() - now))
        if self._read_paused:
            self._read_paused = False
            secure.resume_reading()

    def tls_ready(self) -> None:
        """Go on encrypted, from the beginning (RFC 3207 4.2)."""
        assert isinstance(self._wire, TlsWire), self._wire
        self.tls = self._wire.cipher
        implicit = self.listener.tls == "implicit"
        self.door.tls_began(implicit=implicit)
        self.door.log(f"{self._id} smtp tls ciphers={self.tls}")
        self._forget()
        self._lock()
        self.phase = Phase.COMMAND
        self._active_at = now = self.loop.time()
        self._arm(max(0.0, self._due() - now))
        if self._draining:
            self._shut_down()
        elif implicit:
            self._greet_client()
            self._flush()

    def tls_failed(self, problem: str) -> None:
        """End the connection: there was no handshake, so there are no words."""
        self.door.tls_failed()
        self._reason = f'tls-accept-failed error="{quote_for_log(problem)}"'
        self._forget()
        self._hang_up()

    def _tls_over(self) -> None:
        """Account for a connection that is gone."""
        if self.tls:
            self.door.tls_ended(implicit=self.listener.tls == "implicit")
        elif self.phase is Phase.HANDSHAKE:
            self.door.tls_failed()
            self._reason = 'tls-accept-failed error="connection lost"'

    # -- AUTH ----------------------------------------------------------------------------------------

    def _may_log_in(self) -> bool:
        listener = self.listener
        return listener.auth != "none" and bool(self.tls or not listener.auth_requires_tls)

    @syntax("AUTH mechanism", extended=" [initial-response]")
    async def smtp_AUTH(self, arg: str) -> None:
        """RFC 4954 4."""
        mechanism, _, initial = arg.partition(" ")
        if self.listener.auth == "none":
            self.fail(_NOT_IMPLEMENTED)
        elif not self._may_log_in():
            self.fail(sasl.NEEDS_TLS)
        elif not self.esmtp or self.login or self._has_transaction():
            self.fail(_BAD_SEQUENCE)
        elif not mechanism:
            self.fail(Reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]"))
        else:
            self._exchange = sasl.Exchange(mechanism)
            self._proceed(self._exchange.start(initial.strip(" ")))

    def _respond(self, line: bytes, more: bool) -> None:
        """Take the client's answer to a challenge."""
        assert self._exchange is not None, "there was a challenge"
        self._active_at = self.loop.time()
        if self.door.tracing:
            self.door.trace("smtp", f"{self._id} <<< {'*' if line == b'*' else '****'}")
        if more:
            self._reject_input(OUT_OF_STEP)
            return
        self._proceed(self._exchange.respond(line))

    def _proceed(self, outcome: sasl.Outcome) -> None:
        if isinstance(outcome, sasl.Challenge):
            self.phase = Phase.AUTH
            self._output.append(f"{outcome.line}\r\n".encode())
            return
        self.phase = Phase.COMMAND
        self._exchange = None
        if isinstance(outcome, Reply):
            self._refuse_login(outcome)
            return
        try:
            verdict = self.door.authenticate(outcome.user, outcome.password)
        except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 4xx for the client
            self._log_fault("AUTH", error)
            self.fail(sasl.UNAVAILABLE)
            return
        self.phase = Phase.VERIFY
        done = partial(self._verified, outcome.user)
        if verdict.done():
            done(verdict)
        else:
            verdict.add_done_callback(done)

    def _refuse_login(self, reply: Reply) -> None:
        if reply in (sasl.REFUSED, sasl.MALFORMED):
            self._auth_failures += 1
        self.fail(reply)
        if self.phase is not Phase.CLOSING and self._auth_failures >= self.limits.max_auth_failures:
            self._reason = "errors"
            self.door.rejected(sasl.TOO_MANY_FAILURES)
            self._abandon(sasl.TOO_MANY_FAILURES)

    def _verified(self, user: str, done: asyncio.Future[Verdict]) -> None:
        """Take what came of credentials, if the client is still there."""
        if done.cancelled():
            verdict = Verdict.TEMPFAIL
        elif (error := done.exception()) is not None:
            self._log_fault("AUTH", error)
            verdict = Verdict.TEMPFAIL
        else:
            verdict = done.result()
        self.door.log(
            f"{self._id} smtp authentication user={quote_for_log(user)} result={verdict.value}"
        )
        if self.phase is not Phase.VERIFY:
            return  # the client left, or was sent away
        self.phase = Phase.COMMAND
        match verdict:
            case Verdict.OK:
                self.login = user
                self._auth_failures = 0
                self._lock()
                self._output.append(b"235 2.7.0 Authentication successful\r\n")
            case Verdict.PERMFAIL:
                self._refuse_login(sasl.REFUSED)
            case Verdict.TEMPFAIL:
                self.fail(sasl.UNAVAILABLE)
        if self.phase is Phase.COMMAND:  # else that was one failure too many
            self._go_on()
