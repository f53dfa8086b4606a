"""What a scenario can say, as a page: its keys and the behaviours of hosts, from their dataclasses.

The model is loaded by name: the server knows nothing of it, only this page does.
"""

from collections.abc import Iterator
from importlib import import_module

from mta.reference.keys import Key, entries, keys, sections


def scenarios_page() -> str:
    """Return the page of all keys of a scenario, and of all kinds of behaviours."""
    scenario = import_module("sim.scenario").Scenario
    return (
        "# Scenarios\n\n"
        "One TOML file: what is sent, to whom, how those behave, and with what server. The bench, the model and the load read the\n"
        "same. In parentheses: the default. `[]` is each item of a list of tables (`[[destinations]]`), `NAME` a name of your choice,\n"
        "and `--set KEY=VALUE` changes one key: `load.rate=400`, `destinations.0.hosts=2`. Those that ship are in `sim/scenarios`,\n"
        "and `testbed scenarios --long` says what they ask.\n"
        + "".join(sections(_by_table(list(keys(scenario))), units=False))
        + "\n# Behaviours\n\n"
        'Of the hosts of a destination: `behaviours = [{ kind = "latency", delay_s = 0.05 }, { kind = "outage", to_s = 18.0 }]`. All apply;\n'
        '`reply = "gmail/rate"` in one that refuses puts a provider\'s words there (`testbed profiles --replies`).\n'
        + "".join(_behaviours())
    )


def _by_table(found: list[Key]) -> list[Key]:
    """Return keys with those of a table together, tables as they came first."""
    tables = list(dict.fromkeys(key.path.rpartition(".")[0] for key in found))
    return sorted(found, key=lambda key: tables.index(key.path.rpartition(".")[0]))


def _behaviours() -> Iterator[str]:
    for kind, parameters in import_module("sim.behaviours").KINDS.items():
        text = " ".join((parameters.__doc__ or "").split("\n\n")[0].split())
        text = text.removeprefix(f"``{kind}``: ")
        yield f"\n## `{kind}`\n\n{text[:1].upper()}{text[1:]}\n\n" + "".join(
            entries(list(keys(parameters)), units=False)
        )
