"""TLS of outbound connections: contexts, kept sessions, and the plan for each connection.

The rule: what the operator or the destination's policy demands is never weakened by a failure; only what was opportunistic
is tried again in clear. See `mta.tlsplan` for the levels.
"""

import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from mta.core.instructions import OpenConnection
from mta.core.relayrules import RelayRules
from mta.core.settings import ConfigError
from mta.credentials import read_credentials
from mta.resolver import address_literal
from mta.smtphello import NO_STARTTLS, Login, TlsLevel
from mta.tlsa import TlsaLookups
from mta.tlspipe import TlsPipe, fingerprint
from mta.tlsplan import (
    NOT_ALLOWED,
    TESTED,
    TESTING,
    TlsPlan,
    dane_plan,
    enforced_plan,
    plan_for,
    tested_plan,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mta.config import Config
    from mta.effects import Effects
    from mta.resolver import Resolver
    from mta.stspolicies import StsPolicies

BAD_CERTIFICATE = "454 4.7.5 Server certificate not trusted"
NO_HANDSHAKE = "454 4.7.5 Cannot start TLS"
"""Postfix smtp_proto.c has the codes and these words."""
BROKEN = "TLS connection is broken"

_SessionKey: TypeAlias = tuple[str, int, str, bool]


class OutboundTlsStats:
    """Counters since the start."""

    __slots__ = ("downgraded", "established", "failed", "refused", "resumed")

    def __init__(self) -> None:
        self.established = 0
        """Handshakes that were completed."""
        self.resumed = 0
        """Those of them that continued an earlier session."""
        self.failed = 0
        """Handshakes that were not completed, or whose certificate was not good enough."""
        self.downgraded = 0
        """Connections tried again with less."""
        self.refused = 0
        """Connections not made, because of what a look-up said or failed to say."""


class _Wanted(NamedTuple):
    """What the operator says about a destination."""

    level: TlsLevel
    login: Login | None


class OutboundTls:
    """What outbound connections know of TLS and passwords."""

    def __init__(
        self,
        config: "Config",
        effects: "Effects",
        *,
        source: str,
        rules: RelayRules | None = None,
        resolver: "Resolver | None" = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Read certificates of authorities and passwords.

        Args:
            config: what the operator wants.
            effects: to read files and to connect to policy hosts.
            source: the configuration's file, for errors.
            rules: what is different for which destination; by default as the configuration says.
            resolver: for DANE and MTA-STS; without one there is neither.
            log: takes one line.

        Raises:
            ConfigError: one of the files can't be used.
        """
        self.stats = OutboundTlsStats()
        self._log = log
        self._relay = config.relay
        self._rules = rules or config.relay_rules()
        self._smart_hosts = (config.relay.smart_host.lower(),)
        self._limits = config.limits.mta
        self._sessions: OrderedDict[_SessionKey, ssl.SSLSession] = OrderedDict()
        self._verifying = _context(config, effects, source)
        self._trusting = _bare_context(config)
        self._trusting.check_hostname = False
        self._trusting.verify_mode = ssl.CERT_NONE
        self._resolver = resolver
        self._tlsa: TlsaLookups | None = None
        self._sts: StsPolicies | None = None
        if resolver is not None:
            self._tlsa = TlsaLookups(resolver.servers, config.dns, effects)
        if resolver is not None and config.relay.mta_sts:
            self._sts = _policies(config, effects, resolver, self._verifying, log)
        self._files = config, effects, source
        self._logins = _logins(config, effects, source)
        if "dane" in _levels(config) and resolver is not None and not resolver.servers.trusted:
            log(
                "mta dane: no name server may say what DNSSEC has validated, so no record counts;"
                " use one on loopback, or dns.trust_ad"
            )

    def __len__(self) -> int:
        """Return how many sessions are kept."""
        return len(self._sessions)

    def update(self) -> str:
        """Read authorities and passwords again; return in one line what came of it.

        Raises:
            ValueError: one of them can't be used; all stays as it was, and the log has it.
        """
        try:
            verifying, logins = _context(*self._files), _logins(*self._files)
        except ConfigError as error:
            self._log(f"mta relay: {error}; what was read before is kept")
            raise ValueError(str(error)) from None
        self._verifying, self._logins = verifying, logins
        # They belong to the old context.
        self._sessions.clear()
        if self._sts is not None:
            self._sts.context = verifying
        return f"passwords for other hosts: {len(logins)}"

    def went_in_clear(self, plan: TlsPlan) -> None:
        """Say so if a policy that is only tested would not have had it: no handshake failed, so nobody else does."""
        if plan.policy == TESTING:
            self._log(f"mta-sts: {TESTED} host={plan.server_name}: {NO_STARTTLS}")

    def policy_stats(self) -> dict[str, int]:
        """Return what was counted of look-ups, by the names of `mta.core.metrics`."""
        sts, tlsa = self._sts, self._tlsa
        return {
            "mta.dane.cache.size": len(tlsa) if tlsa else 0,
            "mta.sts.cache.size": len(sts) if sts else 0,
            "mta.sts.fetched": sts.stats.fetched if sts else 0,
            "mta.sts.failed": sts.stats.failed if sts else 0,
        }

    async def plan(self, instruction: OpenConnection) -> TlsPlan:
        """Return what is to happen on a connection; takes as long as the look-ups that it needs."""
        level, login = self._wanted(instruction)
        name = server_name(instruction.host)
        plan = plan_for(level, name, login, login_in_clear=self._relay.auth_without_tls)
        if level == "dane":
            plan = await self._dane(plan, instruction)
        if self._sts is not None and level in ("may", "encrypt", "dane") and not plan.tlsa:
            plan = await self._mta_sts(self._sts, plan, instruction)
        self.stats.refused += bool(plan.refusal)
        return plan

    async def _dane(self, plan: TlsPlan, instruction: OpenConnection) -> TlsPlan:
        """Return what a host's TLSA records make of an opportunistic plan (RFC 7672 2.2)."""
        resolver, lookups = self._resolver, self._tlsa
        host, port = plan.server_name, self._port(instruction)
        hops = self._rules.plan_of(instruction.domain).hosts or (instruction.domain,)
        if resolver is None or lookups is None or address_literal(host) is not None:
            return plan
        # Without a validated way to the host its records prove nothing, and asking for them would meet the
        # name servers that fail on names like these.
        secure = [hop for hop in hops if await resolver.is_secure(hop, host)]
        if not secure:
            return plan
        answer = await lookups.look_up(host, port)
        if answer.failure:
            text = f"454 4.7.5 TLSA lookup error for {host}:{port}: {answer.failure}"
            return plan._replace(refusal=text)
        if not answer.records:
            return plan
        from mta.dane import usable

        names = (host, *[bare(hop) for hop in secure])
        return dane_plan(plan, usable(answer.records), names=names)

    async def _mta_sts(
        self, policies: "StsPolicies", plan: TlsPlan, instruction: OpenConnection
    ) -> TlsPlan:
        """Return what a domain's policy makes of a plan (RFC 8461 5)."""
        domain = self._next_hop(instruction)
        if plan.refusal or domain.startswith("[") or address_literal(domain) is not None:
            return plan
        policy = await policies.policy(domain)
        if policy is None:
            return plan
        allowed = policy.allows(plan.server_name)
        if policy.mode.value == "enforce":
            if not allowed:
                return plan._replace(refusal=NOT_ALLOWED)
            return enforced_plan(plan)
        if not allowed:
            self._log(f"mta-sts: {TESTED} domain={domain} host={plan.server_name}: {NOT_ALLOWED}")
            return plan
        return tested_plan(plan)

    def _next_hop(self, instruction: OpenConnection) -> str:
        """Return the domain whose exchangers were looked up, or a smart host."""
        hosts = self._rules.plan_of(instruction.domain).hosts
        if not hosts:
            return instruction.domain
        return hosts[0] if len(hosts) == 1 else f"[{server_name(instruction.host)}]"

    def _port(self, instruction: OpenConnection) -> int:
        return self._rules.plan_of(instruction.domain).port or self._relay.port

    def _wanted(self, instruction: OpenConnection) -> _Wanted:
        relay = self._relay
        plan = self._rules.plan_of(instruction.domain)
        # The general password is for the general smart host alone.
        name = plan.auth or (relay.auth if plan.hosts == self._smart_hosts else "")
        login: Login | None
        if name:
            login = self._logins[name.lower()]
        else:
            found = (self._logins.get(bare(n)) for n in (instruction.domain, instruction.host))
            login = next(filter(None, found), None)
        return _Wanted(plan.tls or relay.tls, login)

    # Connections

    def pipe(self, plan: TlsPlan, instruction: OpenConnection) -> TlsPipe:
        """Return a connection's TLS, at the beginning of its handshake.

        Raises:
            ValueError: the host's name can't be one.
            ssl.SSLError: ours.
        """
        context = self._verifying if plan.verify else self._trusting
        key = self._key(plan, instruction)
        # With DANE the certificates are wanted each time: the records may have changed.
        session = None if plan.tlsa else self._sessions.get(key)
        # In clear context, SNI is not worth a failure; to be verified, the name is.
        name = plan.server_name or None
        if name is not None and not plan.verify and not _is_name(name):
            name = None
        return TlsPipe(context, name, session)

    def inspect(
        self, pipe: TlsPipe, plan: TlsPlan, session: str, *, now: float, log: Callable[[str], None]
    ) -> str:
        """Look at what a handshake has agreed on, and log it.

        Args:
            pipe: the connection's TLS, established.
            plan: what it has to be.
            session: as the log shows it.
            now: seconds since the epoch.
            log: takes one line.

        Returns:
            Why it is not good enough, or nothing.
        """
        self.stats.established += 1
        self.stats.resumed += pipe.resumed
        log(f"{session} mta tls ciphers={pipe.ciphers()}")
        certificate = pipe.certificate()
        if not certificate:
            log(f'{session} smtp cert-check result="no certificate presented"')
            return f"{BAD_CERTIFICATE}: none was presented" if plan.tlsa or plan.verify else ""
        why = ""
        if plan.tlsa:
            from mta.dane import failure  # the library behind it is large, and rarely wanted

            why = failure(plan.tlsa, pipe.chain(), plan.names, now)
        valid = not why and bool(plan.tlsa or plan.verify)
        log(
            f'{session} mta cert-check result="{"valid" if valid else "unverified"}"'
            f' fingerprint="{fingerprint(certificate)}"'
        )
        return f"{BAD_CERTIFICATE}: {why}" if why else ""

    def keep(self, pipe: TlsPipe, plan: TlsPlan, instruction: OpenConnection) -> None:
        """Keep what can be resumed, as it is good enough for the next connection of the same plan."""
        session = pipe.session
        if session is None or plan.tlsa or not session.has_ticket:
            return
        key = self._key(plan, instruction)
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        while len(self._sessions) > self._limits.tls_sessions_max:
            self._sessions.popitem(last=False)

    def forget(self, plan: TlsPlan, instruction: OpenConnection) -> None:
        """Do not resume what has failed."""
        self._sessions.pop(self._key(plan, instruction), None)

    def flush(self) -> None:
        """Let go of what can be had again. Policies of domains stay: they are promises."""
        self._sessions.clear()
        if self._tlsa is not None:
            self._tlsa.flush()

    def _key(self, plan: TlsPlan, instruction: OpenConnection) -> _SessionKey:
        return instruction.address, self._port(instruction), plan.server_name, plan.verify


def _policies(
    config: "Config",
    effects: "Effects",
    resolver: "Resolver",
    context: ssl.SSLContext,
    log: Callable[[str], None],
) -> "StsPolicies":
    from mta.stspolicies import StsPolicies  # with an HTTP library that is rarely wanted

    return StsPolicies(
        resolver.servers,
        config.dns,
        effects,
        context,
        port=config.relay.mta_sts_port,
        limits=config.limits.mta,
        log=log,
    )


def server_name(host: str) -> str:
    """Return a host's name as certificates have it: without brackets and final dot."""
    return address_literal(host) or bare(host)


def bare(name: str) -> str:
    """Return a name without the brackets that say: no MX."""
    return name.strip("[]").lower().rstrip(".")


def tls_reason(error: Exception, *, established: bool = False) -> str:
    """Return what a failed handshake, or TLS that broke later, is called in logs and bounces."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{BAD_CERTIFICATE}: {error.verify_message.rstrip('.')}"
    reason = getattr(error, "reason", None)
    what = str(reason).lower().replace("_", " ") if reason else "handshake failure"
    return f"{BROKEN}: {what}" if established else f"{NO_HANDSHAKE}: {what}"


def _is_name(name: str) -> bool:
    return name.isascii() and all(0 < len(label) < 64 for label in name.split("."))


def _levels(config: "Config") -> set[str]:
    """Return all levels that some destination has."""
    return {config.relay.tls, *(rule.tls for rule in config.relays)}


def _logins(config: "Config", effects: "Effects", source: str) -> "Mapping[str, Login]":
    """Return all logins; whatever the configuration names is among them."""
    logins: Mapping[str, Login] = {}
    if config.relay.credentials is not None:
        logins = read_credentials(
            config.relay.credentials, effects, source=source, key="relay.credentials"
        )
    wanted = {"relay.auth": config.relay.auth}
    wanted |= {f"relays.{number}.auth": rule.auth for number, rule in enumerate(config.relays)}
    for key, name in wanted.items():
        if name and name.lower() not in logins:
            raise ConfigError(source, key, name, "is not in relay.credentials")
    return logins


def _bare_context(config: "Config") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion[config.relay.tls_minimum.replace(".", "_")]
    # A host that wants to begin anew in the middle gets nothing of it but our time.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _context(config: "Config", effects: "Effects", source: str) -> ssl.SSLContext:
    """Return a context that trusts the operator's authorities, or the system's."""
    context = _bare_context(config)
    path = config.relay.ca_file
    if path is None:
        # They take 0.4 MB and a twentieth of a second, which only those pay who ask for them.
        if config.relay.mta_sts or _levels(config) & {"verify", "implicit"}:
            context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cadata=effects.read_file(path, site="tls").decode("ascii"))
    except ssl.SSLError:
        raise ConfigError(source, "relay.ca_file", path, "holds no certificates") from None
    except OSError as error:
        problem = (error.strerror or "can't be read").lower()
        raise ConfigError(source, "relay.ca_file", path, problem) from None
    except ValueError:
        raise ConfigError(source, "relay.ca_file", path, "holds no certificates") from None
    return context
