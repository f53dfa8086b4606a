"""The configuration as a page: every key with its default, its unit, what it is and where it comes from.

A key is a field of a settings dataclass; what it means is the docstring below it.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from mta.config import Config
from mta.core.limitchange import AT_START
from mta.core.settings import show

SOURCES: Final = re.compile(
    r"\b(Ours|OpenSMTPD|smtpd\.conf|smtpctl|Postfix|postconf|Exim|KumoMTA|qmail|Sendmail|Dovecot|haproxy|BIND|Linux"
    r"|POSIX|RFC \d+|argon2|limit\.c|mda\.c|MDA_\w+|HOLDQ_\w+|Varghese|SQLite|Python|OpenSSL|Mozilla)\b",
    re.IGNORECASE,
)
"""Where a default can come from. "Ours" is an answer too: then nobody need look for another."""

_UNIT_OF_NAME: Final = (
    (re.compile(r"_s$"), "seconds"),
    (re.compile(r"(^|_)bytes($|_)|_size$|_line$|^output_"), "bytes"),
    (re.compile(r"(_ratio|_at|hysteresis)$"), "share"),
    (re.compile(r"(^|_)port$"), "port"),
    (re.compile(r"_rate$"), "bytes/s"),
    (re.compile(r"^(seed|uid|gid)$"), "number"),
)
_NOUNS: Final = (
    "aliases", "addresses", "attempts", "challenges", "chunks", "cohorts", "commands", "connections", "deliveries",
    "depth", "descriptors", "destinations", "domains", "entries", "envelopes", "exchangers", "failures", "handshakes",
    "headers", "hops", "hosts", "iterations", "keys", "KiB", "lanes", "lines", "logins", "lookups", "mails", "messages", "nodes",
    "passes", "queries", "recipients", "records", "referrals", "retries", "rows", "seconds", "sessions", "signatures",
    "steps", "submissions", "subsystems", "threads", "times", "transactions", "tries", "users", "warnings", "bytes",
    "fields", "passwords", "characters", "digits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration."""

    path: str
    """``limits.smtp.max_rcpt``; NAME stands for a name that the operator chooses, ``[]`` for each item of a list."""
    hint: Any
    default: object
    """The value if nothing is said; `dataclasses.MISSING` if it must be said."""
    text: str
    """The docstring, on one line; empty if there is none."""
    table: str
    """What the docstring of its class says."""

    @property
    def is_number(self) -> bool:
        """It has an amount, and so a unit and a source."""
        return any(kind in (int, float) for kind in _alternatives(self.hint))

    @property
    def is_tunable(self) -> bool:
        """Its default was chosen by somebody, and so has a source; a port or a user's number is a fact."""
        name = self.path.rpartition(".")[2]
        return self.is_number and name not in ("seed", "uid", "gid") and not name.endswith("port")

    @property
    def unit(self) -> str:
        """Return what the value is measured in, or what else it is; empty if nobody can tell."""
        name = self.path.rpartition(".")[2]
        kinds = _alternatives(self.hint)
        if not self.is_number:
            return _kind_words(kinds)
        for pattern, unit in _UNIT_OF_NAME:
            if pattern.search(name):
                return unit
        found = [
            (match.start(), noun)
            for noun in _NOUNS
            if (match := re.search(rf"\b{noun}\b", self.text, re.IGNORECASE))
        ]
        return min(found)[1] if found else ""

    @property
    def source(self) -> str:
        """Return where the default comes from, or an empty text."""
        match = SOURCES.search(self.text) or SOURCES.search(self.table)
        return match[0] if match else ""


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for one in get_args(hint) if one is not types.NoneType)
    return (hint,)


