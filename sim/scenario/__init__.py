"""What an experiment is: a load, a small Internet, a server's settings. Data only.

The bench, the load generator, the scripted world and the model read the same scenario, so that all
of them mean the same experiment. Nothing here draws, waits or connects. Files are TOML; those that
ship are in ``sim/scenarios`` and are known by name.

`traffic` is what is sent, `experiment` the whole, `files` reads and `tomltext` writes it, `names` are its
hosts, domains and addresses. Others import from here.
"""

from sim.scenario.experiment import (
    DESTINATIONS_MAX,
    HOSTS_MAX,
    VALUES_MAX,
    Destination,
    Scenario,
)
from sim.scenario.files import (
    available,
    load,
    parse,
)
from sim.scenario.names import (
    MX_PREFERENCE,
    HostAddress,
    MxAnswer,
    addresses,
    destination_of,
    domains_of,
    mx_records,
    sender_domain,
)
from sim.scenario.tomltext import (
    to_dict,
    to_toml,
)
from sim.scenario.traffic import (
    MESSAGES_MAX,
    RECIPIENTS_MAX,
    SIZE_MAX,
    SIZE_MIN,
    SOURCES_MAX,
    Load,
    Recipients,
    Sizes,
)

__all__ = [
    "DESTINATIONS_MAX",
    "HOSTS_MAX",
    "MESSAGES_MAX",
    "MX_PREFERENCE",
    "RECIPIENTS_MAX",
    "SIZE_MAX",
    "SIZE_MIN",
    "SOURCES_MAX",
    "VALUES_MAX",
    "Destination",
    "HostAddress",
    "Load",
    "MxAnswer",
    "Recipients",
    "Scenario",
    "Sizes",
    "addresses",
    "available",
    "destination_of",
    "domains_of",
    "load",
    "mx_records",
    "parse",
    "sender_domain",
    "to_dict",
    "to_toml",
]
