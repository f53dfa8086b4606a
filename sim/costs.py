"""What things cost: the only part of the model that is not shared with the server.

Decisions come from `mta.core`, the behaviour of remote hosts from `sim.remote`; times and bytes come from
here. `sim.calibrate` measures them in a run. The defaults are those of the server on one core of the
machine on which it was written, and good for questions of "about how much" only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mta.core.settings import ConfigError, build
from sim.layout import EnvelopeBytes
from sim.wholefile import whole

MIB = 1024 * 1024


@dataclass(slots=True)
class MemoryCosts:
    """Resident memory of a server with one representation: ``base + envelope * queued + ...``."""

    base_bytes: float = 48.0 * MIB
    """Of a warm server with an empty queue."""
    envelope_bytes: float = 400.0
    """For each queued envelope, everything that grows with it. Defaults are the slopes of runs of ``backlog``, four recipients a message."""
    warm_bytes: float = 2.0 * MIB
    """What the first messages make it grow by, once and for all: caches of the database, buffers, arenas."""
    body_share: float = 0.0
    """Part of the queued messages' bytes that stays in memory; 1 for ``whole``. A calibration has it in
    ``envelope_bytes`` and says 0, because a run's bodies and envelopes grow in step."""
    in_flight_bytes: float = 0.0
    """For each relayed envelope in flight, beyond ``envelope_bytes``: what is there only while the agent has it."""
    local: EnvelopeBytes = field(
        default_factory=lambda: EnvelopeBytes(
            pending=277.0, scheduled=586.0, held=586.0, in_flight=692.0
        )
    )
    """For each envelope of a local delivery, by its state; defaults are what an engine was seen to allocate
    (tests/sim/test_layout.py holds them to it): the agent's part, and the record in its queue while it waits there."""
    due_share: float = 1.0
    """What a relayed envelope takes that is scheduled or held, relative to one that waits for its next try (and so is ``envelope_bytes``). A
    run that is filled can't tell them apart, since both grow in step: defaults are the ratio in the server's own count, gauge
    ``memory.envelopes``, fitted to 2,000 samples: scheduled envelopes took, ``full``, 434 B where waiting ones took 524, and ``slim`` 345
    where they took 255. By that count held ones are like waiting ones; here they are like scheduled ones, which fits RSS better. ``whole``
    was not measured and has the ratio of ``full``."""
    session_bytes: float = 4200.0
    """Each open inbound session, in clear and idle; measured with 1,000 of them (tests/benchmarks/test_memory_per_session.py)."""
    session_tls_bytes: float = 17_200.0
    """Each of them in TLS, beyond that."""
    connection_bytes: float = 9200.0
    """Each open outbound connection with its route, its relay and the envelope under way; one measurement with 900 of them, each to a host of
    its own."""
    warm_sessions: float = 0.0
    """Sessions whose memory ``base_bytes`` has: the bench opens them all while it warms a server up, and what they took stays."""
    warm_connections: float = 0.0
    """The same of outbound connections."""
    slack_bytes: float = 0.0
    """What a server has free when the load begins, beyond ``base_bytes``: what its warm-up left. The first envelopes take nothing else."""
    kept_share: float = 0.9
    """Part of the growth that is not given back when the queue drains: arenas with holes."""
    base_stderr: float = 0.0
    """Standard error of ``base_bytes``; 0 if it was not measured."""
    envelope_stderr: float = 0.0
    """Standard error of ``envelope_bytes``; 0 if it was not measured."""
    in_flight_stderr: float = 0.0
    """Standard error of ``in_flight_bytes``; 0 if it was not measured."""
    samples: int = 0
    """Samples that were fitted; 0 for defaults."""

    def problems(self) -> Any:
        """Yield what makes no sense; see `mta.core.settings`."""
        yield from _negative(self)
        if not self.kept_share <= 1:
            yield "kept_share", self.kept_share, "must be from 0 to 1"


@dataclass(slots=True)
class Provenance:
    """Where costs come from, so that nobody has to believe them."""

    run: str = ""
    """The run's directory; the first one of several."""
    runs: list[str] = field(default_factory=list)
    """All of them."""
    files: dict[str, str] = field(default_factory=dict)
    """Name of each training file -> sha256. Names are relative to the run; of several runs, they begin with its name."""
    host: dict[str, object] = field(default_factory=dict)
    """The machine on which the runs were made, as far as they say."""
    versions: dict[str, object] = field(default_factory=dict)
    """Of the programs that made the runs, as far as they say."""
    samples: int = 0
    transactions: int = 0
    commits: int = 0
    cpu_explained: float = 0.0
    """Part of the variance of CPU time per sample that the fit explains (R squared)."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured and has its default."""


