"""What the operator wants for which destination: the first rule whose domains match decides.

A rule (``[[relays]]``) says by which host, from which addresses, with what security and within which limits mail for
some domains is sent; what it leaves open is as in ``[relay]`` and ``limits.mta``. The like: OpenSMTPD ``mta limit
for domain``, Postfix transport(5) and ``transport_destination_*``, KumoMTA's traffic shaping.

The rule that this module keeps: two destinations with the same key have the same plan, so that they can
share one relay; two with different plans never have the same key.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias

from mta.core.address import domain_key
from mta.core.limits import MtaLimits, Problem

TlsWish: TypeAlias = Literal["", "none", "may", "encrypt", "verify", "dane", "implicit"]

_SHARED: Final = frozenset({"max_conn", "max_relays"})
"""Limits of all relays together: there is no such thing for one destination."""

_LIMITS = {field.name: field for field in dataclasses.fields(MtaLimits)}


@dataclass(slots=True)
class RelayRule:
    """One rule, ``[[relays]]`` in the configuration; the order of the file is the order of the rules."""

    domains: list[str]
    """Destinations; ``.example.test`` or ``*.example.test`` for all below one, ``*`` for any. Postfix transport(5)."""
    smart_host: list[str] | None = None
    """Hosts that take the mail, tried in this order; ``[host]`` takes its addresses without asking for MX. Absent:
    relay.smart_host; an empty list: the domain's own MX records. Postfix ``relayhost``, OpenSMTPD ``host``."""
    balance: bool = False
    """Spread mail over all of ``smart_host`` instead of keeping to the first that works."""
    port: int = 0
    """Port of the hosts; 0 for relay.port."""
    tls: TlsWish = ""
    """Security of connections; empty for relay.tls. Postfix ``smtp_tls_policy_maps``."""
    auth: str = ""
    """Name of the credentials to log in with; empty for none. OpenSMTPD ``auth``."""
    sources: list[str] = field(default_factory=list)
    """Local addresses to send from, least used first; empty for the system's choice. OpenSMTPD ``src``, Postfix
    ``smtp_bind_address``."""
    inet4: bool = True
    """Use IPv4. OpenSMTPD ``mta limit for domain d inet4``, Postfix ``inet_protocols``."""
    inet6: bool = True
    """Use IPv6."""
    limits: dict[str, int | float] = field(default_factory=dict)
    """Keys of ``limits.mta`` that are different here. OpenSMTPD ``mta limit for domain``."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that can't be used, or not in this company."""
        if not self.domains:
            yield "domains", self.domains, 'must name a domain; "*" is any'
        for pattern in self.domains:
            if pattern != "*" and domain_key(_parent(pattern) or pattern) is None:
                yield "domains", pattern, "must be a domain, .domain, *.domain or *"
        for host in self.smart_host or ():
            if not _is_host(host):
                yield "smart_host", host, "must be a host name or an address, or one in brackets"
        if self.balance and not self.smart_host:
            yield "balance", self.balance, "is only for several hosts in smart_host"
        if not 0 <= self.port < 65536:
            yield "port", self.port, "must be a port, or 0 for relay.port"
        if not (self.inet4 or self.inet6):
            yield "inet6", self.inet6, "must be true when inet4 is false"
        for source in self.sources:
            yield from self._source_problems(source)
        for name, value in self.limits.items():
            problem = _limit_problem(name, value)
            if problem:
                yield f"limits.{name}", value, problem

    def _source_problems(self, source: str) -> Iterator[Problem]:
        version = _version(source)
        if not version:
            yield "sources", source, "must be an IP address of this host"
        elif not (self.inet4 if version == 4 else self.inet6):
            yield (
                "sources",
                source,
                f"must not be an IPv{version} address when inet{version} is false",
            )
        if self.sources.count(source) > 1:
            yield "sources", source, "must not be named twice"


