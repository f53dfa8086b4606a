"""`sim perfetto`: a run as a timeline."""

from pathlib import Path
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from sim.commands.options import fail


def export_timeline(
    run_name: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, a trace.jsonl, or `latest`.")
    ] = "latest",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="By default timeline.json.gz beside the trace."),
    ] = None,
    envelopes: Annotated[
        int, typer.Option(metavar="N", min=0, help="Envelopes drawn, the first ones.")
    ] = 2000,
    representation: Annotated[
        str, typer.Option(help="Which of the run's servers; the first by default.")
    ] = "",
) -> None:
    """Draw a run as a timeline that ui.perfetto.dev opens: connections, transactions, envelopes, gauges."""
    from sim.perfetto import export
    from sim.replay import trace_of

    try:
        trace = trace_of(run_name, representation)
        path = out or trace.with_name("timeline.json.gz")
        count = export(trace, path, envelopes_max=envelopes)
    except ConfigError as error:
        raise fail(error) from None
    print(f"{count:,} events written to {path}; open it at https://ui.perfetto.dev")
