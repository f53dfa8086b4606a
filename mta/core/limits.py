"""Every cap and every gap: name, default, unit and where the default comes from.

The names are OpenSMTPD's (smtpd.conf, limit.c, config.c) where it has the limit. Caps count things;
gaps are seconds. A cap of 0 is not "unlimited": there is no unlimited. Each class says in `problems` what can't
work together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

Problem: TypeAlias = tuple[str, object, str]
"""(key, value, what is wrong with it); see `mta.core.settings`."""

_LINE_MIN = 512
"""RFC 5321 4.5.3.1.4: every server takes command lines of so many bytes."""

_PROXY_HEADER_MIN = 232
"""Every receiver takes headers with the longest addresses, those of Unix sockets."""

_TEXT_LINE_MIN = 1000
"""RFC 5321 4.5.3.1.6: every server takes text lines of so many bytes."""


@dataclass(slots=True)
class SmtpLimits:
    """What one client, and all clients together, may do at the door."""

    max_conn: int = 1000
    """Open inbound connections. OpenSMTPD: half of the descriptors; Postfix: 100 processes."""
    max_conn_per_client: int = 500
    """Open inbound connections from one address. Postfix: 50, loopback exempt; here loopback is all there is."""
    max_mails: int = 10_000
    """Messages per inbound connection. OpenSMTPD: 100; ten thousand so that kept connections measure the queue."""
    max_rcpt: int = 1000
    """Recipients per message. OpenSMTPD ``smtp limit max-rcpt``, Postfix ``smtpd_recipient_limit``."""
    max_message_size: int = 35 * 1024 * 1024
    """Bytes of header and body. OpenSMTPD ``smtp max-message-size``."""
    max_line: int = 2048
    """Bytes of a command line; OpenSMTPD's LINE_MAX; RFC 5321 4.5.3.1.4 asks for 512."""
    max_text_line: int = 65_536
    """Bytes of a line of the message. OpenSMTPD: 65,535; RFC 5321 4.5.3.1.6 lets clients use 1,000."""
    max_chunks: int = 10_000
    """BDAT commands per message (RFC 3030). Ours: the largest message in pieces of 3.6 KB."""
    max_errors: int = 20
    """Rejected commands per connection. Postfix ``smtpd_hard_error_limit``."""
    max_junk: int = 100
    """Idle commands (NOOP, RSET, VRFY, EHLO) per connection between messages. Postfix ``smtpd_junk_command_limit``."""
    max_hops: int = 100
    """Received headers. RFC 5321 6.3; OpenSMTPD MAX_HOPS_COUNT."""
    timeout_s: float = 300.0
    """Idle time before an inbound connection is closed. RFC 5321 4.5.3.2.7, OpenSMTPD, Postfix."""
    max_session_s: float = 3600.0
    """Lifetime of an inbound connection, whatever it does; stops a client that says NOOP for ever. Ours."""
    proxy_timeout_s: float = 5.0
    """Longest wait for the PROXY header of a trusted proxy. Postfix ``smtpd_upstream_proxy_timeout``."""
    max_proxy_header: int = 4096
    """Bytes of a PROXY header with its TLVs. Ours; the protocol's own limit is 65,551."""
    max_bytes_in_memory: int = 256 * 1024 * 1024
    """Bytes of all messages that are being received and are not durable yet; over it 452 4.3.1. Ours."""
    tls_handshake_s: float = 30.0
    """Time for TLS to begin, after which the connection is closed. Ours; Postfix ``smtpd_starttls_timeout`` 300 s,
    10 s under stress."""
    max_auth_line: int = 12_288
    """Bytes of a client's answer in AUTH. RFC 4954 4."""
    max_auth_failures: int = 3
    """Logins refused per connection, after which it is closed. Dovecot and sshd do so too, after 3 and 6."""
    max_auth_pending: int = 32
    """Passwords being checked or waiting for that; over it 454 4.7.0. Ours."""
    auth_threads: int = 2
    """Passwords checked at a time, each in a thread with the memory that its hash asks for (19 MiB). Ours."""
    auth_timeout_s: float = 10.0
    """Longest wait for a password to be checked; then 454 4.7.0. Ours."""
    auth_failure_delay_s: float = 1.0
    """A login that is refused hears of it only after this time, seconds. Postfix ``smtpd_error_sleep_time``."""
    min_data_rate: int = 0
    """Bytes per second that a message has to arrive with, else its connection counts as idle; 0 for any. Postfix
    ``smtpd_min_data_rate``, which counts only when ``smtpd_per_request_deadline`` does: under stress."""
    max_lookups: int = 1000
    """Recipients that wait for tables that take their time (SQLite); over it 451 4.3.0. Ours: a client each."""
    lookup_timeout_s: float = 5.0
    """Longest wait of a recipient for such tables, seconds; then 451 4.3.0. Ours; a question ends after 1 s, but
    many may stand in line."""
    descriptor_share: float = 0.75
    """Share of the process's descriptors (RLIMIT_NOFILE) that inbound connections may reach; then 421, and others wait
    in the kernel. OpenSMTPD: half of them; ours leaves 256 of the usual 1,024 for the queue and for delivery."""
    stress: Literal["auto", "yes", "no"] = "auto"
    """Stress mode: by itself, always, or never. Postfix ``smtpd -o stress=yes``."""
    stress_at: float = 0.9
    """Share of ``max_conn`` in use at which stress begins. Postfix: all of them, when some clients wait already."""
    stress_off_at: float = 0.7
    """Share of ``max_conn`` in use at which stress ends. Ours; Postfix: 1,000 s after the last shortage."""
    stress_timeout_s: float = 10.0
    """``timeout_s`` under stress. Postfix ``smtpd_timeout = ${stress?{10}:{300}}s``."""
    stress_max_errors: int = 1
    """Rejected commands: ``max_errors`` under stress. Postfix ``smtpd_hard_error_limit = ${stress?{1}:{20}}``."""
    stress_max_junk: int = 1
    """Idle commands: ``max_junk`` under stress. Postfix ``smtpd_junk_command_limit = ${stress?{1}:{100}}``."""
    stress_min_data_rate: int = 500
    """``min_data_rate`` under stress, bytes per second. Postfix ``smtpd_min_data_rate``."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself or another."""
        yield from _out_of_range(self)
        if self.max_line < _LINE_MIN:
            yield "max_line", self.max_line, f"must be at least {_LINE_MIN} (RFC 5321 4.5.3.1.4)"
        if self.max_proxy_header < _PROXY_HEADER_MIN:
            problem = f"must be at least {_PROXY_HEADER_MIN} (PROXY protocol 2.2)"
            yield "max_proxy_header", self.max_proxy_header, problem
        if self.max_text_line < _TEXT_LINE_MIN:
            problem = f"must be at least {_TEXT_LINE_MIN} (RFC 5321 4.5.3.1.6)"
            yield "max_text_line", self.max_text_line, problem
        if self.max_bytes_in_memory < self.max_message_size:
            problem = f"must not be below max_message_size ({self.max_message_size})"
            yield "max_bytes_in_memory", self.max_bytes_in_memory, problem
        if self.descriptor_share > 1:
            yield "descriptor_share", self.descriptor_share, "must not be above 1"
        if self.stress_at > 1:
            yield "stress_at", self.stress_at, 'must not be above 1; stress = "no" switches it off'
        if self.stress_off_at >= self.stress_at:
            yield (
                "stress_off_at",
                self.stress_off_at,
                f"must be below stress_at ({self.stress_at:g})",
            )


