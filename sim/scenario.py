"""What an experiment is: a load, a small Internet, a server's settings. Data only.

The bench, the load generator, the scripted world and the model read the same scenario, so that all
of them mean the same experiment. Nothing here draws, waits or connects. Files are TOML; those that
ship are in ``sim/scenarios`` and are known by name.
"""

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from mta.core.settings import ConfigError, build
from sim.checks import Problem, domain_problems, in_range
from sim.clients import CLIENT_GROUPS_MAX, ClientGroup
from sim.conditions import ConditionError
from sim.conditions import parse as parse_condition
from sim.groups import GROUPS_MAX, LocalGroup
from sim.profiles import Change, Profile
from sim.profiles import problems as profile_problems
from sim.shapes import Shape
from sim.timeline import EVENTS_MAX, Event

SIZE_MIN: Final = 512
"""Bytes of the smallest message: the headers that identify it must fit (`sim.workload`)."""

SIZE_MAX: Final = 1024 * 1024 * 1024
"""Bytes of the largest message; keeps a slip of the pen from filling memory."""

MESSAGES_MAX: Final = 100_000_000
"""Messages of a scenario; a schedule takes about 60 bytes each."""

RECIPIENTS_MAX: Final = 100_000
"""Recipients of a message: far more than any server takes, to see that it does not."""

VALUES_MAX: Final = 50
"""Values of a key in a sweep; each is a run."""

DESTINATIONS_MAX: Final = 200
"""Destination i has the address block 127.0.(10 + i).0/24."""

HOSTS_MAX: Final = 254
"""Host j of a destination has the last octet 1 + j."""

SOURCES_MAX: Final = 250
"""Source addresses of the load: of 127.0.0.0/24, where no host of a destination is."""

MX_PREFERENCE: Final = 10
"""All hosts of a destination are equally preferred, so that they share its mail."""


@dataclass(slots=True)
class Sizes:
    """How large messages are. Results are rounded and clamped to ``min``..``max``."""

    law: Literal["fixed", "histogram", "lognormal", "bounded-pareto"] = "histogram"
    """``histogram`` is freebsd-net 2002, median 4.2 KiB, mean 53 kB; see `sim.distributions`."""
    bytes: int = 4096
    """Size of all messages, for ``fixed``."""
    median: float = 4096.0
    """Bytes, for ``lognormal``."""
    sigma: float = 1.0
    """Standard deviation of the natural logarithm, for ``lognormal``."""
    alpha: float = 0.6
    """Tail index, for ``bounded-pareto``; 0.6 fits freebsd-net from 2 KiB to 1 MiB."""
    min: int = SIZE_MIN
    """Smallest size in bytes; the lower bound of ``bounded-pareto``."""
    max: int = 2 * 1024 * 1024
    """Largest size in bytes; the upper bound of ``bounded-pareto``."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("bytes", self.bytes, SIZE_MIN, SIZE_MAX),
            ("min", self.min, SIZE_MIN, SIZE_MAX),
            ("max", self.max, SIZE_MIN, SIZE_MAX),
            ("median", self.median, 1, SIZE_MAX),
            ("sigma", self.sigma, 0, 10),
            ("alpha", self.alpha, 0.01, 100),
        )
        if self.min >= self.max:
            yield "max", self.max, f"must be above min, which is {self.min}"


@dataclass(slots=True)
class Recipients:
    """How many recipients a message has, and who they are."""

    law: Literal["fixed", "zipf"] = "zipf"
    count: int = 1
    """Recipients of every message, for ``fixed``."""
    s: float = 2.6
    """Exponent of ``zipf``: P(k) is proportional to k**-s. 2.6 up to 100 has the mean 1.67 that
    gimeno.co.uk measured (1.66 over 27 weeks and 10 million mails)."""
    max: int = 100
    """Most recipients of a message, for ``zipf``."""
    mailboxes: int = 100_000
    """Different mailboxes per domain; a triplet of greylisting comes again sooner if there are few."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("count", self.count, 1, RECIPIENTS_MAX),
            ("s", self.s, 0, 100),
            ("max", self.max, 1, RECIPIENTS_MAX),
            ("mailboxes", self.mailboxes, 1, 1_000_000_000),
        )
        most = self.count if self.law == "fixed" else self.max
        if most > self.mailboxes:
            yield (
                "mailboxes",
                self.mailboxes,
                f"must be {most} or more: a message's recipients differ",
            )


