"""Builds settings from a mapping that came out of TOML: strictly, and with errors an operator can use.

A settings class is a dataclass; its annotations are the schema, its defaults the defaults. What is
wrong is one line that names file, key, value and problem. A class says what its types can't say in
a method ``problems() -> Iterator[tuple[key, value, problem]]``, whose keys are relative to it.

Overrides are what ``--set a.b.c=value`` gives: they replace single values of the mapping.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

SHOWN_MAX = 80
"""Characters of a value that an error shows."""

_OVERRIDE = "--set"
_ALIKE = 0.7
"""How much alike names in other tables are for a hint; 1 is the same."""


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
"""In a `ConfigError`: there is no value."""


class ConfigError(Exception):
    """What the operator said can't be used. ``str()`` is one line; the commands exit with status 2."""

    def __init__(
        self, source: str, key: str = "", value: object = ABSENT, problem: str = "invalid"
    ) -> None:
        """Make an error.

        Args:
            source: the file, or the option, that says it.
            key: dotted path to the value; empty if the whole source is meant.
            value: what it says; `ABSENT` if that is the point.
            problem: what is wrong with it.
        """
        super().__init__(source, key, value, problem)
        self.source = source
        self.key = key
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        where = self.key
        if self.value is not ABSENT:
            where = f"{where} = {show(self.value)}" if where else show(self.value)
        return _one_line(": ".join(part for part in (self.source, where, self.problem) if part))


def show(value: object) -> str:
    """Return a value as TOML would have it, on one line of at most `SHOWN_MAX` characters."""
    text = _one_line(_show(value))
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"


def typed(value: object) -> str:
    """Return a single value as it is typed behind ``key=``: strings bare, truth as TOML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def build(
    cls: type[T], data: Mapping[str, object], *, source: str, overrides: Sequence[str] = ()
) -> T:
    """Return an instance of a settings class.

    Args:
        cls: a dataclass. Fields may be int, float (a whole number will do), bool, str, Path, Literal,
            ``X | None``, list, tuple, ``dict[str, X]``, a dataclass, ``object`` and what these nest.
        data: what the file says.
        source: the file's name, for errors.
        overrides: ``a.b.c=value`` as on a command line: the value is TOML or else a bare word; an item
            of a list is named by its number from 0. Later ones win.

    Raises:
        ConfigError: unknown key, wrong type, number out of range, or a problem that a class found.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(source, value=data, problem="must be a table")
    said = _Said(data, overrides)
    try:
        built: T = _Builder(cls, source, said).build()
    except ConfigError as error:
        if not overrides or error.source == _OVERRIDE or said.is_in_file(error.key):
            raise
        # A value that nobody gave is in conflict with one that somebody gave: who?
        try:
            build(cls, data, source=source)
        except ConfigError:
            raise error from None
        raise ConfigError(_OVERRIDE, error.key, error.value, error.problem) from None
    return built


def flatten(settings: object) -> dict[str, object]:
    """Return every value by its dotted key, in the order of the fields; the inverse of `build`.

    Items of lists of dataclasses or tables are numbered from 0; lists of plain values are one value.
    """
    return dict(_leaves(settings, ""))


def changed(settings: T, default: T) -> dict[str, object]:
    """Return the values of ``settings`` that ``default`` does not have, by their dotted keys."""
    before = flatten(default)
    return {
        key: value
        for key, value in flatten(settings).items()
        if key not in before or before[key] != value
    }


class _Raw(NamedTuple):
    """A value of an override: as TOML reads it, and as it was typed."""

    value: object
    text: str


