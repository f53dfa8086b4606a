"""The server's configuration: one TOML file, every key with a default.

`mta.core.settings` checks names and types; an unknown key or a value of the wrong type is one line
that names file, key and value (exit status 2).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mta.core.admission import parse_networks
from mta.core.bounce import BounceSettings
from mta.core.concurrency import ConcurrencySettings
from mta.core.expansionlimits import ExpansionSettings
from mta.core.limits import Limits, Problem
from mta.core.relayrules import RelayRule, RelayRules, relay_problems
from mta.core.retry import RetrySettings
from mta.core.rules import RuleConfig, rule_problems
from mta.delivery.base import DeliveryLimits
from mta.smtphello import TlsLevel
from mta.tables.base import TableConfig, UserConfig

_LISTENER_NAME = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(slots=True)
class SmtpConfig:
    """The door."""

    listen: str = "127.0.0.1:2525"
    """Address and port to accept SMTP on: the listener ``smtp``. Empty: only ``[[listeners]]``."""
    relay_networks: list[str] = field(default_factory=lambda: ["127.0.0.0/8", "::1/128"])
    """Networks whose clients may send to any domain; others get 550 5.7.1."""
    xclient_networks: list[str] = field(default_factory=list)
    """Networks whose clients may say XCLIENT, and with it who is behind them. Postfix
    ``smtpd_authorized_xclient_hosts``, empty too."""
    proxy_networks: list[str] = field(default_factory=list)
    """Networks of proxies, which must put a PROXY header (version 1 or 2) before each connection; others never
    may. Postfix ``smtpd_upstream_proxy_protocol``, for all clients of a service there."""

    def problems(self) -> Iterator[Problem]:
        """Yield networks that are none."""
        for key in ("xclient_networks", "proxy_networks"):
            for number, text in enumerate(getattr(self, key)):
                try:
                    parse_networks((text,))
                except ValueError as error:
                    yield f"{key}.{number}", text, str(error)


@dataclass(slots=True)
class ListenerConfig:
    """One more place to accept SMTP on, ``[[listeners]]``."""

    name: str
    """For logs and metrics, as ``submission``."""
    address: str
    """``address:port``."""
    tls: Literal["auto", "none", "starttls", "required", "implicit"] = "auto"
    """``starttls``: offered; ``required``: no mail without (RFC 3207 4); ``implicit``: from the first byte on
    (RFC 8314 3.3); ``auto``: offered if there is ``tls.certificate``. OpenSMTPD ``tls``, ``tls-require``, ``smtps``."""
    auth: Literal["none", "optional", "required"] = "none"
    """``optional``: AUTH is offered; ``required``: no mail without (RFC 6409 4.3). OpenSMTPD ``auth-optional``, ``auth``."""
    auth_requires_tls: bool = True
    """AUTH only under TLS. Postfix ``smtpd_tls_auth_only``."""

    def problems(self) -> Iterator[Problem]:
        """Yield values that can't be used."""
        if not _LISTENER_NAME.fullmatch(self.name):
            yield "name", self.name, "must be 1 to 32 lower-case letters, digits or _"


@dataclass(slots=True)
class TlsConfig:
    """The certificate of all listeners. Read again on SIGHUP and by ``mtactl update tls``."""

    certificate: Path | None = None
    """PEM file: the certificate, then its chain. None: there is no TLS for clients."""
    key: Path | None = None
    """PEM file of its private key, without a password, mode rw-r----- at most. May be the same file."""
    minimum: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"
    """Lowest version. RFC 8996: older ones must not be used."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is missing."""
        if self.certificate is not None and self.key is None:
            yield "key", "", "is missing for tls.certificate"
        if self.key is not None and self.certificate is None:
            yield "certificate", "", "is missing for tls.key"


@dataclass(slots=True)
class AuthConfig:
    """Who may log in. ``mtactl encrypt`` makes the hashes."""

    file: Path | None = None
    """``name hash`` a line, mode rw-r----- at most. Read again when it has changed, and on SIGHUP."""
    users: dict[str, str] = field(default_factory=dict)
    """Name to argon2id hash; the file's come on top."""


