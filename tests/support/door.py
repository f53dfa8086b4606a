"""A server behind the door that accepts everything the limits allow, and fails when it is told to."""

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from mta.core import admission
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, SessionId
from mta.core.limits import QueueLimits, SmtpLimits
from mta.core.reply import Reply
from mta.inbound_door import Verdict

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable


class Submitted(NamedTuple):
    msgid: MsgId
    transaction: Transaction
    recipients: tuple[Recipient, ...]
    body: bytes

    @property
    def text(self) -> bytes:
        """What the client sent: the body without our Received field."""
        return self.body.split(b"\r\n", 3)[3]


class FakeDoor:
    """Implements `mta.inbound_door.Door` in memory.

    Commits succeed at once, unless `hold` is set: then they wait in `commits` for the test to decide.
    `fault`, if set, is called with the name of each method and may raise.
    """

    def __init__(self, **limits: float) -> None:
        self.hostname = "mx.test"
        self.limits = SmtpLimits(**limits)  # type: ignore[arg-type] # ints among them
        self.commit_timeout_s = self.limits.timeout_s
        self.queue_limits = QueueLimits()
        self.tracing = False
        self.reads_ahead = True
        self.may_relay = True
        self.trusted: set[str] = set()
        """Clients that may say XCLIENT."""
        self.hold = False
        self.draining = False
        self.fault: Callable[[str], None] | None = None
        self.accepted: list[Submitted] = []
        self.commits: list[tuple[Submitted, asyncio.Future[Reply | None]]] = []
        self.rejections: list[Reply] = []
        self.lines: list[str] = []
        self.traced: list[str] = []
        self.connections: dict[str, int] = {}
        self.context: ssl.SSLContext | None = None
        self.encrypted = {False: 0, True: 0}
        """Connections with TLS; True: from the first byte on."""
        self.handshakes_failed = 0
        self.users: dict[str, str] = {}
        self.hold_logins = False
        self.logins: list[tuple[str, str, asyncio.Future[Verdict]]] = []
        self.reserved = 0
        self.reserved_peak = 0
        self.all_gone = asyncio.Event()
        """Set when the last connection ended."""
        self.submitted = asyncio.Event()
        """Set when a commit waits."""
        self._sessions = 0
        self._msgids = 0

    def _point(self, name: str) -> None:
        if self.fault is not None:
            self.fault(name)

    def pressure(self) -> admission.Pressure:
        return admission.Pressure(
            connections=sum(self.connections.values()),
            bytes_in_memory=self.reserved,
            draining=self.draining,
        )

    def next_session(self) -> SessionId:
        self._point("next_session")
        self._sessions += 1
        return SessionId(self._sessions)

    def next_msgid(self) -> MsgId:
        self._point("next_msgid")
        self._msgids += 1
        return MsgId(self._msgids)

    def now(self) -> float:
        return 1_700_000_000.0

    def connect(self, peer: str) -> Reply | None:
        self._point("connect")
        count = self.connections.get(peer, 0)
        reply = admission.on_connect(self.pressure(), from_client=count, limits=self.limits)
        if reply is None:
            self.connections[peer] = count + 1
            self.all_gone.clear()
        return reply

    def disconnect(self, peer: str) -> None:
        self.connections[peer] -= 1
        assert self.connections[peer] >= 0, "disconnected twice"
        if not any(self.connections.values()):
            self.all_gone.set()

    def move(self, peer: str, other: str) -> Reply | None:
        self._point("move")
        if other != peer:
            if self.connections.get(other, 0) >= self.limits.max_conn_per_client:
                return admission.TOO_MANY_FROM_CLIENT
            self.connections[other] = self.connections.get(other, 0) + 1
            self.connections[peer] -= 1
        return None

    def may_say_xclient(self, peer: str) -> bool:
        self._point("may_say_xclient")
        return peer in self.trusted

    def begin(self, declared_size: int, messages: int) -> Reply | None:
        self._point("begin")
        return admission.on_mail(
            self.pressure(),
            declared_size=declared_size,
            messages=messages,
            limits=self.limits,
            queue=self.queue_limits,
        )

    def recipient(
        self, peer: str, recipient: Recipient, recipients: int, *, user: str = ""
    ) -> Reply | None:
        self._point("recipient")
        return admission.on_recipient(
            self.pressure(),
            recipients=recipients,
            may_relay=self.may_relay or bool(user) or recipient.domain == self.hostname,
            limits=self.limits,
            queue=self.queue_limits,
        )

    def message(self, *, size: int, recipients: int, received: int) -> Reply | None:
        self._point("message")
        return admission.on_message(
            self.pressure()._replace(bytes_in_memory=0),
            size=size,
            recipients=recipients,
            received=received,
            limits=self.limits,
            queue=self.queue_limits,
        )

    def tls_context(self) -> "ssl.SSLContext":
        self._point("tls_context")
        assert self.context is not None
        return self.context

    def tls_began(self, *, implicit: bool) -> None:
        self.encrypted[implicit] += 1

    def tls_ended(self, *, implicit: bool) -> None:
        self.encrypted[implicit] -= 1
        assert self.encrypted[implicit] >= 0, "ended twice"

    def tls_failed(self) -> None:
        self.handshakes_failed += 1

    def authenticate(self, user: str, password: str) -> "asyncio.Future[Verdict]":
        self._point("authenticate")
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.logins.append((user, password, future))
        if not self.hold_logins:
            right = self.users.get(user) == password
            future.set_result(Verdict.OK if right else Verdict.PERMFAIL)
        return future

    def reserve(self, size: int) -> bool:
        self._point("reserve")
        if self.reserved + size > self.limits.max_bytes_in_memory:
            return False
        self.reserved += size
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        return True

    def release(self, size: int) -> None:
        self.reserved -= size
        assert self.reserved >= 0, "released twice"

    def submit(
        self,
        msgid: MsgId,
        transaction: Transaction,
        recipients: tuple[Recipient, ...],
        body: bytes,
    ) -> asyncio.Future[Reply | None]:
        self._point("submit")
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        message = Submitted(msgid, transaction, recipients, body)
        if self.hold:
            self.commits.append((message, future))
            self.submitted.set()
        else:
            self.accepted.append(message)
            future.set_result(None)
        return future

    def commit(self, result: Reply | BaseException | None = None) -> None:
        """Decide the oldest commit that waits."""
        message, future = self.commits.pop(0)
        if isinstance(result, BaseException):
            future.set_exception(result)
            return
        if result is None:
            self.accepted.append(message)
        future.set_result(result)

    def rejected(self, reply: Reply, *, connection: bool = False) -> None:
        self.rejections.append(reply)

    def log(self, line: str) -> None:
        self.lines.append(line)

    def trace(self, subsystem: str, line: str) -> None:
        assert subsystem == "smtp", subsystem
        self.traced.append(line)
