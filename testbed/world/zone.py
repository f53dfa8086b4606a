"""What the scripted Internet's names lead to: a zone as data, and the question that it answers.

Names that are not in the zone do not exist. Nothing here looks anything up elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.MX
import dns.rrset

from sim.behaviours.dns import DnsAnswer, DnsVerdict
from sim.scenario import Scenario, domains_of, mx_records

Zone = Mapping[str, Mapping[str, Sequence[str]]]
"""Name in lower case without a final dot -> type as ``MX`` -> data as in a zone file, as ``10 mx0.a.test.``."""

CNAMES_MAX: Final = 16
"""Aliases that one answer follows; a loop ends here."""

NEGATIVE_TTL_S: Final = 60
"""How long a resolver may keep that something is not there (RFC 2308: the SOA's last number)."""


class Found(NamedTuple):
    """What the zone says to one question."""

    rcode: dns.rcode.Rcode
    answer: list[dns.rrset.RRset]


def zone_of(scenario: Scenario) -> dict[str, dict[str, list[str]]]:
    """Return mail exchangers of every domain and the address of every host.

    Domains of one destination share their records, so that a million domains cost their names.
    """
    zone: dict[str, dict[str, list[str]]] = {}
    shared: dict[int, dict[str, list[str]]] = {}
    for domain, answers in mx_records(scenario).items():
        records = shared.get(id(answers))
        if records is None:
            records = {"MX": [f"{each.preference} {each.host}." for each in answers]}
            shared[id(answers)] = records
            for each in answers:
                zone.setdefault(each.host, {})["A"] = [each.address]
        zone.setdefault(domain, records)
    return zone


def destinations_of(scenario: Scenario) -> dict[str, int]:
    """Return the index of the destination that each name belongs to: its domains and its hosts."""
    found: dict[str, int] = {}
    for i, destination in enumerate(scenario.destinations):
        found.update(dict.fromkeys(domains_of(destination), i))
        found.update({f"mx{j}.{destination.domain}": i for j in range(destination.hosts)})
    return found


def key_of(name: dns.name.Name) -> str:
    """Return a name as zones have it."""
    return name.to_text(omit_final_dot=True).lower()


def look_up(zone: Zone, name: dns.name.Name, kind: dns.rdatatype.RdataType, ttl_s: int) -> Found:
    """Answer one question from a zone, following aliases inside it (RFC 1034 4.3.2)."""
    answer: list[dns.rrset.RRset] = []
    seen = 0
    while True:
        records = zone.get(key_of(name))
        if records is None:
            # An alias that leads out of the zone is an answer; nothing at all is NXDOMAIN.
            rcode = dns.rcode.NOERROR if answer else dns.rcode.NXDOMAIN
            return Found(rcode, answer)
        wanted = records.get(dns.rdatatype.to_text(kind), ())
        alias = records.get("CNAME", ())
        if wanted or not alias or kind == dns.rdatatype.CNAME:
            if wanted:
                answer.append(rrset(name, kind, ttl_s, wanted))
            return Found(dns.rcode.NOERROR, answer)
        answer.append(rrset(name, dns.rdatatype.CNAME, ttl_s, alias))
        seen += 1
        if seen > CNAMES_MAX:
            return Found(dns.rcode.NOERROR, answer)
        name = dns.name.from_text(alias[0])


def rrset(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, ttl_s: int, data: Sequence[str]
) -> dns.rrset.RRset:
    """Return records of one name and type."""
    return dns.rrset.from_text_list(name, ttl_s, dns.rdataclass.IN, kind, list(data))


def bend(
    found: Found, name: dns.name.Name, kind: dns.rdatatype.RdataType, verdict: DnsVerdict
) -> Found:
    """Return what is said instead of what the zone says.

    Servers that fail do so for every name; a missing or null MX is about mail exchangers only.
    """
    how, ttl_s = verdict.answer, verdict.ttl_s
    if how is DnsAnswer.SERVFAIL:
        return Found(dns.rcode.SERVFAIL, [])
    if how is DnsAnswer.REFUSED:
        return Found(dns.rcode.REFUSED, [])
    if how is DnsAnswer.NXDOMAIN:
        return Found(dns.rcode.NXDOMAIN, [])
    if how is DnsAnswer.LAME:
        return Found(dns.rcode.NOERROR, [])
    if how is DnsAnswer.ALIAS and found.answer and kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
        last = found.answer[-1]
        true = dns.name.from_text(f"real.{last.name.to_text()}")
        alias = rrset(last.name, dns.rdatatype.CNAME, ttl_s, [true.to_text()])
        moved = rrset(true, kind, ttl_s, [item.to_text() for item in last])
        return Found(found.rcode, [*found.answer[:-1], alias, moved])
    if kind == dns.rdatatype.MX:
        if how is DnsAnswer.NODATA:
            return Found(dns.rcode.NOERROR, [])
        if how is DnsAnswer.NULL_MX:
            return Found(dns.rcode.NOERROR, [rrset(name, kind, ttl_s, ["0 ."])])
        if how is DnsAnswer.MANY_MX and found.answer:
            more = [
                f"{verdict.preference} x{n}.{name.to_text()}" for n in range(verdict.exchangers)
            ]
            records = [item.to_text() for item in found.answer[-1]]
            last = rrset(found.answer[-1].name, kind, ttl_s, [*records, *more])
            return Found(found.rcode, [*found.answer[:-1], last])
    return found


def soa(ttl_s: int = NEGATIVE_TTL_S) -> dns.rrset.RRset:
    """Return what goes with a negative answer, so that resolvers know how long it holds (RFC 2308)."""
    data = f"ns.test. hostmaster.test. 1 3600 600 86400 {ttl_s}"
    return rrset(dns.name.from_text("test."), dns.rdatatype.SOA, ttl_s, [data])
