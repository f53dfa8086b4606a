"""Which mail is ours, whose we carry on, and what becomes of it: the first rule that matches decides.

A rule says for which domains and for which clients it is, and what to do; smtpd.conf(5) has the same as
``match`` and ``action``. No rule, no mail: 550 5.7.1. Relaying is closed but for configured networks,
clients that logged in, and addresses that our own tables and users' files name; a rule that would relay
for anybody to anywhere is refused when the configuration is read.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple, TypeAlias

from mta.core.address import domain_key
from mta.core.admission import Network, is_in
from mta.core.limits import Problem
from mta.core.lookup import Found, Tables, TemporaryError
from mta.core.reply import Reply

ClientWord: TypeAlias = Literal["any", "networks", "authenticated", "local", "internal"]
Origin: TypeAlias = Literal["alias", "include", "forward"]

TABLE: Final = "table:"
"""In ``match_domains``: the domains are the keys of a table."""

REJECTED: Final = Reply(550, "5.7.1", "Recipient refused")
"""What a rule with ``action = "reject"`` answers unless it says something else. RFC 3463 X.7.1."""

_RELAY_CLIENTS: Final[tuple[ClientWord, ...]] = ("networks", "authenticated", "internal")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REPLY = re.compile(
    r"([45][0-9]{2}) ([45])(\.[0-9]{1,3}\.[0-9]{1,3}) ([!-~][ -~]{0,400})", re.ASCII
)


@dataclass(slots=True)
class RuleConfig:
    """One rule, ``[[rules]]`` in the configuration; the order of the file is the order of the rules."""

    name: str
    """For logs, traces and envelopes."""
    match_domains: list[str]
    """Domains; ``*.example.test`` for all below one, ``*`` for any, ``table:NAME`` for the keys of a table."""
    action: Literal["relay", "local", "virtual", "reject"]
    """What to do with the address: send it on; to a user of ours, through ``aliases``; to whatever the table
    ``virtual`` says; refuse it."""
    clients: list[ClientWord] = field(default_factory=list)
    """For whom: ``any``; ``networks`` (smtp.relay_networks); ``authenticated``; ``internal``, addresses that
    expansion found; ``local``, those and this host's loopback and Unix sockets (OpenSMTPD ``from local``).
    Empty: networks, authenticated and internal to relay, any for the other actions."""
    aliases: str = ""
    """Table asked for each user of a ``local`` rule; empty for none."""
    virtual: str = ""
    """Table asked for each address of a ``virtual`` rule."""
    userbase: str = ""
    """Table of users; empty for the system's."""
    delivery: Literal["maildir", "mbox", "lmtp", "pipe", "forward-only", "expand-only"] = "maildir"
    """How users get their mail. The last two are smtpd.conf's: to whom ``.forward`` or tables say, or not at all."""
    path: str = ""
    """Maildir or mbox of a user, below the home directory; empty for ``Maildir`` and ``mbox``."""
    command: list[str] = field(default_factory=list)
    """Program and arguments of ``pipe``. No shell reads them."""
    lmtp: str = ""
    """``address:port`` or the path of a Unix socket for ``lmtp``."""
    user: str = ""
    """Deliver as this user, whoever the recipient is; then a ``.forward`` counts only if it is this user's."""
    forward: bool = True
    """Look for ``.forward`` in the home directory."""
    commands_from: list[Origin] = field(default_factory=lambda: ["alias"])
    """Where ``|command`` may stand. Postfix ``allow_mail_to_commands``: alias, forward."""
    files_from: list[Origin] = field(default_factory=lambda: ["alias"])
    """Where ``/file`` may stand. Postfix ``allow_mail_to_files``: alias, forward."""
    smart_host: str = ""
    """Host that a ``relay`` rule sends everything to; empty for relay.smart_host, or MX records."""
    reply: str = ""
    """What a ``reject`` rule answers: ``550 5.7.1 text``."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that can't be used, or not in this company."""
        if not _NAME.fullmatch(self.name):
            yield "name", self.name, "must be 1 to 64 letters, digits, _ . or -"
        if not self.match_domains:
            yield "match_domains", self.match_domains, 'must name a domain; "*" is any'
        for pattern in self.match_domains:
            if not _is_pattern(pattern):
                yield "match_domains", pattern, "must be a domain, *.domain, * or table:NAME"
        if self.action == "relay" and "any" in self.clients and "*" in self.match_domains:
            yield "clients", self.clients, "must not let any client relay to any domain"
        yield from self._out_of_place()
        if self.action == "virtual" and not self.virtual:
            yield "virtual", self.virtual, "must name a table"
        if self.path and (self.path[0] == "/" or ".." in self.path.split("/")):
            yield "path", self.path, "must stay below the home directory"
        if self.user and not _NAME.fullmatch(self.user):
            yield "user", self.user, "must be the name of a user"
        if self.reply and not _is_reply(self.reply):
            yield "reply", self.reply, "must be a reply such as 550 5.7.1 text, not 421"
        if self.action in ("local", "virtual"):
            if self.delivery == "pipe" and not all([*self.command[:1], self.command]):
                yield "command", self.command, "must name a program"
            if self.delivery == "lmtp" and not self.lmtp:
                yield "lmtp", self.lmtp, "must be an address:port or a path"
            if self.delivery == "forward-only" and not self.forward:
                yield "forward", self.forward, 'must be true with delivery = "forward-only"'

    def _out_of_place(self) -> Iterator[Problem]:
        """Yield keys that mean nothing where they stand: the operator meant something by them."""
        places: tuple[tuple[str, object, str, bool], ...] = (
            ("aliases", self.aliases, 'action = "local"', self.action == "local"),
            ("virtual", self.virtual, 'action = "virtual"', self.action == "virtual"),
            ("smart_host", self.smart_host, 'action = "relay"', self.action == "relay"),
            ("reply", self.reply, 'action = "reject"', self.action == "reject"),
            ("command", self.command, 'delivery = "pipe"', self.delivery == "pipe"),
            ("lmtp", self.lmtp, 'delivery = "lmtp"', self.delivery == "lmtp"),
            ("path", self.path, "maildir or mbox", self.delivery in ("maildir", "mbox")),
        )
        for key, value, place, in_place in places:
            if value and not in_place:
                yield key, value, f"is only for {place}"


