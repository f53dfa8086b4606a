"""The programs' commands and options, from what they parse."""

import argparse
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

import typer.main

APART: Final = {"testbed world": ("testbed.world.world", "testbed.world.control")}
"""Commands that hand their words on, and the modules whose ``parser()`` reads them."""


def commands_page(*programs: str) -> str:
    """Return the page of some programs' commands.

    They are loaded by name: the server knows nothing of the model and the bench, only this page does.
    """
    made = [
        "# Commands\n\nExit status everywhere: 0 done, 1 it could not be done or does not hold, 2 asked wrongly, 130 interrupted.\n"
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
        own = "".join(_parameters(command)[1])
        usage = f"`{words} [OPTIONS]`: " if own else ""
        yield f"\n## {words}\n\n{usage}{help_text}\n" + (own and f"\n{own}")
        for name, one in inner.items():
            yield from _command(one, f"{words} {name}")
        return
    arguments, options = _parameters(command)
    if words in APART:
        yield from _parsed_apart(words, help_text)
        return
    heading = f"\n{'##' if top else '###'} {words}"
    usage = " ".join(
        [words, *arguments, "[OPTIONS]" if len(options) > len(arguments) else ""]
    ).strip()
    yield f"{heading}\n\n`{usage}`: {help_text}\n\n" + "".join(options)


def _parameters(command: Any) -> tuple[list[str], list[str]]:
    """Return a command's arguments as its usage shows them, and a line for each parameter."""
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
    return arguments, options


def _parsed_apart(words: str, help_text: str) -> Iterator[str]:
    """Yield a command that hands its words on to parsers of its own, verbs included."""
    first, *others = (import_module(module).parser() for module in APART[words])
    yield f"\n### {words}\n\n" + _parsed(first, words, help_text)
    for other in others:
        for action in other._subparsers._group_actions:
            helps = {each.dest: each.help for each in action._choices_actions}
            for verb, one in action.choices.items():
                yield f"\n### {words} {verb}\n\n" + _parsed(one, f"{words} {verb}", helps[verb])


def _parsed(parser: argparse.ArgumentParser, words: str, help_text: str) -> str:
    arguments, options = [], []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        value = action.metavar or action.dest.upper()
        if not action.option_strings:
            arguments.append(f"{value}..." if action.nargs == "+" else f"{value}")
            options.append(f"- `{value}`: {action.help}\n" if action.help else "")
            continue
        named = ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")
        options.append(f"- `{named}`: {action.help}\n")
    return f"`{' '.join([words, *arguments, '[OPTIONS]'])}`: {help_text}\n\n" + "".join(options)
