"""The programs' commands and options, from what they parse."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer.main


def commands_page(*programs: str) -> str:
    """Return the page of some programs' commands.

    They are loaded by name: the server knows nothing of the model and the bench, only this page does.
    """
    made = [
        "# Commands\n\nExit status everywhere: 0 done, 1 it could not be done, 2 asked wrongly.\n"
    ]
    for program in programs:
        app = import_module(f"{program}.__main__").app
        made.extend(_command(typer.main.get_command(app), program, top=True))
    return "".join(made)


def _command(command: Any, words: str, *, top: bool = False) -> Iterator[str]:
    """Yield a command and, below it, its commands."""
    help_text = " ".join(inspect.cleandoc(command.help or "").split())
    inner = getattr(command, "commands", None)
    if inner is not None:
        yield f"\n## {words}\n\n{help_text}\n"
        for name, one in inner.items():
            yield from _command(one, f"{words} {name}")
        return
    arguments, options = [], []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        metavar = parameter.metavar or parameter.name.upper()
        text = " ".join((getattr(parameter, "help", None) or "").split())
        if parameter.param_type_name == "argument":
            shown = metavar if parameter.required else f"[{metavar}]"
            arguments.append(shown)
            options.append(f"- `{metavar}`: {text}\n" if text else "")
            continue
        value = "" if parameter.is_flag else f" {metavar}"
        default = parameter.default
        if parameter.is_flag or default in (None, "", (), []) or callable(default):
            default_text = ""
        else:
            default_text = f" Default: `{default}`."
        options.append(f"- `{', '.join(parameter.opts)}{value}`: {text}{default_text}\n")
    heading = f"\n{'##' if top else '###'} {words}"
    usage = " ".join(
        [words, *arguments, "[OPTIONS]" if len(options) > len(arguments) else ""]
    ).strip()
    yield f"{heading}\n\n`{usage}`: {help_text}\n\n" + "".join(options)