DEFAULT_RULES: Final = (RuleConfig("relay", ["*"], "relay"),)
"""A server without rules is a relay for its networks, for clients that log in, and for nobody else."""


def rule_problems(
    rules: Sequence[RuleConfig], *, tables: Collection[str], userbases: Collection[str]
) -> Iterator[Problem]:
    """Yield what is wrong between rules and the rest; keys are ``rules.0.aliases`` and so on."""
    seen: set[str] = set()
    for number, rule in enumerate(rules):
        if rule.name in seen:
            yield f"rules.{number}.name", rule.name, "is the name of a rule before"
        seen.add(rule.name)
        wanted = [("aliases", rule.aliases), ("virtual", rule.virtual)]
        wanted += [
            ("match_domains", pattern.removeprefix(TABLE))
            for pattern in rule.match_domains
            if pattern.startswith(TABLE)
        ]
        for key, name in wanted:
            if name and name not in tables:
                yield f"rules.{number}.{key}", name, "is not a table"
        if rule.userbase and rule.userbase not in userbases:
            yield f"rules.{number}.userbase", rule.userbase, "is not a table of users"


class Client(NamedTuple):
    """Who sends, as rules see it. Make it with `RuleSet.client`, once per session or login."""

    address: str
    """IP address; empty on a Unix socket."""
    user: str
    """Name of the login, or empty."""
    words: frozenset[str]
    """What this client is to a rule that is asked for the recipient itself."""
    internal: frozenset[str]
    """And for what expansion makes of it. As OpenSMTPD's EF_INTERNAL, it is local, in no network, and
    authenticated if the client is."""

    def __str__(self) -> str:
        """Return ``192.0.2.1 user=alice`` as in a trace."""
        user = f" user={self.user}" if self.user else ""
        return f"{self.address or 'local'}{user}"


