"""Reads what decides about attempts in a Postfix configuration: a main.cf, or what ``postconf`` or ``postconf -n`` prints.

Parameters of postconf(5); whatever else is in the file is left alone, and ``$name`` is looked up in it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mta.core.settings import ConfigError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "": 1.0}
_FEEDBACK: Final = ("1", "1/concurrency", "1/sqrt_concurrency")
_VALUE_MAX: Final = 1000


def _time(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", text)
    if found is None:
        raise ValueError("must be a number with s, m, h, d or w")
    return int(found[1]) * _UNITS[found[2]]


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError("must be a number")
    return int(text)


def _feedback(text: str) -> str:
    if text not in _FEEDBACK:
        raise ValueError(f"must be one of {', '.join(_FEEDBACK)}")
    return text


_KEYS: Final[tuple[tuple[str, tuple[str, ...], Callable[[str], Any]], ...]] = (
    ("minimal_backoff_time", ("retry.min_s", "limits.mta.route_delay_base_s", "limits.mta.route_delay_max_s"), _time),
    ("maximal_backoff_time", ("retry.max_s",), _time),
    ("queue_run_delay", ("retry.scan_s",), _time),
    ("maximal_queue_lifetime", ("limits.scheduler.envelope_ttl_s",), _time),
    ("bounce_queue_lifetime", ("limits.scheduler.bounce_ttl_s",), _time),
    ("qmgr_message_active_limit", ("limits.scheduler.max_inflight",), _count),
    ("default_process_limit", ("limits.mta.max_conn",), _count),
    ("initial_destination_concurrency", ("concurrency.initial",), _count),
    ("default_destination_concurrency_limit", ("concurrency.limit",), _count),
    ("smtp_destination_concurrency_limit", ("concurrency.limit",), _count),
    ("default_destination_recipient_limit", ("limits.mta.max_rcpt_per_task",), _count),
    ("smtp_destination_recipient_limit", ("limits.mta.max_rcpt_per_task",), _count),
    ("default_destination_concurrency_positive_feedback", ("concurrency.positive_feedback",), _feedback),
    ("default_destination_concurrency_negative_feedback", ("concurrency.negative_feedback",), _feedback),
    ("default_destination_concurrency_failed_cohort_limit", ("concurrency.cohort_limit",), float),
)  # fmt: skip
"""Parameter, our keys, how it is read; a later one is more special than an earlier one."""


def load(path: Path) -> dict[str, Any]:
    """Return what a file says, as tables with the server's keys.

    Raises:
        ConfigError: it can't be read, or a value that matters makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    values: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace() and name:
            # A line that begins with white space goes on with the one before.
            values[name] = f"{values[name]} {line.strip()}".strip()[:_VALUE_MAX]
            continue
        name, _, value = line.partition("=")
        name = name.strip()
        values[name] = value.strip()[:_VALUE_MAX]
    found: dict[str, Any] = {}
    for parameter, keys, reads in _KEYS:
        said = values.get(parameter, "")
        for _ in range(10):
            if not said.startswith("$"):
                break
            said = values.get(said[1:].strip("{}()"), "")
        if not said or said.startswith("$"):
            continue
        try:
            value = reads(said)
        except ValueError as error:
            raise ConfigError(str(path), parameter, said, str(error)) from None
        for key in keys:
            _put(found, key.split("."), value)
    return found


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        into = into.setdefault(part, {})
    into[path[-1]] = value
