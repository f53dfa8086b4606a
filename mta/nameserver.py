"""Questions to name servers: one name, one type, with retries, aliases and a deadline.

Every question ends in an `Answer`, never in an exception of the network's making. Only a name server
that says so makes a name non-existent; silence, garbage and refusal are temporary.
"""

import asyncio
import enum
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mta.config import DnsConfig
from mta.effects import Effects, is_loopback

if TYPE_CHECKING:
    import dns.message
    import dns.name

QUERIES_MAX: Final = 100
"""Questions that may be open at once, all look-ups together. Each has a socket."""
UDP_PAYLOAD: Final = 1232
"""EDNS buffer size that avoids fragments (DNS flag day 2020)."""
RESOLV_CONF: Final = Path("/etc/resolv.conf")
SYSTEM_SERVERS_MAX: Final = 3
"""MAXNS of the C library's resolver."""


class AnswerStatus(enum.Enum):
    """What a question ended in."""

    OK = "ok"
    NO_NAME = "no-name"
    """NXDOMAIN."""
    NO_DATA = "no-data"
    """The name is there, but has no records of this type."""
    RETRY = "retry"
    """Nobody knows: time-out, SERVFAIL, REFUSED, a loop of aliases, garbage."""
    BAD_NAME = "bad-name"
    """This can't be a name in the DNS."""


class Answer(NamedTuple):
    """What the name servers said."""

    status: AnswerStatus
    records: tuple[Any, ...] = ()
    """dnspython's rdata."""
    ttl_s: float = 0.0
    text: str = ""
    """Why, for RETRY."""
    secure: bool = False
    """DNSSEC has validated all of it, and whoever says so is trusted (``dns.trust_ad``)."""


def parse_nameserver(text: str) -> tuple[str, int]:
    """Return address and port of ``address``, ``address:port`` or ``[address]:port``.

    Raises:
        ValueError: it is none of these; the message says what was expected.
    """
    address, port = text, "53"
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("expected address:port")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        ipaddress.ip_address(address)
        number = int(port) if port.isascii() and port.isdigit() else 0
    except ValueError:
        raise ValueError("expected address:port, with the address as digits") from None
    if not 0 < number < 65536:
        raise ValueError("expected address:port, with a port from 1 to 65535")
    return address, number


class NameServers:
    """The name servers, and the limit on questions to them."""

    def __init__(self, config: DnsConfig, effects: Effects) -> None:
        """Ask nobody yet.

        Raises:
            ValueError: ``config.nameserver`` is no address with a port.
        """
        self._config = config
        self._effects = effects
        self._configured = [parse_nameserver(config.nameserver)] if config.nameserver else []
        self._servers: list[tuple[str, int]] = []
        self._slots = asyncio.Semaphore(QUERIES_MAX)

    @property
    def trusted(self) -> bool:
        """There is a name server whose word on DNSSEC counts."""
        return any(self._trusts(server) for server in self._server_list())

    def _trusts(self, server: tuple[str, int]) -> bool:
        return self._config.trust_ad or is_loopback(server[0])

    def forget(self) -> None:
        """Read the system's configuration again before the next question."""
        self._servers = []

    async def ask(self, name: str, rdtype: str, *, deadline: float) -> Answer:
        """Look a name up, following aliases.

        Args:
            name: a domain name, A-labels.
            rdtype: ``MX``, ``A``, ``AAAA``, ``TLSA`` or ``TXT``.
            deadline: instant on the event loop's clock after which the answer is RETRY.
        """
        import dns.exception
        import dns.name

        try:
            asked = dns.name.from_text(_check_name(name))
        except (dns.exception.DNSException, ValueError, UnicodeError):
            return Answer(AnswerStatus.BAD_NAME, text="Invalid domain name")
        try:
            async with asyncio.timeout_at(deadline):
                return await self._follow(asked, rdtype, deadline)
        except TimeoutError:
            return _retry("Name server did not answer")

    async def _follow(self, name: "dns.name.Name", rdtype: str, deadline: float) -> Answer:
        """Ask until there are records, or too many aliases."""
        import dns.flags
        import dns.rdataclass
        import dns.rdatatype

        wanted = dns.rdatatype.from_text(rdtype)
        seen = {name}
        ttl_s = float("inf")
        secure = True
        while True:
            response, text, trusted = await self._query(name, rdtype, deadline)
            if response is None:
                return _retry(text)
            secure = secure and trusted and bool(response.flags & dns.flags.AD)
            end, ttl = _end_of_aliases(response, name, wanted, seen, self._config.cname_max)
            if end is None:
                return _retry("Too many aliases")
            ttl_s = min(ttl_s, ttl)
            if response.rcode() == 3:
                return Answer(AnswerStatus.NO_NAME, secure=secure)
            records = response.get_rrset(response.answer, end, dns.rdataclass.IN, wanted)
            if records:
                ttl_s = min(ttl_s, records.ttl)
                return Answer(AnswerStatus.OK, tuple(records), ttl_s, secure=secure)
            if end == name:
                return Answer(AnswerStatus.NO_DATA, secure=secure)
            # The server gave the alias but not what it stands for: an authoritative server that
            # does not recurse.
            name = end

    async def _query(
        self, name: "dns.name.Name", rdtype: str, deadline: float
    ) -> "tuple[dns.message.Message | None, str, bool]":
        """Return a response that is NOERROR or NXDOMAIN, or None with the reason; and whether to trust its AD.

        Goes on while a server may still answer. Why look at the deadline, when the caller cancels
        us at it? It does so once, and dnspython waits with asyncio.wait_for, which before Python
        3.12 loses a cancellation that comes in the same turn of the loop as its result.
        """
        loop = asyncio.get_running_loop()
        reason = "Name server did not answer"
        edns: int | bool = 0
        servers = self._server_list()
        while True:
            again = False
            for server in servers:
                async with self._slots:
                    response, text = await self._query_one(server, name, rdtype, edns)
                if response is None:
                    reason = text
                    again = True
                    continue
                rcode = int(response.rcode())
                if _is_referral(response):
                    reason = "Name server does not know"
                    continue
                if rcode in (0, 3):
                    return response, "", self._trusts(server)
                if rcode in (1, 4) and edns is not False:
                    edns = False  # FORMERR, NOTIMP: older than EDNS (RFC 6891 7)
                    again = True
                    continue
                reason = f"Name server said {_RCODES.get(rcode, str(rcode))}"
            if not again or loop.time() >= deadline:
                return None, reason, False

    async def _query_one(
        self, server: tuple[str, int], name: "dns.name.Name", rdtype: str, edns: int | bool
    ) -> "tuple[dns.message.Message | None, str]":
        import dns.asyncbackend
        import dns.asyncquery
        import dns.exception
        import dns.flags
        import dns.message

        address, port = server
        timeout_s = self._config.timeout_s
        payload = UDP_PAYLOAD if edns is not False else 0
        query = dns.message.make_query(name, rdtype, use_edns=edns, payload=payload)
        query.flags |= dns.flags.AD  # RFC 6840 5.7: tell us whether it was validated
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def ask() -> dns.message.Message:
            # ignore_errors: what does not answer our question (wrong id, wrong name, garbage) may
            # be forged, and the true answer may still come.
            response, _ = await dns.asyncquery.udp_with_fallback(
                query,
                address,
                timeout_s,
                port,
                ignore_unexpected=True,
                ignore_errors=True,
                backend=dns.asyncbackend.get_backend("asyncio"),
            )
            return response

        try:
            # Once more bounded, because the TCP attempt has a time-out of its own.
            async with asyncio.timeout(2 * timeout_s):
                return await self._effects.dns_query(ask, site="resolver"), ""
        except (dns.exception.Timeout, TimeoutError):
            return None, "Name server did not answer"
        except (dns.exception.DNSException, EOFError):
            reason = "Name server answered nonsense"
        except OSError:
            reason = "Name server can't be reached"
        # A failure that comes at once must not make this a busy loop.
        await asyncio.sleep(max(0.0, min(1.0, timeout_s / 5) - (loop.time() - started)))
        return None, reason

    def _server_list(self) -> list[tuple[str, int]]:
        if self._configured:
            return self._configured
        if not self._servers:
            try:
                text = self._effects.read_file(RESOLV_CONF, site="resolver").decode("latin-1")
            except OSError:
                text = ""
            self._servers = system_servers(text) or [("127.0.0.1", 53)]
        return self._servers