@dataclass(slots=True)
class MtaLimits:
    """What the relaying agent may do. Names and caps: OpenSMTPD limit.c."""

    max_conn_per_host: int = 10
    """Open connections to one address."""
    max_conn_per_route: int = 5
    """Open connections between one source and one address."""
    max_conn_per_source: int = 100
    """Open connections from one local address."""
    max_conn_per_connector: int = 20
    """Open connections of one (source, relay)."""
    max_conn_per_relay: int = 100
    """Open connections of one relay."""
    max_conn_per_domain: int = 100
    """Open connections to one destination domain."""
    max_conn: int = 500
    """Open outbound connections in all. Ours: OpenSMTPD bounds this by descriptors only."""
    conn_delay_host_s: float = 0.0
    """Least gap between two connects to one host."""
    conn_delay_route_s: float = 0.0
    """Least gap between two connects on one route. OpenSMTPD: 5 s, which holds a single
    destination at 16 messages/s on loopback; here the window of the concurrency policy ramps up."""
    conn_delay_source_s: float = 0.0
    """Least gap between two connects from one source."""
    conn_delay_connector_s: float = 0.0
    """Least gap between two connects of one connector."""
    conn_delay_relay_s: float = 0.0
    """Least gap between two connects of one relay. OpenSMTPD: 2 s; see ``conn_delay_route_s``."""
    conn_delay_domain_s: float = 0.0
    """Least gap between two connects to one domain."""
    reconn_delay_route_s: float = 0.0
    """Least gap between a disconnect and the next connect on a route. OpenSMTPD: 3 s."""
    route_delay_base_s: float = 15.0
    """A route that failed rests for base * penalty**2 seconds. OpenSMTPD DELAY_ROUTE_BASE."""
    route_delay_max_s: float = 3600.0
    """Longest rest of a route. OpenSMTPD DELAY_ROUTE_MAX."""
    session_mail_max: int = 100
    """Messages per outbound connection."""
    session_transaction_delay_s: float = 0.0
    """Pause between two transactions of an outbound connection. OpenSMTPD ``session-transaction-delay``."""
    session_keepalive_s: float = 10.0
    """How long an idle outbound connection is kept."""
    session_timeout_s: float = 300.0
    """Longest wait for one reply. OpenSMTPD; RFC 5321 4.5.3.2 has 2 to 10 minutes."""
    connect_timeout_s: float = 30.0
    """Longest wait for TCP. Postfix ``smtp_connect_timeout``."""
    max_failures_per_session: int = 25
    """Consecutive rejected recipients before the connection is given up."""
    max_try_before_disable: int = 10
    """Messages in a row of which a host takes none before its route is disabled. OpenSMTPD MAX_TRYBEFOREDISABLE."""
    task_high_water: int = 50
    """Waiting transactions of a relay at which further envelopes are held."""
    task_low_water: int = 30
    """Waiting transactions at which held envelopes are asked back."""
    task_release: int = 10
    """Held envelopes that are asked back at once."""
    max_rcpt_per_task: int = 100
    """Recipients per transaction. RFC 5321 4.5.3.1.8: any server takes 100."""
    max_deferred: int = 100
    """Envelopes remembered per relay and tried at once when it works again. OpenSMTPD ``mta max-deferred``."""
    max_relays: int = 20_000
    """Destinations known at once, dead ones included. Postfix: qmgr_message_recipient_limit sizes its dead list.
    Over it envelopes go back to pending."""
    max_mx: int = 20
    """Mail exchangers considered per domain. Ours; Postfix tries 5 addresses."""
    max_addresses: int = 20
    """Addresses considered per domain. Ours; Postfix ``smtp_mx_address_limit`` 5."""
    tls_sessions_max: int = 1000
    """TLS sessions kept, to be resumed. Ours; about 5 KiB each. Postfix keeps any number for an hour."""
    sts_policies_max: int = 10_000
    """Domains whose MTA-STS policy, or want of one, is remembered. Ours."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself or another."""
        yield from _out_of_range(self)
        if self.task_low_water >= self.task_high_water:
            problem = f"must be below task_high_water ({self.task_high_water})"
            yield "task_low_water", self.task_low_water, problem
        if self.route_delay_max_s < self.route_delay_base_s:
            problem = f"must not be below route_delay_base_s ({self.route_delay_base_s:g})"
            yield "route_delay_max_s", self.route_delay_max_s, problem


