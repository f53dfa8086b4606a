"""The door's side of the server: whom to admit, what may come in, and whose commit it is.

`mta.inbound` speaks SMTP and asks here; the rules are `mta.core.admission`'s, the measurements are ours.
"""

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mta.core import admission
from mta.core.address import Path
from mta.core.admission import Pressure
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, SessionId
from mta.core.pressure import MemoryLevel
from mta.core.reply import Reply
from mta.core.stress import Stress
from mta.queue.base import QueueUnavailableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from mta.authentication import Authenticator
    from mta.certificates import Certificates
    from mta.config import Config
    from mta.core.expanded import Expansion
    from mta.core.limits import SmtpLimits
    from mta.core.metrics import Metrics
    from mta.core.rules import Client
    from mta.driver import Driver
    from mta.inbound_door import Verdict
    from mta.log import Log
    from mta.queue.sqlite import SqliteQueue
    from mta.trace import Tracer

_MEMORY = (admission.SHORT_OF_MEMORY, admission.LOAD_SHEDDING)
_TIMEOUTS = (admission.IDLE, admission.SESSION_TOO_LONG)


class ServerDoor:
    """Implements `mta.inbound_door.Door` for the server."""

    def __init__(
        self,
        config: "Config",
        driver: "Driver",
        queue: "SqliteQueue",
        *,
        log: "Log",
        tracer: "Tracer",
        metrics: "Metrics",
        first_session: SessionId,
        certificates: "Certificates | None" = None,
        authenticator: "Authenticator | None" = None,
    ) -> None:
        self.hostname = config.hostname
        self.stress = Stress(config.limits.smtp)
        self.on_stress: Callable[[], None] = lambda: None
        """Called when the limits are others: the sessions that are open must hear of it."""
        self.memory = MemoryLevel.OK
        """How short of memory the process is; whoever measures says so."""
        self.paused = False
        self.draining = False
        self.connections = 0
        self.bytes_in_memory = 0
        self._config = config.limits.smtp
        self._queue_limits = config.limits.queue
        self._networks = admission.parse_networks(config.smtp.relay_networks)
        self._xclient_networks = admission.parse_networks(config.smtp.xclient_networks)
        self._driver = driver
        self._queue = queue
        self._log = log
        self._tracer = tracer
        self._metrics = metrics
        self._certificates = certificates
        self._authenticator = authenticator
        metrics.set("smtp.stress", self.stress.active)
        metrics.set("smtp.stress.entered", self.stress.entered)
        self._next_session = int(first_session)
        self._clients: Counter[str] = Counter()
        self._may_relay: dict[str, bool] = {}
        self._addressing = driver.addressing
        self._lookups: set[asyncio.Task[Reply | tuple[Recipient, ...]]] = set()
        self._rule_clients: dict[str, Client] = {}
        self.log = log.info
        self.now = driver.effects.now
        self.next_msgid = queue.next_msgid

    @property
    def tracing(self) -> bool:
        """The operator traces ``smtp``."""
        return self._tracer.smtp

    @property
    def limits(self) -> "SmtpLimits":
        """The limits that count now."""
        return self.stress.limits

    @property
    def commit_timeout_s(self) -> float:
        """How long a client waits for the answer to its message."""
        return self._config.timeout_s

    @property
    def reads_ahead(self) -> bool:
        """Input may be read while its message is being committed."""
        return self.memory < MemoryLevel.SOFT

    def _count(self, change: int) -> None:
        """Count connections, and see whether that is stress, or the end of it."""
        self.connections += change
        stress = self.stress
        if stress.update(self.connections):
            self._metrics.set("smtp.stress", stress.active)
            self._metrics.set("smtp.stress.entered", stress.entered)
            self._log.warn(
                f"smtp stress {'began' if stress.active else 'ended'}"
                f" connections={self.connections} max={self._config.max_conn}"
                f" timeout={self.limits.timeout_s:g}s"
            )
            self.on_stress()

    def trace(self, subsystem: str, line: str) -> None:
        """Write a line to the trace."""
        self._tracer.line(subsystem, line)

    def next_session(self) -> SessionId:
        """Return an id for a new session: the high half says when the server started."""
        self._next_session += 1
        return SessionId(self._next_session)

    def _pressure(self) -> Pressure:
        queue = self._queue.pressure()
        return Pressure(
            connections=self.connections,
            queued_envelopes=queue.envelopes,
            queued_bytes=queue.size_bytes,
            waiting=queue.waiting,
            bytes_in_memory=self.bytes_in_memory,
            free_bytes=queue.free_bytes,
            total_bytes=queue.total_bytes,
            draining=self.draining,
            paused=self.paused,
            healthy=queue.healthy,
            memory=self.memory,
        )

    def limits_changed(self) -> None:
        """Take changed limits over: those that count under stress, and those of open sessions."""
        self.stress.refresh()
        self._count(0)
        self.on_stress()

    def connect(self, peer: str) -> Reply | None:
        """Count a connection, or refuse it."""
        refused = admission.on_connect(
            self._pressure(), from_client=self._clients[peer], limits=self.limits
        )
        if refused is not None:
            if not self._clients[peer]:
                del self._clients[peer]
            if self._tracer.limits:
                self._tracer.line(
                    "limits", f"smtp refused peer={peer} open={self.connections}: {refused}"
                )
            return refused
        self._clients[peer] += 1
        self._count(+1)
        self._metrics.inc("smtp.session")
        self._metrics.inc("smtp.session.inet6" if ":" in peer else "smtp.session.inet4")
        return None

    def disconnect(self, peer: str) -> None:
        """Uncount a connection."""
        self._count(-1)
        self._uncount(peer)
        self._metrics.dec("smtp.session")
        self._metrics.inc("smtp.disconnect")

    def _uncount(self, peer: str) -> None:
        self._clients[peer] -= 1
        if not self._clients[peer]:
            del self._clients[peer]
            self._may_relay.pop(peer, None)
            self._rule_clients.pop(peer, None)

    def move(self, peer: str, other: str) -> Reply | None:
        """Count a connection as another client's from now on, if that one may have one more."""
        if other != peer:
            if self._clients[other] >= self.limits.max_conn_per_client:
                return admission.TOO_MANY_FROM_CLIENT
            self._clients[other] += 1
            self._uncount(peer)
        return None

    def may_say_xclient(self, peer: str) -> bool:
        """Say whether a client is in one of ``smtp.xclient_networks``."""
        return admission.is_in(peer, self._xclient_networks)

    def tls_context(self) -> "ssl.SSLContext":
        """Return what one more connection is encrypted with."""
        assert self._certificates is not None, "no listener has TLS without a certificate"
        return self._certificates.context()

    def tls_began(self, *, implicit: bool) -> None:
        """Count a connection with TLS."""
        self._metrics.inc("smtp.smtps" if implicit else "smtp.tls")

    def tls_ended(self, *, implicit: bool) -> None:
        """Uncount a connection with TLS."""
        self._metrics.dec("smtp.smtps" if implicit else "smtp.tls")

    def tls_failed(self) -> None:
        """Count a handshake that came to nothing."""
        self._metrics.inc("smtp.tls.failed")

    def authenticate(self, user: str, password: str) -> "asyncio.Future[Verdict]":
        """Check credentials."""
        assert self._authenticator is not None, "no listener has AUTH without users"
        return self._authenticator.authenticate(user, password)

    def begin(self, declared_size: int, messages: int) -> Reply | None:
        """Say at MAIL whether a message can be taken now."""
        return admission.on_mail(
            self._pressure(),
            declared_size=declared_size,
            messages=messages,
            limits=self.limits,
            queue=self._queue_limits,
        )

    def recipient(
        self, peer: str, recipient: Recipient, recipients: int, *, user: str = ""
    ) -> "Reply | tuple[Recipient, ...] | asyncio.Future[Reply | tuple[Recipient, ...]] | None":
        """Say whether this client may send to this recipient, and what it becomes.

        Without rules every domain is a remote one. With them the recipient is expanded, all or nothing.
        """
        if self._addressing is not None:
            return self._expanded(peer, recipient, recipients, user)
        allowed = self._may_relay.get(peer)
        if allowed is None:
            allowed = self._may_relay[peer] = admission.is_in(peer, self._networks)
        return admission.on_recipient(
            self._pressure(),
            recipients=recipients,
            may_relay=allowed or bool(user),
            limits=self.limits,
            queue=self._queue_limits,
        )

    def _expanded(
        self, peer: str, recipient: Recipient, recipients: int, user: str
    ) -> "Reply | tuple[Recipient, ...] | asyncio.Future[Reply | tuple[Recipient, ...]]":
        addressing = self._addressing
        assert addressing is not None, recipient
        refused = self._admitted(recipients)
        if refused is not None:
            return refused  # before the look-ups: what is full should not work for it
        client = addressing.client(peer, user=user) if user else self._rule_clients.get(peer)
        if client is None:
            client = self._rule_clients[peer] = addressing.client(peer)
        path = Path(recipient.address, recipient.domain)
        if addressing.takes_time:
            task = asyncio.get_running_loop().create_task(
                self._expanded_later(path, client, recipient, recipients), name="look-up"
            )
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)
            return task
        return self._becomes(recipient, recipients, addressing.expand(path, client))

    async def _expanded_later(
        self, path: Path, client: "Client", recipient: Recipient, recipients: int
    ) -> Reply | tuple[Recipient, ...]:
        """Expand on a thread: an answer from a database that is locked would hold up everybody."""
        assert self._addressing is not None
        if len(self._lookups) > self.limits.max_lookups:
            self._metrics.inc("smtp.lookup.failed")
            return admission.LOOKUP_FAILED
        self._metrics.inc("smtp.lookup")
        try:
            async with asyncio.timeout(self.limits.lookup_timeout_s):
                expansion = await self._addressing.expand_on_thread(path, client)
        except TimeoutError:
            self._metrics.inc("smtp.lookup.failed")
            return admission.LOOKUP_FAILED
        finally:
            self._metrics.dec("smtp.lookup")
        return self._becomes(recipient, recipients, expansion)

    def _becomes(
        self, recipient: Recipient, recipients: int, expansion: "Expansion"
    ) -> Reply | tuple[Recipient, ...]:
        """Return the envelopes of an expansion, if there is room for them."""
        addressing = self._addressing
        assert addressing is not None, recipient
        if expansion.reply is not None:
            return expansion.reply
        envelopes = addressing.envelopes(recipient, expansion)
        refused = None
        if recipients:
            # Why not the first? A list with more members than that could never be written to.
            refused = self._admitted(recipients + len(envelopes) - 1)
        return refused or envelopes

    def _admitted(self, recipients: int) -> Reply | None:
        """Say whether one more envelope may come to so many; rules say for whom."""
        return admission.on_recipient(
            self._pressure(),
            recipients=recipients,
            may_relay=True,
            limits=self.limits,
            queue=self._queue_limits,
        )

    def message(self, *, size: int, recipients: int, received: int) -> Reply | None:
        """Say after the dot whether the message can be taken."""
        held = max(0, self.bytes_in_memory - size)
        return admission.on_message(
            self._pressure()._replace(bytes_in_memory=held),
            size=size,
            recipients=recipients,
            received=received,
            limits=self.limits,
            queue=self._queue_limits,
        )

    def reserve(self, size: int) -> bool:
        """Take bytes of the budget of messages that are being received."""
        if self.memory >= MemoryLevel.HARD:
            self._metrics.inc("memory.refused")
            return False
        if self.bytes_in_memory + size > self.limits.max_bytes_in_memory:
            return False
        self.bytes_in_memory += size
        return True

    def release(self, size: int) -> None:
        """Give back what `reserve` took."""
        self.bytes_in_memory -= size
        assert self.bytes_in_memory >= 0, self.bytes_in_memory

    def submit(
        self,
        msgid: MsgId,
        transaction: Transaction,
        recipients: tuple[Recipient, ...],
        body: bytes,
    ) -> "asyncio.Future[Reply | None]":
        """Make a message durable; the future's result is None when it is, or a 4xx."""
        answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        try:
            durable = self._driver.enqueue(msgid, transaction, recipients, body)
        except QueueUnavailableError:
            answer.set_result(admission.NO_STORAGE)
            return answer

        def settled(done: "asyncio.Future[None]") -> None:
            error = QueueUnavailableError("cancelled") if done.cancelled() else done.exception()
            if error is None:
                self._metrics.inc("smtp.message")
                self._metrics.inc("smtp.message.bytes", len(body))
            if answer.done():
                return  # Nobody is there to hear it; the message is in the queue all the same.
            if error is None:
                answer.set_result(None)
            elif isinstance(error, QueueUnavailableError):
                answer.set_result(admission.NO_STORAGE)
            else:
                answer.set_exception(error)

        durable.add_done_callback(settled)
        return answer

    def rejected(self, reply: Reply, *, connection: bool = False) -> None:
        """Count a refused command, message or connection, each once."""
        if reply in _TIMEOUTS:
            self._metrics.inc("smtp.timeout")
            return
        kind = "permanent" if reply.code >= 500 else "temporary"
        if reply in _MEMORY:
            self._metrics.inc("memory.refused")
        self._metrics.inc(f"smtp.refused.{'connection' if connection else kind}")
        if self._tracer.limits and reply.code < 500 and not connection:
            self._tracer.line("limits", f"smtp refused: {reply}")
        if reply[1:] == admission.LOCAL_ERROR[1:]:
            self._metrics.inc("error.internal")


__all__ = ["ServerDoor"]