_RCODES = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED", 8: "NXRRSET", 9: "NOTAUTH"}


def _is_referral(response: "dns.message.Message") -> bool:
    """Whether a server neither knows nor asks others: that is lame, and no word on whether there are records.

    RFC 2308 2.2 tells referrals from NODATA by NS without SOA. glibc goes on to the next server, too (res_send.c,
    "referred query").
    """
    import dns.flags
    import dns.rdatatype

    kinds = {each.rdtype for each in response.authority}
    return (
        not response.rcode()
        and not response.answer
        and not response.flags & (dns.flags.AA | dns.flags.RA)
        and dns.rdatatype.NS in kinds
        and dns.rdatatype.SOA not in kinds
    )


def _retry(text: str) -> Answer:
    return Answer(AnswerStatus.RETRY, text=text)


def _check_name(name: str) -> str:
    """Return a name that cannot mean something else in the DNS's text form."""
    if (
        not name
        or not name.isascii()
        or not name.isprintable()
        or any(c in name for c in '\\"@ ()$;')
    ):
        raise ValueError("not a host name")
    return name if name.endswith(".") else name + "."


def system_servers(text: str) -> list[tuple[str, int]]:
    """Return what resolv.conf(5) names, as the C library reads it."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            servers.append((words[1], 53))
    return servers[:SYSTEM_SERVERS_MAX]


def _end_of_aliases(
    response: "dns.message.Message",
    name: "dns.name.Name",
    wanted: Any,
    seen: "set[dns.name.Name]",
    aliases_max: int,
) -> "tuple[dns.name.Name | None, float]":
    """Follow the aliases of one response; ``seen`` grows by them.

    Returns:
        The last name and the shortest TTL on the way; None if there is a loop or are too many.
    """
    import dns.rdataclass
    import dns.rdatatype

    ttl_s = float("inf")
    section, internet = response.answer, dns.rdataclass.IN
    while not response.get_rrset(section, name, internet, wanted):
        aliases = response.get_rrset(section, name, internet, dns.rdatatype.CNAME)
        if not aliases:
            break
        ttl_s = min(ttl_s, aliases.ttl)
        name = aliases[0].target
        if name in seen or len(seen) > aliases_max:
            return None, ttl_s
        seen.add(name)
    return name, ttl_s
