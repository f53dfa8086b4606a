"""The hosts and the name servers of a scenario: the same for the sink and the model."""

import random
from collections.abc import Mapping, Sequence

from sim.behaviours.base import Behaviour
from sim.behaviours.maker import Maker
from sim.behaviours.nameserver import NameServer
from sim.distributions import random_stream
from sim.profiles import Composer
from sim.remote.host import RemoteHost
from sim.scenario import Scenario, addresses


def build_host(
    behaviours: Sequence[Mapping[str, object]],
    *,
    rng: random.Random,
    source: str = "scenario",
    key: str = "behaviours",
) -> RemoteHost:
    """Return a host in its first state.

    Args:
        behaviours: As `sim.scenario.Destination.behaviours`.
        rng: Seeds the host's streams; not kept.
        source: The scenario's file, for errors.
        key: Where in the file the behaviours are, for errors.

    Raises:
        ConfigError: unknown kind, unknown parameter, or a value that makes no sense.
    """
    maker = Maker(rng)
    return RemoteHost(maker.make(behaviours, source=source, key=key), maker)


def build_hosts(
    scenario: Scenario, *, replication: int = 0, source: str = "scenario"
) -> dict[str, RemoteHost]:
    """Return every host of a scenario by its address; the same for the sink and the model.

    Raises:
        ConfigError: a behaviour of a destination is wrong.
    """
    composer = Composer(scenario, replication=replication)
    hosts: dict[str, RemoteHost] = {}
    for each in addresses(scenario):
        rng = random_stream(scenario.seed, f"remote {each.address}", replication)
        number = int(each.address.rpartition(".")[2]) - 1
        key = f"destinations.{each.destination}"
        maker = Maker(rng)
        plan = _made(composer.plan(each.destination, number), maker, source=source, key=key)
        hosts[each.address] = host = RemoteHost(plan[0][1], maker)
        if len(plan) > 1:
            host.plan(plan[1:])
    return hosts


def build_name_servers(
    scenario: Scenario, *, replication: int = 0, source: str = "scenario"
) -> list[NameServer]:
    """Return the name server of every destination, in the scenario's order.

    Raises:
        ConfigError: a behaviour of a destination is wrong.
    """
    composer = Composer(scenario, replication=replication)
    servers: list[NameServer] = []
    for number in range(len(scenario.destinations)):
        rng = random_stream(scenario.seed, f"name server {number}", replication)
        key = f"destinations.{number}"
        maker = Maker(rng)
        plan = _made(composer.plan(number, None), maker, source=source, key=key)
        servers.append(NameServer.of(plan, maker))
    return servers


def _made(
    plan: Sequence[tuple[float, Sequence[Mapping[str, object]]]],
    maker: Maker,
    *,
    source: str,
    key: str,
) -> list[tuple[float, list[Behaviour]]]:
    """Make the behaviours of a plan."""
    result: list[tuple[float, list[Behaviour]]] = []
    for turn, (at, tables) in enumerate(plan):
        here = f"{key}.changes.{turn - 1}.behaviours" if turn else f"{key}.behaviours"
        result.append((at, maker.make(tables, source=source, key=here)))
    return result
