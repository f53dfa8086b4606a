"""`testbed peers`: other mail servers on this machine, without installing them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed import packages
from testbed.children import RunError
from testbed.comparecommand import peers_command
from testbed.ending import catch_signals, fail, interrupted

peers_app = typer.Typer()
peers_app.callback(invoke_without_command=True)(peers_command)

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir", metavar="DIR", help="Where they are kept: $TESTBED_PEERS, or else var/peers."
    ),
]


@peers_app.command("install")
def install_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="postfix, opensmtpd, exim; all.")
    ] = None,
    directory: Directory = None,
) -> None:
    """Download Debian's packages and unpack each into a tree of its own; the system is not touched."""
    catch_signals()
    try:
        for name in names or ():
            packages.check_name(name)
        for name in names or packages.PACKAGE_OF:
            packages.install(name, directory, say=typer.echo)
    except RunError as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted()


@peers_app.command("list")
def list_command(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which there are, and how to get the others."""
    found = [packages.find(name, directory) for name in packages.PACKAGE_OF]
    if as_json:
        rows = [{**peer._asdict(), "tree": str(peer.tree) if peer.tree else None} for peer in found]
        typer.echo(json.dumps(rows))
        return
    for peer in found:
        if peer.tree is not None:
            where = f"{peer.version}  {peer.tree}"
        elif peer.is_here:
            where = "installed on this machine"
        else:
            where = f"not here: {peer.how}"
        typer.echo(f"{peer.name:<10} {where}")
