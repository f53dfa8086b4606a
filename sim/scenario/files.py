"""Scenarios as files: those that ship, those of the operator, and policy files on top of them."""

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from mta.core.settings import ConfigError, build
from sim.scenario.experiment import Scenario

_POLICY_KEYS: Final = ("profile", "pace", "behaviours", "changes", "tls", "dane")
"""What a policy file may say about a destination: what it is like, and not what is asked of it."""


def available() -> list[str]:
    """Return the names of the scenarios that ship, sorted."""
    folder = resources.files("sim") / "scenarios"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario by its name, or from a file.

    A string with a slash or that ends in ``.toml`` is a path, anything else a name.

    Args:
        path_or_name: As ``backlog`` or ``my/own.toml``.
        overrides: As ``load.rate=500`` or ``server.limits.mta.max_conn_per_host=2``.

    Raises:
        ConfigError: no such scenario, not readable, not TOML, or a key or value is wrong.
    """
    text = str(path_or_name)
    overrides, policy = _split(overrides)
    if isinstance(path_or_name, Path) or "/" in text or text.endswith(".toml"):
        source, content = text, _read(Path(path_or_name))
    elif text in available():
        source = f"{text}.toml"
        content = (resources.files("sim") / "scenarios" / source).read_bytes()
    else:
        known = ", ".join(available())
        raise ConfigError(
            "scenario", value=text, problem=f"there is no such scenario; there are {known}"
        )
    return parse(content, source=source, overrides=overrides, policy=policy)


def parse(
    content: bytes, *, source: str, overrides: Sequence[str] = (), policy: Path | None = None
) -> Scenario:
    """Build a scenario from the bytes of a TOML file; ``source`` names it in errors, ``policy`` a file on top.

    Raises:
        ConfigError: not TOML, or a key or value is wrong.
    """
    try:
        data = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(source, problem=f"is not TOML: {problem}") from error
    said = data.pop("policy", None)
    if policy is None and said is not None:
        if not isinstance(said, str):
            raise ConfigError(source, "policy", said, "must be a file")
        policy = Path(source).parent / said
    if policy is not None:
        _put_policy(data, policy)
    return build(Scenario, data, source=source, overrides=overrides)


def _split(overrides: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the overrides that are values of the scenario, and the policy file that one names."""
    files = [each.partition("=")[2] for each in overrides if each.startswith("policy=")]
    rest = [each for each in overrides if not each.startswith("policy=")]
    return rest, Path(files[-1].strip().strip("\"'")) if files else None


def _put_policy(data: dict[str, Any], path: Path) -> None:
    """Put what a policy file says on top of a scenario's file: profiles, and tables of destinations by name.

    Raises:
        ConfigError: it can't be read, is not TOML, or names a destination that the scenario does not have.
    """
    source = str(path)
    try:
        said = tomllib.loads(_read(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(source, problem=f"is not TOML: {problem}") from error
    for key, value in said.items():
        if key not in ("profiles", "destinations"):
            raise ConfigError(source, key, value, "must be profiles or destinations")
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise ConfigError(source, key, value, "must be tables by name")
    own = data.setdefault("profiles", {})
    if isinstance(own, dict):
        own.update(said.get("profiles", {}))
    tables = data.get("destinations", [])
    by_name = {
        each.get("name"): each
        for each in (tables if isinstance(tables, list) else [])
        if isinstance(each, dict)
    }
    for name, table in said.get("destinations", {}).items():
        if name not in by_name:
            raise ConfigError(
                source, f"destinations.{name}", problem="is no destination of the scenario"
            )
        for key in table:
            if key not in _POLICY_KEYS:
                known = ", ".join(_POLICY_KEYS)
                raise ConfigError(
                    source, f"destinations.{name}.{key}", table[key], f"must be {known}"
                )
        by_name[name].update(table)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from error