@dataclass(slots=True)
class MdaLimits:
    """What local delivery may do. Names and numbers: OpenSMTPD limit.c, and mda.c as it was until 2013."""

    max_session: int = 50
    """Deliveries under way. MDA_MAXSESS since October 2012."""
    max_session_per_user: int = 7
    """Deliveries under way for one user. MDA_MAXSESSUSER."""
    policy: Literal["tempfail", "raised", "hold"] = "hold"
    """What becomes of mail that has to wait. ``tempfail``: the agent takes few envelopes and fails the others
    for now (October 2012); ``raised``: it takes many (January 2013); ``hold``: it takes next to none, and the
    others are held where they cost least (since November 2013)."""
    task_high_water: int = 50
    """hold: waiting envelopes of a user at which further ones are held."""
    task_low_water: int = 30
    """hold: waiting envelopes of a user at which held ones are asked back."""
    task_release: int = 10
    """hold: held envelopes that are asked back at once."""
    tempfail_max_pending: int = 5000
    """tempfail: envelopes that the agent has. MDA_MAXEVP of October 2012 (commit 55882885)."""
    tempfail_max_pending_per_user: int = 500
    """tempfail: envelopes of one user that it has. MDA_MAXEVPUSER of October 2012."""
    raised_max_pending: int = 200_000
    """raised: envelopes that the agent has. MDA_MAXEVP of January 2013 (commit d23d33f8)."""
    raised_max_pending_per_user: int = 15_000
    """raised: envelopes of one user that it has. MDA_MAXEVPUSER of January 2013."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself or another."""
        yield from _out_of_range(self)
        if self.task_low_water >= self.task_high_water:
            problem = f"must be below task_high_water ({self.task_high_water})"
            yield "task_low_water", self.task_low_water, problem

    def max_pending(self) -> tuple[int, int] | None:
        """Return how many envelopes the agent takes, in all and of one user; None under ``hold``."""
        if self.policy == "hold":
            return None
        if self.policy == "raised":
            return self.raised_max_pending, self.raised_max_pending_per_user
        return self.tempfail_max_pending, self.tempfail_max_pending_per_user


