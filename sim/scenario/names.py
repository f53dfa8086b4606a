"""What the small Internet of a scenario is called: hosts and their addresses, domains and their mail exchangers.

The scripted world binds and answers what is said here, and the model looks it up.
"""

from typing import Final, NamedTuple

from sim.scenario.experiment import Destination, Scenario

MX_PREFERENCE: Final = 10
"""All hosts of a destination are equally preferred, so that they share its mail."""


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
