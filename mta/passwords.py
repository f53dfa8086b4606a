"""Who may log in: names and argon2id hashes of ``[auth]``, and the check of a password.

A check takes the same time for a user who is not there. Everything here may block, and be called from any
thread: `mta.authentication` calls it from its own. The file of users is read again when it has changed; one
that can't be read or understood any more changes nothing, and the log says so once for each version.
"""

import base64
import os
import stat
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from mta.core.sasl import clean_name, clean_password
from mta.core.settings import ConfigError
from mta.tables.effects import RefusedFileError, TableEffects, Version

if TYPE_CHECKING:
    from pathlib import Path

    from mta.config import AuthConfig
    from mta.effects import Effects

MEMORY_KIB: Final = 19 * 1024
TIME_COST: Final = 2
PARALLELISM: Final = 1
"""What new hashes cost: OWASP's first choice for argon2id, about 20 ms. RFC 9106's 64 MiB and four lanes are
for a login now and then, not for a mail server under stress."""
MEMORY_KIB_MAX: Final = 256 * 1024
"""Hashes that ask for more memory are refused when the file is read. Ours."""
FILE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the file of users. Ours; about 120,000 users."""
CHECK_S: Final = 1.0
"""The file is looked at for changes at most so often."""
_TOO_OPEN: Final = stat.S_IWGRP | stat.S_IRWXO


class PasswordCheckError(Exception):
    """It can't be said now whether a password is right; the text is for the log."""


def encrypt(password: str) -> str:
    """Return the hash of a password, for the file of users.

    Raises:
        ValueError: that can't be a password; one line that does not show it.
    """
    clean = clean_password(password)
    if clean is None:
        raise ValueError("a password has 1 to 1,024 bytes and no control characters")
    hasher = argon2.PasswordHasher(
        time_cost=TIME_COST, memory_cost=MEMORY_KIB, parallelism=PARALLELISM
    )
    return hasher.hash(clean)


def problem_of(text: str) -> str:
    """Return what is wrong with a hash, or nothing. Never shows it."""
    try:
        parameters = argon2.extract_parameters(text)
    except InvalidHashError:
        return "is no argon2id hash (mtactl encrypt makes one)"
    if parameters.type is not argon2.Type.ID:
        return "is no argon2id hash (mtactl encrypt makes one)"
    if parameters.memory_cost > MEMORY_KIB_MAX:
        return f"asks for more than {MEMORY_KIB_MAX // 1024} MiB"
    return ""