@dataclass(slots=True)
class SchedulerLimits:
    """What the scheduler may hand out. OpenSMTPD config.c, scheduler_ramqueue.c."""

    max_inflight: int = 5000
    """Envelopes in flight. Above it none is handed out; what a relay or user takes back from its hold queue may pass it,
    or a busy one would starve its own oldest mail."""
    max_schedule: int = 10
    """Envelopes handed out per batch, so that a large due backlog does not stall the event loop."""
    max_held: int = 1000
    """Envelopes held per relay. HOLDQ_MAXSIZE; overflow goes back to pending."""
    envelope_ttl_s: float = 4 * 86_400.0
    """How long an envelope may stay. OpenSMTPD ``queue ttl``; RFC 5321 4.5.4.1 has 4 to 5 days."""
    bounce_ttl_s: float = 7 * 86_400.0
    """How long a bounce may stay. OpenSMTPD, bounce.c."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself."""
        yield from _out_of_range(self)


@dataclass(slots=True)
class QueueLimits:
    """What the durable queue may take."""

    max_envelopes: int = 10_000_000
    """Envelopes in the queue; over it 452 4.3.1. Ours."""
    max_bytes: int = 64 * 1024 * 1024 * 1024
    """Bytes of messages in the queue; over it 452 4.3.1. Ours."""
    min_free_bytes: int = 64 * 1024 * 1024
    """Free space that must remain on the queue's file system. Exim ``check_spool_space`` 10 MiB."""
    min_free_ratio: float = 0.0
    """The same as a share of the file system. OpenSMTPD: 0.05, on OpenBSD only."""
    commit_batch_max: int = 256
    """Submissions and removals per commit. Ours."""
    max_waiting: int = 4096
    """Submissions that wait for a commit; over it 452 4.3.1. Ours."""
    body_file_bytes: int = 64 * 1024
    """Messages from this size on go to a file of their own, not into the database. Ours; SQLite's own
    measurements ("Internal versus external BLOBs") cross at 100 kB."""
    cache_envelopes: int = 1024
    """Envelopes kept ready for their first attempt. OpenSMTPD's envelope cache (queue.c)."""
    cache_bytes: int = 64 * 1024 * 1024
    """Bytes of messages kept ready for their first attempt. Ours."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself."""
        yield from _out_of_range(self)
        if not self.min_free_ratio < 1:
            yield "min_free_ratio", self.min_free_ratio, "must be below 1"


