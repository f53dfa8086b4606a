"""Every line that the server can log, found in its source: calls of ``info`` and ``warn``, and the core's notes.

What varies stands in angle brackets, named like the variable or the attribute.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mta.effects import Effects

_WRITERS: Final = frozenset(
    {"info", "_info", "warn", "debug", "log", "_log", "note", "_note", "Note"}
)
"""Names of functions and methods that take a line of the log."""
_MAKERS: Final = frozenset({"delivery_line", "mda_line"})
"""Names of functions that return one."""
_PART: Final = re.compile(r"<[^<>]*>")
_WORD: Final = re.compile(r"[a-z]{3}")


def lines_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield (level, line) for each line of the log that a module writes, in its order."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in _MAKERS:
            for one in ast.walk(node):
                if isinstance(one, ast.Return) and one.value is not None:
                    yield "info", _template(one.value)
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = _last(node.func)
        text = _template(node.args[0])
        # A line is some words; a name alone is passed on from elsewhere, and found there.
        if name in _WRITERS and _WORD.search(_PART.sub("", text)):
            yield ("warn" if name in ("warn", "note", "_note") else "info"), text


def _template(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_template, parts))
        case ast.FormattedValue(value=value):
            return f"<{_name(value)}>"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
        case ast.IfExp(body=body, orelse=other):
            return (
                f"[{_template(body)}|{_template(other)}]"
                if _template(other)
                else f"[{_template(body)}]"
            )
    return f"<{_name(node)}>"


def _last(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name() | ast.Attribute():
            return _last(node).lstrip("_").lower()
        case ast.Call(func=func, args=[first, *_]):
            name = _last(func)
            return name.removeprefix("show_") if name.startswith("show_") else _name(first)
        case ast.Call(func=func):
            return _last(func).strip("_") or "value"
        case ast.BoolOp(values=[first, *_]):
            return _name(first)
        case ast.BinOp(left=left):
            return _name(left)
        case ast.Subscript(value=value):
            return _name(value)
        case ast.IfExp(body=body, orelse=other):
            if isinstance(body, ast.Constant) and isinstance(other, ast.Constant):
                return f"{body.value!s}|{other.value!s}"
            return _name(body)
    return "value"


def log_page() -> str:
    """Return the page of all log lines, by module."""
    root = Path(__file__).parent.parent
    effects = Effects()
    made = [
        "# Log lines\n\n",
        "Each line: time, host, `mta[pid]:`, then one of these. `<x>` varies; `[a|b]` is one or the other. Lines of\n",
        "warnings begin with `warn:`. Lines about a connection begin with its session, about an envelope have its `evpid`:\n",
        "search for either. What a text of the network would do to a terminal is escaped.\n",
    ]
    for path in sorted(root.rglob("*.py"), key=lambda one: one.relative_to(root).as_posix()):
        if path.is_relative_to(root / "reference"):
            continue
        source = effects.read_file(path, site="reference").decode()
        found = dict.fromkeys(lines_of(source))
        if found:
            made.append(f"\n## `mta/{path.relative_to(root).as_posix()}`\n\n")
            for level, text in found:
                mark = "warn: " if level == "warn" and not text.startswith("warn:") else ""
                shown = f"{mark}{text}".replace("`", "'").replace("\n", " ")
                made.append(f"- `{shown}`\n")
    return "".join(made)