@dataclass(slots=True)
class Costs:
    """Seconds of the event loop unless the name says something else. Each is service, never waiting."""

    # The door.
    session_s: float = 250e-6
    """An inbound connection: accept, greeting, EHLO, QUIT."""
    message_s: float = 350e-6
    """An inbound message: MAIL, DATA, Received, hand-over to the queue, the core's part."""
    recipient_s: float = 60e-6
    """Each RCPT of it, with its envelope in the core and its row in the database."""
    byte_s: float = 3e-9
    """Each byte of it."""
    command_s: float = 40e-6
    """A command that is no part of a message: NOOP, RSET. An inbound connection is four of them."""
    tls_s: float = 650e-6
    """TLS of an inbound connection: STARTTLS, its handshake in the loop, EHLO once more. Measured with a key on P-256; 2048
    bits of RSA take up to 0.8 ms more. A resumed session takes as long: TLS 1.3 exchanges new keys in it, too."""
    # The relaying agent.
    connect_s: float = 250e-6
    """An outbound connection: connect, EHLO, QUIT."""
    transaction_s: float = 250e-6
    """An outbound transaction: envelope, message, replies."""
    delivery_s: float = 60e-6
    """Each recipient of it: RCPT, its reply, its log line, its removal."""
    sent_byte_s: float = 1e-9
    """Each byte sent."""
    deferral_s: float = 60e-6
    """Each temporary failure: the core's part, the log line, the note on disk."""
    tls_connect_s: float = 750e-6
    """TLS of an outbound connection, new or resumed: STARTTLS, its handshake, EHLO once more."""
    lookup_s: float = 1e-3
    """A look-up of mail exchangers that is not in the cache."""
    local_rcpt_s: float = 100e-6
    """Each RCPT that rules and expansion are asked about, beyond ``recipient_s``."""
    local_s: float = 250e-6
    """A local delivery: its envelope and message, its task, its account; a mailbox's file or a connection's dialogue."""
    fork_s: float = 1.5e-3
    """A command: fork, exec, its pipes and its end, beyond ``local_s``. The whole loop waits for it."""
    local_done_s: float = 120e-6
    """The end of a local delivery: the core's part, its log line, its removal or deferral."""
    idle_share: float = 0.0
    """Part of the loop's time that goes to whoever watches it (metrics, gauges)."""
    restore_s: float = 15e-6
    """Each envelope that a server reads at its start: its row, and the core's part."""
    # Waiting for others, during which the loop is free.
    start_s: float = 0.5
    """From the start of the server's process until its door is open; the queue is read after that."""
    client_s: float = 1.5e-3
    """A client's own time for one message and its connection: its CPU and the network's."""
    client_recipient_s: float = 0.2e-3
    """The same for each recipient: one round trip."""
    client_tls_s: float = 1.5e-3
    """A client's own time for TLS: its handshake, and three round trips."""
    client_close_s: float = 0.5e-3
    """From the reply to the final dot until the client has closed and can open another."""
    network_s: float = 0.5e-3
    """A transaction's time in the network and in the remote host's process, beside its scripted delays."""
    connect_network_s: float = 1.0e-3
    """The same for a connection until EHLO is answered."""
    tls_network_s: float = 1.5e-3
    """The same for TLS: three round trips, and the host's part of the handshake."""
    lookup_network_s: float = 2.0e-3
    """The same for a look-up."""
    command_wait_s: float = 2.0e-3
    """A command's start and end in other processes, beside the time that it takes of itself."""
    mailbox_wait_s: float = 2.0e-3
    """A Maildir's or an mbox's files in a thread, to the end of the last fsync."""
    # The writer.
    commit_s: float = 1.0e-3
    """An empty commit, to the end of its fsync."""
    commit_message_s: float = 40e-6
    """Each message in it."""
    commit_lagging_s: float = 5e-6
    """Each removal or deferral in it."""
    memory: dict[str, MemoryCosts] = field(
        default_factory=lambda: {
            "whole": MemoryCosts(
                envelope_bytes=1200.0,
                body_share=1.0,
                due_share=0.83,
                local=EnvelopeBytes(865.0, 816.0, 816.0, 922.0),
            ),
            "full": MemoryCosts(
                envelope_bytes=670.0,
                due_share=0.83,
                local=EnvelopeBytes(857.0, 808.0, 808.0, 914.0),
            ),
            "slim": MemoryCosts(envelope_bytes=400.0, due_share=1.35),
            "packed": MemoryCosts(
                envelope_bytes=60.0, local=EnvelopeBytes(42.0, 42.0, 42.0, 175.0)
            ),
            "fixed": MemoryCosts(
                envelope_bytes=400.0,
                in_flight_bytes=8600.0,
                local=EnvelopeBytes(290.0, 290.0, 290.0, 8985.0),
            ),
        }
    )
    """By representation."""
    stderr: dict[str, float] = field(default_factory=dict)
    """Standard error of each cost that was regressed, in its unit; those that are not here were not."""
    provenance: Provenance = field(default_factory=Provenance)

    def problems(self) -> Any:
        """Yield what makes no sense; see `mta.core.settings`."""
        yield from _negative(self)
        if not self.idle_share < 1:
            yield "idle_share", self.idle_share, "must be below 1"

    def delivery_cpu_s(self, delivery: str) -> float:
        """Return the loop's time for the start of a local delivery: a command, or anything else."""
        return self.local_s + (self.fork_s if delivery == "command" else 0.0)

    def delivery_wait_s(self, delivery: str) -> float:
        """Return how long a local delivery takes that takes no time of itself."""
        waits = {"command": self.command_wait_s, "lmtp": self.network_s}
        return waits.get(delivery, self.mailbox_wait_s)

    def memory_of(self, representation: str) -> MemoryCosts:
        """Return the memory costs of a representation; those of ``slim`` if it was not measured."""
        return self.memory.get(representation) or self.memory.get("slim") or MemoryCosts()


def _negative(costs: object) -> Any:
    for name, value in asdict(costs).items():  # type: ignore[call-overload]  # both callers are dataclasses
        if isinstance(value, float) and not value >= 0:
            yield name, value, "must not be negative"


def save(costs: Costs, path: Path) -> None:
    """Write costs as JSON."""
    with whole(path) as new:
        new.write_text(json.dumps(asdict(costs), indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> Costs:
    """Read what `save` wrote.

    Raises:
        ConfigError: the file can't be read, is not JSON, or has an unknown key or a wrong value.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(str(path), problem=f"is not JSON: {error}") from None
    return from_mapping(data, source=str(path))


def from_mapping(data: Mapping[str, Any], *, source: str) -> Costs:
    """Build costs from plain tables.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    return build(Costs, data, source=source)


def sha256_of(path: Path) -> str:
    """Return the digest of a file, 64 hexadecimal digits.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
