"""A scenario written as TOML, so that a run directory says what was run."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sim.scenario.experiment import Scenario


def to_dict(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario as plain tables, lists and scalars: what its file would say in full."""
    return dataclasses.asdict(scenario)


def to_toml(scenario: Scenario) -> str:
    """Return the text of a file that `load` reads back as an equal scenario; for run directories."""
    return "\n".join(_table((), to_dict(scenario))).lstrip("\n") + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: scalars first, since a header ends the table before it."""
    later: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) or _is_tables(value):
            later.append((key, value))
        else:
            yield f"{_key(key)} = {_inline(value)}"
    for key, value in later:
        inner = (*path, key)
        name = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            yield from ("", f"[{name}]")
            yield from _table(inner, value)
        else:
            for each in value:
                yield from ("", f"[[{name}]]")
                yield from _table(inner, each)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _inline(key)


def _inline(value: object) -> str:
    """Return a value as TOML writes it on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(map(_character, value)) + '"'
        case list() | tuple():
            return "[" + ", ".join(map(_inline, value)) + "]"
        case Mapping():
            return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }"
        case _:
            # What a scenario is built from came out of TOML or is a field above.
            raise AssertionError(f"not a TOML value: {value!r}")


def _character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    return c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}"