class _Said:
    """What a file says, with the overrides put in, and which of both said what."""

    def __init__(self, data: Mapping[str, object], overrides: Sequence[str]) -> None:
        self._data = data
        self.tree: dict[str, Any] = {key: _copy(value) for key, value in data.items()}
        self._keys: list[str] = []
        for override in overrides:
            self._put(override)

    def is_override(self, key: str) -> bool:
        """Return True if the value at a dotted key, or what contains it, came from an override."""
        return any(key == said or key.startswith(f"{said}.") for said in self._keys)

    def is_in_file(self, key: str) -> bool:
        """Return True if the file says something at a dotted key."""
        node: object = self._data
        for part in key.split("."):
            if isinstance(node, Mapping) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            else:
                return False
        return True

    def _put(self, override: str) -> None:
        key, equals, text = override.partition("=")
        key = key.strip()
        parts = key.split(".")
        if not equals or not all(parts):
            raise ConfigError(_OVERRIDE, problem=f"must be key=value, not {show(override)}")
        node: Any = self.tree
        for depth, part in enumerate(parts):
            prefix = ".".join(parts[:depth])
            if isinstance(node, list):
                if not part.isdecimal() or int(part) >= len(node):
                    problem = f"{prefix} has {len(node)} items; name one by its number from 0"
                    raise ConfigError(_OVERRIDE, key, text, problem)
                place: Any = int(part)
            elif isinstance(node, dict):
                place = part
            else:
                raise ConfigError(_OVERRIDE, key, text, f"{prefix} is not a table")
            if depth == len(parts) - 1:
                node[place] = _Raw(_read(text), text.strip())
            elif isinstance(node, dict) and place not in node:
                node[place] = {}
            elif isinstance(node[place], _Raw):
                node[place] = _copy(node[place].value)
            node = node[place]
        self._keys.append(key)