@dataclass(slots=True)
class RelayConfig:
    """The relaying agent."""

    port: int = 25
    """Port of remote hosts; a test-bed's world listens on an unprivileged one."""
    allow: Literal["loopback", "any"] = "loopback"
    """Which addresses may be connected to. `loopback` cannot leak mail."""
    smart_host: str = ""
    """Host that takes what ``relays`` doesn't send elsewhere; empty to follow MX records. See ``relays.0.smart_host``."""
    tls: TlsLevel = "may"
    """How much TLS hosts have to have; see `mta.smtphello`. Postfix ``smtp_tls_security_level``, OpenSMTPD ``tls``."""
    tls_minimum: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"
    """Oldest protocol; RFC 8996 retires those before 1.2."""
    ca_file: Path | None = None
    """PEM file of the authorities that may vouch for hosts and MTA-STS policies; the system's if absent."""
    credentials: Path | None = None
    """File of ``host user password`` lines, closed to everybody else. OpenSMTPD ``auth <table>``, Postfix
    ``smtp_sasl_password_maps``. A host's line is used when we connect to it."""
    auth: str = ""
    """Which line of ``credentials`` the smart host wants, if it is not the one of its name."""
    auth_without_tls: bool = False
    """Send passwords in clear to hosts without TLS. Postfix: ``smtp_sasl_security_options``."""
    mta_sts: bool = False
    """Do as the MTA-STS policies of domains say (RFC 8461); DANE goes before. Off, because a test-bed's domains have
    none and each would be asked."""
    mta_sts_port: int = 443
    """Port of their HTTPS servers; a test-bed's world listens on an unprivileged one."""

    def problems(self) -> Iterator[Problem]:
        """Yield values that can't be used."""
        if self.auth and self.credentials is None:
            yield "auth", self.auth, "needs relay.credentials"
        if self.auth and not self.smart_host:
            yield "auth", self.auth, "needs relay.smart_host: any host would be sent the password"
        if not 0 < self.mta_sts_port < 65536:
            yield "mta_sts_port", self.mta_sts_port, "must be a port"


@dataclass(slots=True)
class LocalConfig:
    """Local delivery. Who has mail, and how, is in ``rules``, ``tables`` and ``userbases``."""

    user: str = ""
    """As whom commands and files that an alias table names are run and written (OpenSMTPD ``_smtpd``, Postfix
    ``default_privs``); a user of the rule's userbase. Empty: the server's own user."""
    allow_root: bool = False
    """Run commands for root, also those of its ``.forward``. OpenSMTPD and Postfix never do."""
    path: str = "/usr/bin:/bin"
    """PATH of commands."""
    spool: Path | None = None
    """Directory of all mailboxes of rules with ``delivery = "mbox"`` and no ``path``, named like their users."""
    dotlock: bool = False
    """Make ``mailbox.lock`` as well, for programs that know nothing else."""
    tag_folders: bool = False
    """Mail for ``user+tag`` goes to the Maildir's folder ``.tag`` if there is one."""
    limits: DeliveryLimits = field(default_factory=DeliveryLimits)

    def problems(self) -> Iterator[Problem]:
        """Yield values that can't be used."""
        if self.spool is not None and not self.spool.is_absolute():
            yield "spool", str(self.spool), "must be absolute"


def lmtp_server(text: str) -> Path | tuple[str, int]:
    """Return the path of a Unix socket, or an address and port.

    Raises:
        ValueError: it is neither.
    """
    if text.startswith("/"):
        return Path(text)
    address, _, port = text.rpartition(":")
    if not address or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(text)
    return address.strip("[]"), int(port)


@dataclass(slots=True)
class DnsConfig:
    """The resolver."""

    nameserver: str = ""
    """``address:port``; empty to use the system's."""
    timeout_s: float = 5.0
    """Longest wait for one query. Linux resolv.conf(5) ``timeout``: 5."""
    lifetime_s: float = 15.0
    """Longest wait for one look-up with its retries. Ours."""
    cache_max: int = 10_000
    """Domains kept. Ours."""
    ttl_min_s: float = 5.0
    """An answer is kept at least so long. Ours."""
    ttl_max_s: float = 86_400.0
    """An answer is kept at most so long. Ours; BIND ``max-cache-ttl`` is a week."""
    negative_ttl_s: float = 60.0
    """A failure is kept so long. Ours; RFC 2308 7.1 allows 5 minutes."""
    cname_max: int = 8
    """Aliases followed in one look-up. Ours; see also limits.mta.max_mx and max_addresses."""
    trust_ad: bool = False
    """Believe name servers that are not on loopback when they say that DNSSEC has validated an answer: for DANE.
    resolv.conf's ``trust-ad``."""


@dataclass(slots=True)
class QueueConfig:
    """The durable queue."""

    directory: Path = Path("var/queue")
    """Made if it is missing, mode 0700; locked while the server runs."""


