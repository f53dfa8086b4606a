"""The `sim` command: its parts are in `sim.commands`, a file for each, of its name."""

from typing import Any

import typer
from typer.core import TyperGroup

from sim.commands.calibrate import calibrate_run
from sim.commands.compare import compare
from sim.commands.layouts import list_layouts
from sim.commands.perfetto import export_timeline
from sim.commands.replay import replay
from sim.commands.run import run
from sim.commands.scenarios import list_scenarios
from sim.commands.validate import validate_model
from sim.ending import catch_signals, interrupted
from sim.sweepcommand import sweep


class _Commands(TyperGroup):
    """All commands: whichever is interrupted says so."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run one."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            interrupted("sim")


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    help="A model of the server: the same decisions, with calibrated costs, in seconds instead of minutes.",
)

app.command()(run)
app.command()(compare)
app.command()(replay)
app.command("calibrate")(calibrate_run)
app.command("perfetto")(export_timeline)
app.command()(sweep)
app.command("validate")(validate_model)
app.command("scenarios")(list_scenarios)
app.command("layouts")(list_layouts)


def main() -> None:
    """Run the command."""
    catch_signals()
    app()


if __name__ == "__main__":
    main()
