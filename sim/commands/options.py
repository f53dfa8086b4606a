"""Options that several commands have, and how one ends that was asked for what can't be."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mta.core.settings import ConfigError

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
CostsFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration", "--costs", metavar="FILE", help="What `sim calibrate` has written."
    ),
]


def fail(error: ConfigError) -> typer.Exit:
    """Say in one line what the operator can change; return what to raise."""
    print(f"sim: {error}", file=sys.stderr)
    return typer.Exit(2)