def _kind_words(kinds: tuple[Any, ...]) -> str:
    words = []
    for kind in kinds:
        origin = get_origin(kind)
        if origin is Literal:
            words.append(
                " or ".join(f"`{value}`" if value != "" else "empty" for value in get_args(kind))
            )
        elif origin in (list, tuple):
            (item, *_) = get_args(kind)
            words.append(f"list of {_kind_words((item,))}")
        elif origin is dict:
            words.append("table")
        else:
            words.append(
                {bool: "yes/no", str: "text", Path: "path", object: "any"}.get(kind, kind.__name__)
            )
    return " or ".join(words)


def docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the docstrings below the fields of a class, each on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def keys(cls: type[Any] = Config, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a settings class and of those below it, in the order of the fields."""
    hints = typing.get_type_hints(cls)
    texts = docstrings(cls)
    table = inspect.getdoc(cls) or ""
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint, path = hints[field.name], f"{prefix}{field.name}"
        inner, below = _nested(hint)
        if inner is not None:
            yield from keys(inner, f"{path}{below}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Key(path, hint, default, texts.get(field.name, ""), table)


def _nested(hint: Any) -> tuple[type[Any] | None, str]:
    """Return the dataclass below a hint, if there is one, and how its keys are named."""
    below = ""
    for _ in range(4):
        (hint, *others) = _alternatives(hint)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not others:
            return hint, below
        if get_origin(hint) is list:
            hint, below = get_args(hint)[0], f"{below}[]"
        elif get_origin(hint) is dict:
            hint, below = get_args(hint)[1], f"{below}.NAME"
        else:
            break
    return None, ""


def default_text(key: Key) -> str:
    """Return a default as the configuration would say it."""
    if key.default is dataclasses.MISSING:
        return "must be given"
    if key.default is None:
        return "absent"
    return f"`{show(key.default)}`"


def _change(key: Key) -> str:
    if not key.path.startswith("limits."):
        return ""
    return "restart" if key.path in AT_START else "now"


def _section(path: str) -> str:
    return path.rpartition(".")[0]


def sections(chosen: list[Key], *, units: bool = True) -> Iterator[str]:
    """Yield keys under headings, one for each table; without units where the texts have them."""
    for section, group in itertools.groupby(chosen, key=lambda key: _section(key.path)):
        found = list(group)
        yield f"\n## {f'`[{section}]`' if section else 'At the top'}\n\n"
        yield f"{_first_sentence(found[0].table)}\n\n"
        yield from entries(found, units=units)


def entries(chosen: list[Key], *, units: bool = True) -> Iterator[str]:
    """Yield a line for each key."""
    for key in chosen:
        facts = [default_text(key), key.unit if units or not key.is_number else ""]
        if _change(key) == "restart":
            facts.append("changes with a restart")
        text = f": {key.text}" if key.text else ""
        yield f"- **`{key.path.rpartition('.')[2]}`** ({', '.join(filter(None, facts))}){text}\n"


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def configuration_page() -> str:
    """Return the page of all keys but the limits."""
    chosen = [key for key in keys() if not key.path.startswith("limits.")]
    return (
        "# Configuration\n\n"
        "One TOML file, `mta serve -c FILE`; every key has a default. In parentheses: the default and the unit, or what\n"
        "the value is. `[]` is each item of a list of tables (`[[rules]]`), `NAME` a name of your choice. `mta check` says\n"
        "in one line what is wrong with a file, `mta config --changed` what it changes, `-s KEY=VALUE` overrides one key.\n"
        "These keys change with a restart; the [limits](limits.md) are a page of their own.\n"
        + "".join(sections(chosen))
    )


def limits_page() -> str:
    """Return the page of the limits."""
    chosen = [key for key in keys() if key.path.startswith("limits.")]
    return (
        "# Limits\n\n"
        "Everything has a limit; 0 is not unlimited. In parentheses: the default and the unit. All can be set while\n"
        "the server runs, `mtactl set limits.KEY=VALUE`, until the next start, but for those marked; `mtactl show limits`\n"
        "shows what counts now. What is over a lowered cap goes as it ends.\n"
        + "".join(sections(chosen))
    )
