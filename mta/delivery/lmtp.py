"""Delivery to an LMTP server (RFC 2033) over a Unix socket or TCP, with the relaying agent's client.

Who takes a message over LMTP makes the final delivery, so it adds Return-Path itself. Delivered-To is
ours: it marks the message for when it comes back. Each recipient has a verdict of its own, and a
recipient without one is tried again.
"""

import asyncio
import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from mta.core.envelopes.base import MtaEnvelope
from mta.core.reply import Outcome
from mta.delivery.base import (
    OUR_FAULT,
    DeliveryLimits,
    DeliveryResult,
    Job,
    Log,
    RefusedError,
    report,
)
from mta.delivery.headers import heading, refusal
from mta.effects import Effects
from mta.outerrors import LOCAL_FAULT, network_error
from mta.smtpclient import CLOSED_BY_PEER, ClientSession
from mta.smtpstates import Closed, Event, Failed, Ready, Timeouts, TransactionResult

_SITE: Final = "lmtp"

Verdicts: TypeAlias = tuple[tuple[Outcome, str], ...]
"""One per recipient, in the order of RCPT."""


_Act: TypeAlias = Callable[[ClientSession], list[Event]]


class LmtpDeliverer:
    """Delivers to an LMTP server, with a connection per transaction."""

    def __init__(
        self,
        effects: Effects,
        limits: DeliveryLimits | None = None,
        *,
        server: Path | tuple[str, int],
        hostname: str = "localhost",
        recipient: Literal["dest", "rcpt", "user"] = "dest",
        log: Log | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            effects: the server's.
            limits: what a delivery may take.
            server: path of a Unix socket, or IP address and port.
            hostname: our name, for LHLO.
            recipient: what RCPT names: the address that expansion arrived at, the original one
                (OpenSMTPD's ``rcpt-to``), or the user's name alone.
            log: told of faults of this machine.
        """
        self._effects = effects
        self._limits = limits or DeliveryLimits()
        self._server = server
        self._hostname = hostname
        self._recipient = recipient
        self._log = log
        scaled = Timeouts.scaled(self._limits.timeout_s)
        # Giving up between the dot and its reply makes a duplicate (RFC 1047): only that wait is long.
        self._timeouts = scaled._replace(
            banner=scaled.banner / 5, hello=scaled.hello / 5, transaction=scaled.dot
        )

    async def deliver(self, job: Job) -> DeliveryResult:
        """Deliver a message; see `Deliverer`."""
        return (await self.deliver_all((job,)))[0]

    async def deliver_all(self, jobs: Sequence[Job]) -> list[DeliveryResult]:
        """Deliver one message to several recipients in one transaction.

        Args:
            jobs: jobs with the same sender and body.

        Returns:
            Their results, in the same order.

        Raises:
            asyncio.CancelledError: and nothing else.
        """
        results = [refusal(job, self._limits.hops_max) for job in jobs]
        wanted = [job for job, result in zip(jobs, results, strict=True) if result is None]
        verdicts = iter(await self._try(wanted) if wanted else ())
        return [next(verdicts) if result is None else result for result in results]

    async def _try(self, jobs: Sequence[Job]) -> list[DeliveryResult]:
        assert len({(job.sender, job.body) for job in jobs}) == 1, "one message, one sender"
        try:
            verdicts = await self._transact(jobs)
        except Exception as error:  # noqa: BLE001  # whatever it is, the mail waits
            return [report(self._log, jobs[0], error)] * len(jobs)
        return [DeliveryResult(outcome, status) for outcome, status in verdicts]

    async def _transact(self, jobs: Sequence[Job]) -> Verdicts:
        first = jobs[0]
        marks = b"".join(heading(job, return_path=False) for job in jobs)
        body = marks.replace(b"\n", b"\r\n") + first.body
        envelopes = [
            MtaEnvelope(first.sender, getattr(job, self._recipient), job.created_at, len(body))
            for job in jobs
        ]
        connection = _Connection(self._hostname, self._timeouts, envelopes, body)
        try:
            await self._connect(connection)
            return await connection.done
        finally:
            await connection.end()

    async def _connect(self, connection: "_Connection") -> None:
        timeout_s = self._limits.connect_timeout_s
        try:
            if isinstance(self._server, Path):
                await self._effects.create_unix_connection(
                    lambda: connection, self._server, timeout_s=timeout_s, site=_SITE
                )
            else:
                address, port = self._server
                await self._effects.create_connection(
                    lambda: connection, address, port, timeout_s=timeout_s, site=_SITE
                )
        except OSError as error:
            raise RefusedError(_not_connected(error), repr(error)) from error


def _not_connected(error: OSError) -> DeliveryResult:
    """Return why there is no connection, in words that name no path."""
    if error.errno == errno.ENOENT:
        error = ConnectionRefusedError(errno.ECONNREFUSED, "")  # no socket is nobody who listens
    words = network_error(error)
    code = "4.3.0" if words == LOCAL_FAULT else "4.4.1"
    return DeliveryResult(Outcome.TEMPFAIL, f"{code} {words}")


class _Connection(asyncio.Protocol):
    """One connection for one transaction: moves bytes and time for a `ClientSession`."""

    def __init__(
        self, hostname: str, timeouts: Timeouts, envelopes: Sequence[MtaEnvelope], body: bytes
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hostname = hostname
        self._timeouts = timeouts
        self._envelopes = envelopes
        self._body = body
        self.done: asyncio.Future[Verdicts] = self._loop.create_future()
        """The verdicts; an exception if a mistake of ours made an end."""
        self._lost = self._loop.create_future()
        self._session: ClientSession | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False

    # ---- from the deliverer

    async def end(self) -> None:
        """Give the descriptor back, whatever state this is in."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.done.cancel()
        if self._transport is not None:
            self._transport.abort()
            await self._lost  # with the loop's next turn

    # ---- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        if self.done.done():
            self._transport.abort()  # type: ignore[union-attr]  # given up meanwhile
            return
        self._session = ClientSession(
            self._hostname, now=self._loop.time(), timeouts=self._timeouts, lmtp=True
        )
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._step(lambda session: session.receive(data, self._loop.time()))

    def eof_received(self) -> bool:
        """Take the end of the server's bytes."""
        self._step(lambda session: session.eof(self._loop.time()))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the transport."""
        self._transport = None
        reason = network_error(exc) if isinstance(exc, OSError) else CLOSED_BY_PEER
        self._step(lambda session: session.lost(reason, self._loop.time()))
        if not self._lost.done():
            self._lost.set_result(None)
        if not self.done.done():
            self._finish([(Outcome.TEMPFAIL, CLOSED_BY_PEER)] * len(self._envelopes))

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport has room."""
        self._paused = False
        self._step(lambda _: [])

    # ---- moving

    def _step(self, act: "_Act") -> None:
        """Let the session act, and carry out what it answers."""
        session = self._session
        if session is None or self.done.done():
            return
        try:
            for event in act(session):
                self._take(session, event)
            self._pump(session)
        except Exception:  # ours; a protocol's callback must not raise, for nobody would be told
            self._finish([(OUR_FAULT.outcome, OUR_FAULT.status)] * len(self._envelopes))
            raise

    def _take(self, session: ClientSession, event: Event) -> None:
        match event:
            case Ready():
                for refused in session.start(self._envelopes, self._body, self._loop.time()):
                    self._take(session, refused)
            case TransactionResult(results):
                session.quit(self._loop.time())
                self._finish(results)
            case Failed(reason) | Closed(reason):
                self._finish([(Outcome.TEMPFAIL, reason)] * len(self._envelopes))

    def _pump(self, session: ClientSession) -> None:
        now = self._loop.time()
        transport = self._transport
        while transport is not None and not self._paused and (chunk := session.data_to_send(now)):
            transport.write(chunk)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session = self._session
        if session is not None and session.deadline is not None and not self.done.done():
            self._timer = self._loop.call_at(session.deadline, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        self._step(lambda session: session.timer(self._loop.time()))

    def _finish(self, verdicts: Sequence[tuple[Outcome, str]]) -> None:
        if not self.done.done():
            self.done.set_result(tuple(verdicts))