@dataclass(slots=True)
class ControlConfig:
    """What the operator talks to."""

    socket: Path = Path("var/control.sock")
    """Unix socket of `mtactl`, mode 0600."""
    metrics: str = ""
    """``address:port`` of /metrics for Prometheus; empty for none."""


@dataclass(slots=True)
class LogConfig:
    """Where to write what."""

    file: Path | None = None
    """Log file; standard error if absent."""
    verbose: bool = False
    """Log debug lines too (`mtactl log verbose`)."""
    trace: list[str] = field(default_factory=list)
    """Subsystems traced from the start (`mtactl trace`)."""
    stimuli: Path | None = None
    """JSON Lines file of every stimulus, for calibration and replay; none if absent."""


@dataclass(slots=True)
class Config:
    """Everything that `mta serve` can be told."""

    hostname: str = "localhost.localdomain"
    """Name in the greeting, in Received and in bounces."""
    envelope: Literal["fixed", "whole", "full", "slim", "packed"] = "slim"
    """How envelopes are kept in memory."""
    seed: int = 0
    """Seed of all random choices (MX order, jitter); 0 draws one and logs it."""
    drain_s: float = 30.0
    """How long SIGTERM waits for transactions to end, seconds. Ours."""
    smtp: SmtpConfig = field(default_factory=SmtpConfig)
    listeners: list[ListenerConfig] = field(default_factory=list)
    """Places to accept SMTP on besides ``smtp.listen``."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    relay: RelayConfig = field(default_factory=RelayConfig)
    relays: list[RelayRule] = field(default_factory=list)
    """How mail for which destination is sent, the first that matches; without any, all as in ``relay``."""
    local: LocalConfig = field(default_factory=LocalConfig)
    rules: list[RuleConfig] = field(default_factory=list)
    """Which mail is ours and whose is carried on, the first that matches; without any, everything is relayed
    for ``smtp.relay_networks``."""
    tables: dict[str, TableConfig] = field(default_factory=dict)
    """Aliases, virtual users and domains, by name."""
    userbases: dict[str, dict[str, UserConfig]] = field(default_factory=dict)
    """Tables of users, by name; the system's users are always there, without a name."""
    expansion: ExpansionSettings = field(default_factory=ExpansionSettings)
    dns: DnsConfig = field(default_factory=DnsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    log: LogConfig = field(default_factory=LogConfig)
    retry: RetrySettings = field(default_factory=RetrySettings)
    bounce: BounceSettings = field(default_factory=BounceSettings)
    concurrency: ConcurrencySettings = field(default_factory=ConcurrencySettings)
    limits: Limits = field(default_factory=Limits)

    def relay_rules(self) -> RelayRules:
        """Return what is wanted for which destination."""
        return RelayRules(
            self.relays,
            self.limits.mta,
            smart_host=self.relay.smart_host,
            hops=[rule.smart_host for rule in self.rules if rule.smart_host],
        )

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between rules and tables, and between listeners."""
        yield from self._listener_problems()
        yield from rule_problems(self.rules, tables=self.tables, userbases=self.userbases)
        yield from relay_problems(self.relays, self.limits.mta, smart_host=self.relay.smart_host)
        for number, rule in enumerate(self.rules):
            if rule.lmtp:
                try:
                    lmtp_server(rule.lmtp)
                except ValueError:
                    problem = "must be an address:port or an absolute path"
                    yield f"rules.{number}.lmtp", rule.lmtp, problem

    def _listener_problems(self) -> Iterator[Problem]:
        if not self.smtp.listen and not self.listeners:
            yield "smtp.listen", "", "must be an address:port when there are no listeners"
        names = {"smtp"}
        for number, listener in enumerate(self.listeners):
            if listener.name in names:
                yield f"listeners.{number}.name", listener.name, "is the name of a listener before"
            names.add(listener.name)
            yield from self._tls_problems(f"listeners.{number}", listener)

    def _tls_problems(self, key: str, listener: ListenerConfig) -> Iterator[Problem]:
        encrypted = self.tls.certificate is not None and listener.tls != "none"
        if not encrypted and listener.tls not in ("auto", "none"):
            yield f"{key}.tls", listener.tls, "needs tls.certificate and tls.key"
        if listener.auth != "none":
            if not self.auth.file and not self.auth.users:
                yield f"{key}.auth", listener.auth, "needs auth.file or auth.users"
            if listener.auth_requires_tls and not encrypted:
                yield f"{key}.auth", listener.auth, "needs TLS, or auth_requires_tls = false"