class Rule:
    """One rule, ready to be matched."""

    __slots__ = (
        "any_domain",
        "clients",
        "config",
        "name",
        "number",
        "parents",
        "reply",
        "single",
        "tables",
    )

    def __init__(self, number: int, config: RuleConfig) -> None:
        self.number = number
        """From 1."""
        self.config = config
        self.name = config.name
        clients: Iterable[str] = config.clients
        if not config.clients:
            clients = _RELAY_CLIENTS if config.action == "relay" else ("any",)
        self.clients = frozenset(clients)
        self.any_domain = "*" in config.match_domains
        self.tables = tuple(
            pattern.removeprefix(TABLE)
            for pattern in config.match_domains
            if pattern.startswith(TABLE)
        )
        names = [name for name in config.match_domains if name != "*" and name[:6] != TABLE]
        self.single = frozenset(str(domain_key(name)) for name in names if name[:2] != "*.")
        self.parents = frozenset(str(domain_key(name[2:])) for name in names if name[:2] == "*.")
        self.reply = _reply(config.reply) if config.reply else REJECTED
        """What a rejection says."""

    def __str__(self) -> str:
        """Return ``rule 2 "local"``."""
        return f'rule {self.number} "{self.name}"'

    def for_whom(self) -> str:
        """Return the clients in words, in a fixed order."""
        order = ("any", "networks", "authenticated", "local", "internal")
        return ", ".join(word for word in order if word in self.clients)

    def matches(self, domain: str, tables: Tables) -> bool | TemporaryError:
        """Say whether the rule is for a domain; it is asked in A-labels."""
        if self.any_domain or domain in self.single:
            return True
        if self.parents:
            parent = domain.partition(".")[2]
            while parent:
                if parent in self.parents:
                    return True
                parent = parent.partition(".")[2]
        for table in self.tables:
            answer = tables.lookup(table, domain)
            if isinstance(answer, Found):
                return True
            if isinstance(answer, TemporaryError):
                return answer
        return False

    def what(self, domain: str) -> str:
        """Return in words what of the rule is for a domain that it matches."""
        if self.any_domain:
            return "any domain"
        if domain in self.single:
            return f"domain {domain}"
        parent = domain.partition(".")[2]
        while parent and parent not in self.parents:
            parent = parent.partition(".")[2]
        return f"domain *.{parent}" if parent else f"a domain of {', '.join(self.tables)}"


class RuleSet:
    """All rules, in order."""

    __slots__ = ("_networks", "by_name", "rules")

    def __init__(
        self, configs: Sequence[RuleConfig] = DEFAULT_RULES, *, networks: Sequence[Network] = ()
    ) -> None:
        """Prepare rules that have no `problems`.

        Args:
            configs: the rules.
            networks: smtp.relay_networks; see `mta.core.admission.parse_networks`.
        """
        self.rules = tuple(Rule(number, config) for number, config in enumerate(configs, start=1))
        self.by_name: Mapping[str, Rule] = {rule.name: rule for rule in self.rules}
        """For who finds the name of a rule on an envelope."""
        self._networks = tuple(networks)

    def client(self, address: str = "", *, user: str = "") -> Client:
        """Return a client: its IP address, empty for a Unix socket, and its login."""
        words = {"any"}
        inside = {"any", "local", "internal"}
        if user:
            words.add("authenticated")
            inside.add("authenticated")
        if not address or _is_loopback(address):
            words.add("local")
        if address and is_in(address, self._networks):
            words.add("networks")
        return Client(address, user, frozenset(words), frozenset(inside))

    def match(
        self, domain: str, words: frozenset[str], tables: Tables
    ) -> Rule | TemporaryError | None:
        """Return the first rule for a domain and a client, or None.

        A table that can't answer ends the search: a later rule might say otherwise.
        """
        for rule in self.rules:
            if rule.clients.isdisjoint(words):
                continue
            matches = rule.matches(domain, tables)
            if isinstance(matches, TemporaryError):
                return matches
            if matches:
                return rule
        return None

    def near_miss(self, domain: str, tables: Tables) -> Rule | None:
        """Return the first rule that is for a domain, whoever the client; for a trace."""
        return next((rule for rule in self.rules if rule.matches(domain, tables) is True), None)


def _is_pattern(pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith(TABLE):
        return _NAME.fullmatch(pattern.removeprefix(TABLE)) is not None
    return domain_key(pattern.removeprefix("*.")) is not None


def _is_reply(text: str) -> bool:
    match = _REPLY.fullmatch(text)
    # 421 would end the connection (RFC 5321 3.8); the class of RFC 3463 is that of the code.
    return match is not None and match[1] != "421" and match[2] == text[0]


def _reply(text: str) -> Reply:
    match = _REPLY.fullmatch(text)
    assert match is not None, text
    return Reply(int(match[1]), match[2] + match[3], match[4])


def _is_loopback(address: str) -> bool:
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)