@dataclass(slots=True)
class Load:
    """What is sent, when, and over how many connections."""

    messages: int = 1000
    """Messages to the outside; 0 if there are only local ones."""
    scale: float = 1.0
    """Shortens or lengthens the experiment at the same rates: times ``messages`` here, and times messages and
    window of each local group."""
    rate: float = 100.0
    """Messages per second, whatever the server does (open loop)."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """``constant`` spaces messages evenly."""
    sessions: int = 20
    """Connections at a time at most."""
    loop: Literal["open", "closed"] = "open"
    """``open``: each message has its instant. ``closed``: ``users`` think, send, wait for the answer, and think again, so that a
    slow server gets less to do; ``rate`` has no meaning then."""
    users: int = 20
    """Who sends in a closed loop, each over a connection of its own; ``sessions`` has no meaning then."""
    think_s: float = 0.1
    """Mean time between an answer and the user's next message, in a closed loop. It is exponential if ``arrivals`` are
    ``poisson``, else always the same."""
    tries: int = 3
    """Attempts of a client that hears 421, a second apart. The load generator has an option of its own, --tries."""
    lag_max_s: float = 0.05
    """A run is not valid if one of a hundred messages left later than this because of the load generator itself: it
    did not offer the load that the run is about. The load generator has an option of its own, --lag-max."""
    keep: bool = False
    """True sends message after message over kept connections; False makes one for each message."""
    warm_up_s: float = 0.0
    """Seconds at the start of the load that its statistics leave out: percentiles, histograms and Locust's rows. Failures,
    outcomes, the record and the ledger leave out nothing. Fill-and-drain experiments have none."""
    senders: int = 1000
    """Different senders."""
    sender_domain: str = ""
    """Where bounces go; empty for the domain of the first destination."""
    pipelining: bool = True
    """Commands go in groups where the server offers PIPELINING (RFC 2920)."""
    tls: float = 0.0
    """Part of the connections that say STARTTLS; which, is spread evenly. The model sends in clear."""
    auth: float = 0.0
    """Part of the connections that log in with AUTH PLAIN; where that is offered only in TLS, they say STARTTLS first."""
    user: str = "load"
    """Who logs in."""
    password: str = "load"  # noqa: S105  # of an experiment on the loopback
    """With what."""
    bdat: float = 0.0
    """Part of the messages that go by BDAT where the server offers CHUNKING (RFC 3030)."""
    sources: int = 1
    """Addresses of 127.0.0.0/24 that connections come from in turn, from 127.0.0.1 on. One has some 28,000 ports, and
    each of them rests for a minute after a connection."""
    sizes: Sizes = field(default_factory=Sizes)
    recipients: Recipients = field(default_factory=Recipients)
    shape: Shape = field(default_factory=Shape)
    """How the rate changes; the local groups have windows of their own. In a closed loop it says how many of the users
    take part, at an even pace from start to ``messages / rate`` seconds later."""
    beside: list[ClientGroup] = field(default_factory=list)
    """Slow and misbehaving clients at the same time."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("messages", self.messages, 0, MESSAGES_MAX),
            ("scale", self.scale, 0.0001, 1000),
            ("rate", self.rate, 0.001, 1_000_000),
            ("sessions", self.sessions, 1, 10_000),
            ("users", self.users, 1, 10_000),
            ("think_s", self.think_s, 0, 1_000_000),
            ("tries", self.tries, 1, 1000),
            ("lag_max_s", self.lag_max_s, 0, 3600),
            ("warm_up_s", self.warm_up_s, 0, 1_000_000),
            ("senders", self.senders, 1, 1_000_000),
            ("tls", self.tls, 0, 1),
            ("auth", self.auth, 0, 1),
            ("bdat", self.bdat, 0, 1),
            ("sources", self.sources, 1, SOURCES_MAX),
        )
        if self.sender_domain:
            yield from domain_problems("sender_domain", self.sender_domain)
        for key, value in (("user", self.user), ("password", self.password)):
            if not value or "\0" in value:
                yield key, value, "must be some characters, none of them NUL"
        if len(self.beside) > CLIENT_GROUPS_MAX:
            problem = f"must be {CLIENT_GROUPS_MAX} tables at most"
            yield "beside", len(self.beside), problem
        kinds = [group.kind for group in self.beside]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                yield f"beside.{i}.kind", kind, "has a table already"

    @property
    def clients(self) -> int:
        """Connections at a time at most."""
        return self.users if self.loop == "closed" else self.sessions

    @property
    def count(self) -> int:
        """Messages to the outside at this scale; one at least, if there are any."""
        return max(1, round(self.messages * self.scale)) if self.messages else 0