class _Builder:
    """One call of `build`: the tree of values, and where each came from."""

    def __init__(self, cls: type[Any], source: str, said: _Said) -> None:
        self._cls = cls
        self._source = source
        self._said = said

    def build(self) -> Any:
        """Return the instance."""
        return self._dataclass(self._cls, self._said.tree, "")

    def _error(self, key: str, value: object, problem: str) -> ConfigError:
        source = _OVERRIDE if self._said.is_override(key) else self._source
        return ConfigError(source, key, _plain(value), problem)

    def _dataclass(self, cls: type[Any], value: object, key: str) -> Any:
        value = _opened(value)
        if not isinstance(value, Mapping):
            raise self._error(key, value, "must be a table")
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in value:
            if name not in fields:
                hint = self._hint(str(name), fields)
                raise self._error(_join(key, str(name)), value[name], f"unknown key{hint}")
        arguments: dict[str, object] = {}
        for name, field in fields.items():
            if name in value:
                arguments[name] = self._value(hints[name], value[name], _join(key, name))
            elif (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                raise self._error(_join(key, name), ABSENT, "missing")
        built = cls(**arguments)
        for name, wrong, problem in _problems(built):
            raise self._error(_join(key, name), wrong, problem)
        return built

    def _hint(self, name: str, fields: Mapping[str, object]) -> str:
        """Return what the operator may have meant: a sibling, or the same name elsewhere."""
        everywhere: dict[str, str] = {}
        for path in _schema(self._cls, ""):
            everywhere.setdefault(path.rpartition(".")[2], path)
        near = [everywhere[name]] if name in everywhere else []
        near = near or difflib.get_close_matches(name, fields, n=1)
        if not near:
            # Far from here it has to be nearly the same: `nope` is no slip for `expansion.limits.nodes`.
            alike = difflib.get_close_matches(name, everywhere, n=1, cutoff=_ALIKE)
            near = [everywhere[last] for last in alike]
        return f" (did you mean {near[0]}?)" if near else ""

    def _value(self, hint: Any, value: object, key: str) -> object:
        """Return a value as its annotation wants it."""
        if hint is Any or hint is object:
            return _plain(value)
        origin = get_origin(hint)
        if origin is Union or origin is types.UnionType:
            return self._union(get_args(hint), value, key)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._dataclass(hint, value, key)
        if origin is list or hint is list:
            (item,) = get_args(hint) or (Any,)
            return [self._value(item, one, at) for at, one in self._items(value, key)]
        if origin is tuple:
            return self._tuple(get_args(hint), value, key)
        if origin is dict or hint is dict:
            table = _opened(value)
            if not isinstance(table, Mapping):
                raise self._error(key, value, "must be a table")
            _, item = get_args(hint) or (str, Any)
            return {
                str(name): self._value(item, one, _join(key, str(name)))
                for name, one in table.items()
            }
        return self._scalar(hint, origin, value, key)

    def _items(self, value: object, key: str) -> Iterator[tuple[str, object]]:
        opened = _opened(value)
        if not isinstance(opened, list | tuple):
            raise self._error(key, value, "must be a list")
        for number, item in enumerate(opened):
            yield _join(key, str(number)), item

    def _tuple(self, hints: tuple[Any, ...], value: object, key: str) -> tuple[object, ...]:
        items = list(self._items(value, key))
        if len(hints) == 2 and hints[1] is Ellipsis:
            return tuple(self._value(hints[0], one, at) for at, one in items)
        if len(items) != len(hints):
            raise self._error(key, value, f"must have {len(hints)} items")
        return tuple(
            self._value(hint, one, at) for hint, (at, one) in zip(hints, items, strict=True)
        )

    def _union(self, hints: tuple[Any, ...], value: object, key: str) -> object:
        """Return the value as the first member that takes it."""
        errors: list[ConfigError] = []
        for hint in hints:
            if hint is types.NoneType:
                if _plain(value) is None:
                    return None
                continue
            try:
                return self._value(hint, value, key)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        wishes = " or ".join(error.problem.removeprefix("must be ") for error in errors)
        raise self._error(key, value, f"must be {wishes}")

    def _scalar(self, hint: Any, origin: Any, value: object, key: str) -> object:
        plain = _plain(value)
        if origin is Literal:
            choices = get_args(hint)
            for choice in choices:
                # Why the type too? True == 1.
                if type(choice) is type(plain) and choice == plain:
                    return plain
                if isinstance(value, _Raw) and isinstance(choice, str) and choice == value.text:
                    return choice
            raise self._error(key, value, f"must be one of {', '.join(map(show, choices))}")
        if hint is bool:
            if isinstance(plain, bool):
                return plain
            raise self._error(key, value, "must be true or false")
        if hint is int:
            return self._whole(plain, value, key)
        if hint is float:
            if isinstance(plain, float) and math.isfinite(plain):
                return plain
            if isinstance(plain, float):
                raise self._error(key, value, "must be a finite number")
            if isinstance(plain, int) and not isinstance(plain, bool):
                return float(self._whole(plain, value, key))
            raise self._error(key, value, "must be a number")
        assert hint is str or hasattr(hint, "__fspath__"), f"{key}: no settings have type {hint}"
        if isinstance(value, _Raw) and isinstance(plain, int | float):
            # A bare word that happens to look like a number or a truth value.
            plain = value.text
        if hint is str:
            if isinstance(plain, str):
                return plain
            raise self._error(key, value, "must be a string")
        if isinstance(plain, hint):
            return plain
        # An empty path would be the current directory, and NUL ends a path in the kernel.
        if isinstance(plain, str) and plain and "\0" not in plain:
            return hint(plain)
        raise self._error(key, value, "must be a path")

    def _whole(self, plain: object, value: object, key: str) -> int:
        if not isinstance(plain, int) or isinstance(plain, bool):
            raise self._error(key, value, "must be a whole number")
        if not -(2**63) <= plain < 2**63:
            raise self._error(key, value, "must fit into 64 bits")
        return plain


def _problems(built: object) -> Iterator[tuple[str, object, str]]:
    find = getattr(built, "problems", None)
    if find is not None:
        yield from find()


def _read(text: str) -> object:
    """Return a value as TOML reads it, or the text itself if that is no value of ours."""
    try:
        document = tomllib.loads(f"x = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    value = document["x"]
    if len(document) == 1 and isinstance(value, bool | int | float | str | list | dict):
        return value
    return text.strip()


def _opened(value: object) -> object:
    """Return what an override holds; other values as they are."""
    return value.value if isinstance(value, _Raw) else value


def _plain(value: object) -> object:
    """Return a value without a trace of overrides in it."""
    value = _opened(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _copy(value: object) -> object:
    """Return a copy whose tables and lists can be changed."""
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _schema(cls: type[Any], key: str) -> Iterator[str]:
    """Yield every dotted key that a settings class has, tables too."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        path = _join(key, field.name)
        yield path
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _schema(hint, path)


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    children: Iterator[tuple[str, object]] | None = None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        children = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping) and value:
        children = ((str(name), item) for name, item in value.items())
    elif isinstance(value, list | tuple) and any(map(_is_table, value)):
        children = ((str(number), item) for number, item in enumerate(value))
    if children is None:
        yield key, value
        return
    for name, item in children:
        yield from _leaves(item, _join(key, name))


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _one_line(text: str) -> str:
    """Return a text with everything that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_show(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_show, value)) + "]"
    if isinstance(value, int):
        # Python refuses to print integers of more than 4,300 digits.
        return str(value) if value.bit_length() < 10_000 else "a huge number"
    if hasattr(value, "__fspath__"):
        return _show(str(value))
    return str(value)
