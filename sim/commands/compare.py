"""`sim compare`: the same messages under several settings."""

import json
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from sim import scenario as scenarios
from sim.commands.bars import messages_bar
from sim.commands.options import AsJson, CostsFile, Overrides, fail


def compare(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="A name, or a file.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Values of a key, or of `layout`; may be repeated."),
    ] = None,
    overrides: Overrides = None,
    costs: CostsFile = None,
    seed: Annotated[int | None, typer.Option(help="In place of the scenario's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario under every combination of settings, over the same messages, and print a row for each.

    Without --vary, a scenario with local users compares the policies for pending deliveries by representation.
    """
    from sim import compare as comparing
    from sim import costs as costing

    said = list(overrides or [])
    if seed is not None:
        said.append(f"seed={seed}")
    try:
        wanted = comparing.variations(vary or [], scenarios.load(name, said))
        found = costing.load(costs) if costs is not None else costing.Costs()
        with messages_bar(comparing.messages(name, said, wanted)) as advance:
            rows = list(comparing.compare(name, said, wanted, costs=found, progress=advance))
    except ConfigError as error:
        raise fail(error) from None
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], allow_nan=False))
    else:
        comparing.table(rows)