@dataclass(slots=True)
class Destination:
    """Domains that share a group of hosts, and how those behave."""

    name: str
    domain: str
    """Under ``.test`` or ``.example``."""
    domains: int = 1
    """1: ``domain`` itself. More: ``d1.domain`` and so on, all with the same MX hosts."""
    skew: float = 0.0
    """Popularity of the domains: the k-th has a share proportional to k**-skew; 0 for all alike."""
    share: float = 1.0
    """Part of the recipients, as a weight among all destinations."""
    hosts: int = 1
    """MX hosts, all with the same preference."""
    mx: int = 0
    """Hosts of each domain: the k-th has so many of them, from the one after the last of the domain before; 0 for all."""
    profile: str = ""
    """What kind of hosts they are, by name; see `sim.profiles`. ``testbed profiles`` lists those that ship."""
    pace: float = 1.0
    """Times of profiles are so many times as short and their rates as high, for experiments in compressed time."""
    behaviours: list[dict[str, Any]] = field(default_factory=list)
    """Each a ``kind`` with its parameters, for `sim.remote`, behind the profile's; none of both for a host that
    accepts at once."""
    changes: list[Change] = field(default_factory=list)
    """What they are like from which instants on."""
    tls: Literal[
        "none", "offered", "required", "broken", "expired", "wrong-name", "self-signed"
    ] = "none"
    """How the hosts do STARTTLS; see `testbed.world.tlssession`. The model sends in clear."""
    dane: Literal["none", "valid", "wrong"] = "none"
    """Whether the hosts have TLSA records, and whether those mean their keys. The world's answers about these
    names are said to be validated then."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        if not self.name:
            yield "name", self.name, "must not be empty"
        yield from domain_problems("domain", self.domain)
        yield from in_range(
            ("domains", self.domains, 1, 1_000_000),
            ("skew", self.skew, 0, 10),
            ("share", self.share, 0, 1_000_000),
            ("hosts", self.hosts, 1, HOSTS_MAX),
            ("mx", self.mx, 0, self.hosts),
            ("pace", self.pace, 0.001, 1_000_000),
        )
        if self.dane != "none" and self.tls == "none":
            yield "dane", self.dane, "needs tls"
        lists = [("behaviours", self.behaviours)]
        lists += [
            (f"changes.{n}.behaviours", each.behaviours) for n, each in enumerate(self.changes)
        ]
        for key, behaviours in lists:
            for n, behaviour in enumerate(behaviours):
                if not isinstance(behaviour.get("kind"), str):
                    yield f"{key}.{n}", behaviour, "must have a kind"


@dataclass(slots=True)
class Scenario:
    """One experiment."""

    name: str
    title: str = ""
    question: str = ""
    """What it asks."""
    healthy: str = ""
    """What a healthy server shows."""
    expects: list[str] = field(default_factory=list)
    """The same as conditions that hold in a run of a healthy server, at any scale: ``lost == 0``; see `sim.conditions` and
    `testbed.quantities`."""
    vary: dict[str, Any] = field(default_factory=dict)
    """Of a sweep: a key, as ``server.limits.mta.max_conn_per_host``, and the values it is run with."""
    seed: int = 1
    """Root of all streams; see `sim.distributions.stream`."""
    drain_s: float = 60.0
    """Longest wait for the queue to become empty after the load."""
    representations: list[Literal["fixed", "whole", "full", "slim", "packed"]] = field(
        default_factory=lambda: ["whole", "full", "slim", "packed"]
    )
    """Which envelopes the bench runs, one server process each."""
    load: Load = field(default_factory=Load)
    destinations: list[Destination] = field(default_factory=list)
    local: list[LocalGroup] = field(default_factory=list)
    """The server's own users."""
    timeline: list[Event] = field(default_factory=list)
    """What the operator does while the load goes on, and what the disk does."""
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Kinds of hosts beside those that ship, or in their place."""
    server: dict[str, Any] = field(default_factory=dict)
    """What the server is configured with beyond its defaults; the keys of its own file."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", self.name):
            yield "name", self.name, "must be lower-case letters, digits and hyphens, 32 at most"
        for condition in self.expects:
            try:
                parse_condition(condition)
            except ConditionError as error:
                yield "expects", condition, str(error)
        for key, values in self.vary.items():
            if not isinstance(values, list) or not 2 <= len(values) <= VALUES_MAX:
                yield "vary", key, f"must have a list of 2 to {VALUES_MAX} values"
        if self.seed < 0:
            yield "seed", self.seed, "must not be negative"
        if not self.drain_s > 0:
            yield "drain_s", self.drain_s, "must be above 0"
        if not self.representations:
            yield "representations", [], "must name at least one"
        if len(set(self.representations)) != len(self.representations):
            yield "representations", self.representations, "names one twice"
        if not 1 <= len(self.destinations) <= DESTINATIONS_MAX:
            yield (
                "destinations",
                len(self.destinations),
                f"must be from 1 to {DESTINATIONS_MAX} tables",
            )
        for i, each in enumerate(self.destinations):
            before = self.destinations[:i]
            if each.name in [other.name for other in before]:
                yield f"destinations.{i}.name", each.name, "is the name of another destination"
            if each.domain in [other.domain for other in before]:
                yield f"destinations.{i}.domain", each.domain, "belongs to another destination"
        if not any(each.share > 0 for each in self.destinations):
            yield "destinations.0.share", 0.0, "must be above 0 for one destination at least"
        if not self.local and not self.load.messages:
            yield "load.messages", 0, f"must be from 1 to {MESSAGES_MAX}"
        if len(self.timeline) > EVENTS_MAX:
            yield "timeline", len(self.timeline), f"must be {EVENTS_MAX} entries at most"
        yield from profile_problems(self)
        yield from self._local_problems()

    def _local_problems(self) -> Iterator[Problem]:
        if len(self.local) > GROUPS_MAX:
            yield "local", len(self.local), f"must be {GROUPS_MAX} tables at most"
        if self.messages > MESSAGES_MAX:
            yield "load.scale", self.load.scale, f"makes more than {MESSAGES_MAX} messages"
        outside = [each.domain for each in self.destinations]
        for i, group in enumerate(self.local):
            if group.name in [other.name for other in self.local[:i]]:
                yield f"local.{i}.name", group.name, "is the name of another group"
            if any(f".{group.domain}".endswith(f".{domain}") for domain in outside):
                yield f"local.{i}.domain", group.domain, "belongs to a destination"

    @property
    def about(self) -> str:
        """What it asks and what a healthy server shows, as one paragraph."""
        return " ".join(f"{self.question} {self.healthy}".split())

    @property
    def messages(self) -> int:
        """All messages: to the outside, and to local users."""
        return self.load.count + sum(each.count(self.load.scale) for each in self.local)