def parse_users(data: bytes) -> dict[str, str]:
    """Return names and hashes of a file: ``name hash`` or ``name: hash`` a line, ``#`` for comments.

    Raises:
        ValueError: a line can't be understood; the text is ``line 3: why`` and shows no hash.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    users: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, value = text.partition("$")
        clean = clean_name(name.rstrip(" \t:"))
        if clean is None:
            raise ValueError(f"line {number}: needs a name and a hash")
        if clean in users:
            raise ValueError(f"line {number}: {clean} was given before")
        if problem := problem_of(f"${value}"):
            raise ValueError(f"line {number}: the password of {clean} {problem}")
        users[clean] = f"${value}"
    return users


class Passwords:
    """The users of ``[auth]``."""

    def __init__(
        self,
        config: "AuthConfig",
        *,
        effects: "Effects",
        source: str,
        log: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """Read them.

        Args:
            config: where they are.
            effects: how they are read.
            source: the configuration's file, for errors.
            log: is told in one line what has happened; from any thread.
            warn: is told in one line what a human should look at; from any thread.

        Raises:
            ConfigError: they can't be used.
        """
        self._effects = effects
        self._files = TableEffects(effects)
        self._path: Path | None = config.file
        self._log = log
        self._warn = warn
        self._static: dict[str, str] = {}
        for name, value in config.users.items():
            clean = clean_name(name)
            if clean is None:
                raise ConfigError(source, f"auth.users.{name}", problem="is no name of a user")
            if problem := problem_of(value):
                raise ConfigError(source, f"auth.users.{name}", problem=problem)
            self._static[clean] = value
        self._users: Mapping[str, str] = self._static
        self._dummy = ""
        self._version: Version | None = None
        self._bad: object = None
        self._checked_at = effects.monotonic()
        self._mutex = threading.Lock()
        self._hasher = argon2.PasswordHasher()  # its parameters are not asked when it verifies
        problem = self._read()
        if problem:
            raise ConfigError(source, "auth.file", str(self._path), problem)

    def __len__(self) -> int:
        """Return how many users there are."""
        return len(self._users)

    def verify(self, user: str, password: str) -> bool:
        """Say whether a password is right; both as `mta.core.sasl` cleans them.

        Raises:
            PasswordCheckError: it can't be said now.
        """
        self._refresh()
        known = self._users.get(user)
        try:
            self._effects.point("argon2", "auth")
            self._hasher.verify(known or self._dummy, password)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError, OSError, MemoryError) as error:
            raise PasswordCheckError(str(error) or type(error).__name__) from error
        return known is not None

    def update(self) -> str:
        """Read the file again now; return in one line what came of it.

        Raises:
            ValueError: it can't be used; what was read before still counts. One line.
        """
        with self._mutex:
            problem = self._read()
        if problem:
            line = f"{self._path}: {problem}; what was read before is kept"
            self._warn(f"auth: {line}")
            raise ValueError(line)
        return f"{len(self._users)} users"

    def _refresh(self) -> None:
        """Read the file again if it has changed, and if it is time to look."""
        path = self._path
        now = self._effects.monotonic()
        if path is None or now - self._checked_at < CHECK_S:
            return
        if not self._mutex.acquire(blocking=False):
            return  # another thread is at it, and what was read before still counts
        try:
            self._checked_at = now
            try:
                seen: object = self._files.version(path, site="auth")
            except OSError as error:
                seen = _why(error)
            if seen in (self._version, self._bad):
                return
            if problem := self._read():
                self._bad = seen
                self._warn(f"auth: {path}: {problem}; what was read before is kept")
            else:
                self._log(f"auth: read {len(self._users)} users")
        finally:
            self._mutex.release()

    def _read(self) -> str:
        """Read the file; return what is wrong with it, or nothing."""
        users = self._static
        if self._path is not None:
            try:
                data, version = self._files.read_checked(
                    self._path, _trusted, max_bytes=FILE_BYTES, follow=True, site="auth"
                )
                users = {**users, **parse_users(data)}
            except OSError as error:
                return _why(error)
            except ValueError as error:
                return str(error)
            self._version, self._bad = version, None
        self._users = users
        self._dummy = self._like(next(iter(users.values()), ""))
        return ""

    def _like(self, known: str) -> str:
        """Return a hash of nothing that takes as long to check as a known one."""
        cost = (TIME_COST, MEMORY_KIB, PARALLELISM)
        if known:
            found = argon2.extract_parameters(known)
            cost = (found.time_cost, found.memory_cost, found.parallelism)
        chance = b"".join(self._effects.entropy(site="auth").to_bytes(8, "big") for _ in range(6))
        salt, tag = (
            base64.b64encode(part).decode().rstrip("=") for part in (chance[:16], chance[16:])
        )
        return f"$argon2id$v=19$m={cost[1]},t={cost[0]},p={cost[2]}${salt}${tag}"


def _trusted(_: os.stat_result, found: os.stat_result) -> None:
    if found.st_mode & _TOO_OPEN:
        raise RefusedFileError("may be read by others, make it rw-r----- at most")


def _why(error: OSError) -> str:
    if isinstance(error, RefusedFileError):
        return error.why
    return (error.strerror or type(error).__name__).lower()


__all__ = ["PasswordCheckError", "Passwords", "encrypt", "parse_users", "problem_of"]