@dataclass(slots=True)
class MemoryLimits:
    """How much memory the server may use before it takes in less; see `mta.core.pressure`."""

    limit_bytes: int = 0
    """Bytes that the process may have resident; 0: the nearest of control group, RLIMIT_AS, RLIMIT_DATA and RAM.
    KumoMTA ``kumo.set_memory_hard_limit``."""
    low_ratio: float = 0.6
    """Share of the limit from which on nothing is kept that can be read again. KumoMTA: 80 % of soft."""
    soft_ratio: float = 0.75
    """Share of the limit from which on MAIL gets 452 4.3.1. KumoMTA: 75 %, where it sheds connections."""
    hard_ratio: float = 0.9
    """Share of the limit from which on connections get 421 4.3.2, and messages that are being received are given
    up. Ours: between it and the limit is room for what the others take until the next sample."""
    hysteresis: float = 0.05
    """A level ends by this share of the limit below where it begins. Ours."""
    sample_s: float = 1.0
    """Seconds between two measurements; 0 measures nothing and refuses nothing. KumoMTA: 3 s."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself or another."""
        yield from _out_of_range(self)
        if self.soft_ratio < self.low_ratio:
            problem = f"must not be below low_ratio ({self.low_ratio:g})"
            yield "soft_ratio", self.soft_ratio, problem
        if self.hard_ratio < self.soft_ratio:
            problem = f"must not be below soft_ratio ({self.soft_ratio:g})"
            yield "hard_ratio", self.hard_ratio, problem
        if self.hysteresis >= self.low_ratio:
            problem = f"must be below low_ratio ({self.low_ratio:g})"
            yield "hysteresis", self.hysteresis, problem


@dataclass(slots=True)
class Limits:
    """All limits of a server."""

    smtp: SmtpLimits = field(default_factory=SmtpLimits)
    mta: MtaLimits = field(default_factory=MtaLimits)
    mda: MdaLimits = field(default_factory=MdaLimits)
    scheduler: SchedulerLimits = field(default_factory=SchedulerLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    memory: MemoryLimits = field(default_factory=MemoryLimits)

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts one of another part."""
        if self.queue.max_bytes < self.smtp.max_message_size:
            problem = (
                f"must not be below limits.smtp.max_message_size ({self.smtp.max_message_size})"
            )
            yield "queue.max_bytes", self.queue.max_bytes, problem
        pending = self.mda.max_pending()
        if pending is not None and pending[0] > self.scheduler.max_inflight:
            # The scheduler would stop before the agent does, for relayed mail too.
            problem = (
                f"must not be above limits.scheduler.max_inflight ({self.scheduler.max_inflight})"
            )
            yield f"mda.{self.mda.policy}_max_pending", pending[0], problem


_MAY_BE_ZERO = frozenset(
    {
        "conn_delay_connector_s",
        "conn_delay_domain_s",
        "conn_delay_host_s",
        "conn_delay_relay_s",
        "conn_delay_route_s",
        "conn_delay_source_s",
        "reconn_delay_route_s",
        "session_keepalive_s",
        "session_transaction_delay_s",
        "task_low_water",
        "max_deferred",
        "min_free_bytes",
        "min_free_ratio",
        "min_data_rate",
        "stress_off_at",
        "limit_bytes",
        "hysteresis",
        "sample_s",
        "body_file_bytes",
        "cache_envelopes",
        "cache_bytes",
    }
)
"""Gaps, reserves and caches: none is a sensible amount. All others would stop mail at 0."""


def _out_of_range(
    limits: SmtpLimits | MtaLimits | MdaLimits | SchedulerLimits | QueueLimits | MemoryLimits,
) -> Iterator[Problem]:
    for field_ in fields(limits):
        value = getattr(limits, field_.name)
        if isinstance(value, str):
            continue  # a choice
        # Not `value < 0`: that would let NaN pass.
        if field_.name in _MAY_BE_ZERO:
            if not value >= 0:
                yield field_.name, value, "must not be negative"
        elif not value > 0:
            yield field_.name, value, "must be above 0; a cap of 0 is not unlimited"