def available() -> list[str]:
    """Return the names of the scenarios that ship, sorted."""
    folder = resources.files("sim") / "scenarios"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario by its name, or from a file.

    A string with a slash or that ends in ``.toml`` is a path, anything else a name.

    Args:
        path_or_name: As ``backlog`` or ``my/own.toml``.
        overrides: As ``load.rate=500`` or ``server.limits.mta.max_conn_per_host=2``.

    Raises:
        ConfigError: no such scenario, not readable, not TOML, or a key or value is wrong.
    """
    text = str(path_or_name)
    overrides, policy = _split(overrides)
    if isinstance(path_or_name, Path) or "/" in text or text.endswith(".toml"):
        source, content = text, _read(Path(path_or_name))
    elif text in available():
        source = f"{text}.toml"
        content = (resources.files("sim") / "scenarios" / source).read_bytes()
    else:
        known = ", ".join(available())
        raise ConfigError(
            "scenario", value=text, problem=f"there is no such scenario; there are {known}"
        )
    return parse(content, source=source, overrides=overrides, policy=policy)


def parse(
    content: bytes, *, source: str, overrides: Sequence[str] = (), policy: Path | None = None
) -> Scenario:
    """Build a scenario from the bytes of a TOML file; ``source`` names it in errors, ``policy`` a file on top.

    Raises:
        ConfigError: not TOML, or a key or value is wrong.
    """
    try:
        data = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(source, problem=f"is not TOML: {problem}") from error
    said = data.pop("policy", None)
    if policy is None and said is not None:
        if not isinstance(said, str):
            raise ConfigError(source, "policy", said, "must be a file")
        policy = Path(source).parent / said
    if policy is not None:
        _put_policy(data, policy)
    return build(Scenario, data, source=source, overrides=overrides)


def _split(overrides: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the overrides that are values of the scenario, and the policy file that one names."""
    files = [each.partition("=")[2] for each in overrides if each.startswith("policy=")]
    rest = [each for each in overrides if not each.startswith("policy=")]
    return rest, Path(files[-1].strip().strip("\"'")) if files else None


