"""Passwords that we have at other hosts: a file that only we can read, read once at the start.

One line each: ``host user password``; what stands first is a host's name, or any name that ``relay.auth`` uses. Empty
lines and those that begin with ``#`` count for nothing. The password is the rest of the line.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mta.core.settings import ConfigError
from mta.effects import Effects
from mta.smtphello import Login
from mta.tables.effects import RefusedFileError, TableEffects

BYTES_MAX: Final = 1024 * 1024
"""Longest file: about 20,000 passwords. Ours."""
SECRET_MAX: Final = 255
"""Most bytes of a user or a password (RFC 4616 2 has 255 characters)."""


def read_credentials(path: Path, effects: Effects, *, source: str, key: str) -> Mapping[str, Login]:
    """Return the logins by their names in lower case.

    Args:
        path: the file.
        effects: to read it.
        source: the configuration's file, for errors.
        key: where it names the file, for errors.

    Raises:
        ConfigError: the file can't be read, others can read it, or a line is not understood. No part of
            a line is shown: it may be the password.
    """
    try:
        data, _ = TableEffects(effects).read_checked(
            path, _private, max_bytes=BYTES_MAX, follow=True, site="credentials"
        )
    except RefusedFileError as error:
        raise ConfigError(source, key, path, error.why) from None
    except OSError as error:
        problem = os.strerror(error.errno).lower() if error.errno else "can't be read"
        raise ConfigError(source, key, path, problem) from None
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise ConfigError(source, key, path, "is not UTF-8") from None
    logins: dict[str, Login] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        words = line.split(maxsplit=2)
        problem = _problem(words, logins)
        if problem:
            raise ConfigError(source, key, path, f"line {number}: {problem}")
        logins[words[0].lower()] = Login(words[1], words[2])
    return MappingProxyType(logins)


def _private(directory: os.stat_result, found: os.stat_result) -> None:
    """Refuse a file that everybody can read or anybody else can write."""
    del directory
    if found.st_mode & 0o007:
        raise RefusedFileError("is open to everybody: chmod 600")
    if found.st_mode & 0o020:
        raise RefusedFileError("can be written by its group: chmod 600")


def _problem(words: list[str], known: Mapping[str, Login]) -> str:
    if len(words) != 3:
        return "must be: host user password"
    if words[0].lower() in known:
        return "the host was given before"
    if any("\0" in word or len(word.encode()) > SECRET_MAX for word in words):
        return f"a word holds NUL or more than {SECRET_MAX} bytes"
    return ""
