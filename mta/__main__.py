"""The `mta` command: serve, check, config."""

import asyncio
import json
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from mta.config import Config
from mta.core.settings import ConfigError, build, changed, flatten
from mta.effects import Effects

EX_SOFTWARE = 70
"""Exit status: a fault of ours. sysexits.h."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="An MTA for a test-bed: relays and delivers, durable, traceable, never beyond loopback unless told to.",
)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="TOML file; defaults without it."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key; may be repeated."),
]


def load(path: Path | None, overrides: list[str] | None) -> tuple[Config, str]:
    """Return the configuration and the name to blame for it.

    Raises:
        ConfigError: the file can't be read, or says something that can't be used.
    """
    if path is None:
        return build(Config, {}, source="defaults", overrides=overrides or ()), "defaults"
    try:
        data = tomllib.loads(Effects().read_file(path, site="config").decode())
    except OSError as error:
        raise ConfigError(str(path), problem=(error.strerror or "can't be read").lower()) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), problem=f"not TOML: {error}") from None
    return build(Config, data, source=str(path), overrides=overrides or ()), str(path)


def _fail(error: ConfigError) -> typer.Exit:
    print(f"mta: {error}", file=sys.stderr)
    return typer.Exit(2)


@app.command()
def serve(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Accept mail, relay and deliver it, until SIGTERM (drains) or a second one (stops at once).

    Exit status 2: the configuration can't be used. 70: a fault of ours ended it, and it can be started again.
    """
    try:
        settings, source = load(config, overrides)
        serve_until_told(settings, source)
    except ConfigError as error:
        raise _fail(error) from None


def serve_until_told(settings: Config, source: str, effects: Effects | None = None) -> None:
    """Run a server until a signal ends it.

    Args:
        settings: its configuration.
        source: where that is from, for errors.
        effects: its way to the world; None for the usual one.

    Raises:
        ConfigError: the configuration can't be used.
        typer.Exit: a fault of ours ended it; status 70.
    """
    # `mta config` need not load the server.
    from mta.accepteffects import AcceptEffects
    from mta.server import MtaServer, ServerFailedError

    async def run() -> None:
        try:
            await MtaServer(settings, source=source, effects=effects).run()
        except ServerFailedError as error:
            print(f"mta: {error}", file=sys.stderr)
            raise typer.Exit(EX_SOFTWARE) from None

    with suppress(OSError, ValueError):
        AcceptEffects(Effects()).raise_descriptors_max()
    # Why this? Two threads share the interpreter; the default of 5 ms is what one commit takes.
    sys.setswitchinterval(0.0005)
    try:
        import uvloop
    except ImportError:
        asyncio.run(run())
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())


@app.command()
def check(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Say whether a configuration can be used; exit status 2 and one line if not.

    The files that it names are read, too: certificates, passwords, tables. Ports and the queue are left alone.
    """
    from mta import readings

    try:
        settings, source = load(config, overrides)
        asyncio.run(readings.check(settings, source, Effects(allow=settings.relay.allow)))
    except ConfigError as error:
        raise _fail(error) from None
    print(f"{source}: ok")


@app.command("config")
def show_config(
    config: ConfigFile = None,
    overrides: Overrides = None,
    only_changed: Annotated[
        bool, typer.Option("--changed", help="Only what differs from the defaults.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print every key with its value, as `postconf` does; with --changed as `postconf -n`."""
    try:
        settings, _ = load(config, overrides)
    except ConfigError as error:
        raise _fail(error) from None
    values = changed(settings, Config()) if only_changed else flatten(settings)
    if as_json:
        print(json.dumps(values, default=str))
        return
    for key, value in values.items():
        print(f"{key} = {json.dumps(value, default=str)}")


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