def relay_problems(
    rules: Sequence[RelayRule], limits: MtaLimits, *, smart_host: str
) -> Iterator[Problem]:
    """Yield what is wrong between rules, and between them and ``limits.mta``; keys are ``relays.0.limits.x``."""
    seen: dict[str, int] = {}
    for number, rule in enumerate(rules):
        for pattern in rule.domains:
            name = _canonical(pattern)
            first = seen.setdefault(name, number)
            if first != number:
                yield f"relays.{number}.domains", pattern, f"is never asked: relays.{first} has it"
        if rule.auth and not (smart_host if rule.smart_host is None else rule.smart_host):
            problem = "needs smart_host: any host would be sent the password"
            yield f"relays.{number}.auth", rule.auth, problem
        for key, value, problem in _with_overrides(limits, rule).problems():
            yield f"relays.{number}.limits.{key}", value, problem


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """How mail for some destinations is sent. What is empty is as in ``[relay]``. Equal plans may share a relay."""

    rule: int = field(compare=False)
    """Number of the rule, from 1; 0 without one."""
    hosts: tuple[str, ...]
    """Smart hosts; empty to follow the MX records of the domain."""
    balance: bool
    port: int
    """Port of the hosts; 0 for relay.port."""
    tls: TlsWish
    """Level of security; empty for relay.tls."""
    auth: str
    """Name of credentials; empty for none."""
    sources: tuple[str, ...]
    """Local addresses; one empty one for the system's choice."""
    inet4: bool
    inet6: bool
    overrides: tuple[tuple[str, float], ...]
    """What is different in ``limits``, sorted."""
    limits: MtaLimits = field(compare=False)
    """``limits.mta`` with the overrides; the very object where there are none."""

    def takes(self, address: str) -> bool:
        """Return whether an address is of a family that may be used, and that a source can reach."""
        return any(self.reaches(source, address) for source in self.sources)

    def reaches(self, source: str, address: str) -> bool:
        """Return whether an address can be connected to from a source."""
        six = ":" in address
        if not (self.inet6 if six else self.inet4):
            return False
        return not source or (":" in source) is six


class RelayRules:
    """All rules, ready to be asked."""

    def __init__(
        self,
        rules: Sequence[RelayRule] = (),
        limits: MtaLimits | None = None,
        *,
        smart_host: str = "",
        hops: Collection[str] = (),
    ) -> None:
        """Prepare rules that have no `relay_problems`.

        Args:
            rules: in their order.
            limits: ``limits.mta``, kept; call `refresh` when something changes there at run time.
            smart_host: relay.smart_host, for rules that don't say and for all other mail.
            hops: smart hosts that ``[[rules]]`` chose: domains of envelopes that the general one must not take.
        """
        limits = limits if limits is not None else MtaLimits()
        default = (smart_host.lower(),) if smart_host else ()
        self._hops = frozenset(hop.lower() for hop in hops)
        self._plans = [_plan(0, RelayRule(["*"]), default, limits)]
        self._plans += [_plan(n, rule, default, limits) for n, rule in enumerate(rules, start=1)]
        self._direct = [dataclasses.replace(plan, hosts=()) for plan in self._plans]
        """For `hops`, where no host is the rule's own."""
        self._own_hosts = [False, *(rule.smart_host is not None for rule in rules)]
        self._names: dict[str, int] = {}
        self._parents: dict[str, int] = {}
        self._any = 0
        for number, rule in enumerate(rules, start=1):
            for pattern in rule.domains:
                if pattern == "*":
                    self._any = self._any or number
                elif parent := _parent(pattern):
                    self._parents.setdefault(_canonical(parent), number)
                else:
                    self._names.setdefault(_canonical(pattern), number)
        self.trivial = not rules and not smart_host
        """Every domain is its own key, with the same plan."""
        self._by_key: dict[str, RelayPlan] = {}
        self._keys: dict[RelayPlan, str] = {}
        for plan in self._plans:
            if plan.hosts:
                self._name(plan)

    def key_of(self, domain: str) -> str:
        """Return the key of the relay for a destination: the domain, or what stands for its smart hosts."""
        if self.trivial:
            return domain
        plan = self._find(domain)
        return self._keys[plan] if plan.hosts else domain

    def plan_of(self, key: str) -> RelayPlan:
        """Return the plan of a relay by its key."""
        plan = self._by_key.get(key)
        return self._find(key) if plan is None else plan

    def refresh(self) -> None:
        """Take over what has changed in ``limits.mta``, where a plan doesn't say otherwise."""
        base = self._plans[0].limits
        for plan in self._plans:
            if plan.limits is not base:
                own = dict(plan.overrides)
                for name in _LIMITS:
                    setattr(plan.limits, name, own.get(name, getattr(base, name)))

    def _find(self, domain: str) -> RelayPlan:
        numbers = [self._any, self._names.get(domain, 0)]
        if self._parents:
            parent = domain.partition(".")[2]
            while parent:
                numbers.append(self._parents.get(parent, 0))
                parent = parent.partition(".")[2]
        number = min((n for n in numbers if n), default=0)
        if domain in self._hops and not self._own_hosts[number]:
            return self._direct[number]
        return self._plans[number]

    def _name(self, plan: RelayPlan) -> None:
        """Give the relay of smart hosts a key that no other plan has."""
        if plan in self._keys:
            return
        key = ",".join(plan.hosts)
        direct = self._find(key)
        # Mail for the host's own domain may go the same way, but only if all else is the same.
        strange = not direct.hosts and dataclasses.replace(direct, hosts=plan.hosts) != plan
        if key in self._by_key or strange:
            key = f"{key}#{plan.rule}"
        self._by_key[key] = plan
        self._keys[plan] = key


