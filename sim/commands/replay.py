"""`sim replay`: what would a recorded run, or the mail in a log, have been with other settings?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from sim.commands.options import AsJson, CostsFile, Overrides, fail


def replay(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|LOG...",
            help="A run directory, or `latest`; or a mail log of Postfix, OpenSMTPD, Exim or this server: files, plain or"
            " compressed, in any order, or a directory of them.",
        ),
    ] = None,
    overrides: Overrides = None,
    representation: Annotated[
        str, typer.Option(help="Of a run: which of its servers; the first by default.")
    ] = "",
    kind: Annotated[
        str,
        typer.Option(help="Of a log: postfix, opensmtpd or exim; by default what it looks like."),
    ] = "",
    year: Annotated[
        int | None,
        typer.Option(min=1971, max=9998, help="Of a log whose lines do not say: of the first one."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Of a log that several wrote: whose lines to read; by default all."
        ),
    ] = "",
    main_cf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of Postfix's log: its main.cf, or what postconf -n prints."
        ),
    ] = None,
    costs: CostsFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of a log: takes a figure of the queue, .svg or .png."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask what a recorded run, or the mail in a log, would have been with other settings.

    Keys of --set are the server's: envelope=full, limits.mta.max_conn_per_host=2.
    """
    from sim import costs as costing
    from sim.logs.command import is_log, replay_log
    from sim.replay import replay as replay_run
    from sim.replay import table

    said = names or ["latest"]
    of_log = is_log(said)
    if not of_log and (len(said) > 1 or kind or year is not None or host or main_cf):
        problem = "is a run, not a log: one at a time, and without the options of logs"
        raise fail(ConfigError("replay", value=said[0], problem=problem))
    try:
        if of_log:
            show, found = replay_log(
                said,
                overrides or [],
                kind=kind,
                year=year,
                host=host,
                main_cf=main_cf,
                costs_file=costs,
                plot=plot,
            )
        else:
            found = replay_run(
                said[0],
                overrides or [],
                representation=representation,
                costs=costing.load(costs) if costs is not None else None,
            )
            show = table
    except ConfigError as error:
        raise fail(error) from None
    if as_json:
        print(json.dumps(found, allow_nan=False))
    else:
        show(found)