def _put_policy(data: dict[str, Any], path: Path) -> None:
    """Put what a policy file says on top of a scenario's file: profiles, and tables of destinations by name.

    Raises:
        ConfigError: it can't be read, is not TOML, or names a destination that the scenario does not have.
    """
    source = str(path)
    try:
        said = tomllib.loads(_read(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(source, problem=f"is not TOML: {problem}") from error
    for key, value in said.items():
        if key not in ("profiles", "destinations"):
            raise ConfigError(source, key, value, "must be profiles or destinations")
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise ConfigError(source, key, value, "must be tables by name")
    own = data.setdefault("profiles", {})
    if isinstance(own, dict):
        own.update(said.get("profiles", {}))
    tables = data.get("destinations", [])
    by_name = {
        each.get("name"): each
        for each in (tables if isinstance(tables, list) else [])
        if isinstance(each, dict)
    }
    for name, table in said.get("destinations", {}).items():
        if name not in by_name:
            raise ConfigError(
                source, f"destinations.{name}", problem="is no destination of the scenario"
            )
        for key in table:
            if key not in _POLICY_KEYS:
                known = ", ".join(_POLICY_KEYS)
                raise ConfigError(
                    source, f"destinations.{name}.{key}", table[key], f"must be {known}"
                )
        by_name[name].update(table)


_POLICY_KEYS: Final = ("profile", "pace", "behaviours", "changes", "tls", "dane")
"""What a policy file may say about a destination: what it is like, and not what is asked of it."""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from error


class HostAddress(NamedTuple):
    """One MX host of the scripted Internet."""

    destination: int
    """Index into `Scenario.destinations`."""
    host: str
    """``mx0.domain`` and so on."""
    address: str
    """Of 127.0.0.0/8."""


def addresses(scenario: Scenario) -> list[HostAddress]:
    """Return all hosts: host j of destination i is ``mx<j>.<domain>`` at ``127.0.<10+i>.<1+j>``."""
    return [
        HostAddress(i, f"mx{j}.{destination.domain}", f"127.0.{10 + i}.{1 + j}")
        for i, destination in enumerate(scenario.destinations)
        for j in range(destination.hosts)
    ]


def domains_of(destination: Destination) -> list[str]:
    """Return the mail domains of a destination, the most popular first."""
    if destination.domains == 1:
        return [destination.domain]
    return [f"d{k}.{destination.domain}" for k in range(1, destination.domains + 1)]


def sender_domain(scenario: Scenario) -> str:
    """Return the domain of all senders, which is where bounces go."""
    return scenario.load.sender_domain or domains_of(scenario.destinations[0])[0]


class MxAnswer(NamedTuple):
    """One mail exchanger of a domain."""

    preference: int
    host: str
    address: str


def mx_records(scenario: Scenario) -> dict[str, tuple[MxAnswer, ...]]:
    """Return the mail exchangers of every domain, for a name server or a model of one.

    Domains of one destination that have the same hosts share a tuple. A sender domain that is nobody's goes to the
    first destination, so that bounces have somewhere to arrive.
    """
    hosts: dict[int, list[MxAnswer]] = {}
    for each in addresses(scenario):
        answer = MxAnswer(MX_PREFERENCE, each.host, each.address)
        hosts.setdefault(each.destination, []).append(answer)
    records: dict[str, tuple[MxAnswer, ...]] = {}
    for i, destination in enumerate(scenario.destinations):
        if not destination.mx:
            records.update(dict.fromkeys(domains_of(destination), tuple(hosts[i])))
            continue
        shared: dict[int, tuple[MxAnswer, ...]] = {}
        for k, domain in enumerate(domains_of(destination)):
            first = k * destination.mx % destination.hosts
            if first not in shared:
                chosen = [hosts[i][(first + j) % destination.hosts] for j in range(destination.mx)]
                shared[first] = tuple(chosen)
            records[domain] = shared[first]
    records.setdefault(sender_domain(scenario), tuple(hosts[0]))
    return records


def destination_of(scenario: Scenario) -> dict[str, int]:
    """Return the index of the destination that each address belongs to."""
    return {each.address: each.destination for each in addresses(scenario)}


def to_dict(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario as plain tables, lists and scalars: what its file would say in full."""
    return dataclasses.asdict(scenario)


def to_toml(scenario: Scenario) -> str:
    """Return the text of a file that `load` reads back as an equal scenario; for run directories."""
    return "\n".join(_table((), to_dict(scenario))).lstrip("\n") + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: scalars first, since a header ends the table before it."""
    later: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) or _is_tables(value):
            later.append((key, value))
        else:
            yield f"{_key(key)} = {_inline(value)}"
    for key, value in later:
        inner = (*path, key)
        name = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            yield from ("", f"[{name}]")
            yield from _table(inner, value)
        else:
            for each in value:
                yield from ("", f"[[{name}]]")
                yield from _table(inner, each)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _inline(key)


def _inline(value: object) -> str:
    """Return a value as TOML writes it on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(map(_character, value)) + '"'
        case list() | tuple():
            return "[" + ", ".join(map(_inline, value)) + "]"
        case Mapping():
            return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }"
        case _:
            # What a scenario is built from came out of TOML or is a field above.
            raise AssertionError(f"not a TOML value: {value!r}")


def _character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    return c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}"