def _plan(number: int, rule: RelayRule, default: tuple[str, ...], limits: MtaLimits) -> RelayPlan:
    hosts = default
    if rule.smart_host is not None:
        hosts = tuple(dict.fromkeys(host.lower() for host in rule.smart_host))
    return RelayPlan(
        rule=number,
        hosts=hosts,
        balance=rule.balance,
        port=rule.port,
        tls=rule.tls,
        auth=rule.auth,
        sources=tuple(rule.sources) or ("",),
        inet4=rule.inet4,
        inet6=rule.inet6,
        overrides=tuple(sorted(rule.limits.items())),
        limits=_with_overrides(limits, rule) if rule.limits else limits,
    )


def _with_overrides(limits: MtaLimits, rule: RelayRule) -> MtaLimits:
    wanted = {name: value for name, value in rule.limits.items() if name in _LIMITS}
    return dataclasses.replace(limits, **wanted)  # type: ignore[arg-type]  # `problems` has looked at them


def _limit_problem(name: str, value: float) -> str:
    """Return what is wrong with an override as such, or nothing."""
    if name not in _LIMITS:
        near = difflib.get_close_matches(name, _LIMITS, n=1)
        return f"unknown key (did you mean {near[0]}?)" if near else "unknown key"
    if name in _SHARED:
        return "is for all destinations together; set it in limits.mta"
    if _LIMITS[name].type is int and not isinstance(value, int):
        return "must be a whole number"
    return ""


def _parent(pattern: str) -> str:
    """Return what ``.domain`` or ``*.domain`` is below; empty for anything else."""
    if pattern.startswith("*."):
        return pattern[2:]
    return pattern[1:] if pattern.startswith(".") else ""


def _canonical(pattern: str) -> str:
    """Return a pattern in the form in which domains are compared."""
    if pattern == "*":
        return pattern
    parent = _parent(pattern)
    name = domain_key(parent or pattern) or pattern.lower()
    return f".{name}" if parent else name


def _is_host(text: str) -> bool:
    name = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    name = name[5:] if name[:5].lower() == "ipv6:" else name
    return bool(_version(name)) or (domain_key(name) is not None and name[0] != "[")


def _version(address: str) -> int:
    """Return 4 or 6, or 0 if a text is no address."""
    try:
        return ip_address(address).version
    except ValueError:
        return 0
