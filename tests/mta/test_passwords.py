"""Who may log in: the file, the hashes, and what a check does when something fails."""

import os
import time
from pathlib import Path

import argon2
import pytest

from mta.config import AuthConfig
from mta.core.settings import ConfigError
from mta.passwords import PasswordCheckError, Passwords, encrypt, parse_users, problem_of
from tests.support.faults import FaultyEffects, Plan

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Hashes for tests that make many of them."""


class Clock(FaultyEffects):
    """Effects whose monotonic clock the test turns."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 100.0
        self.monotonic = lambda: self.time


@pytest.fixture
def effects() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "users"
    path.touch(mode=0o600)
    path.write_text(f"# who\n\nalice {CHEAP.hash('one')}\n  bob@here.test:\t{CHEAP.hash('two')}\n")
    return path


@pytest.fixture
def passwords(file, effects, lines) -> Passwords:
    config = AuthConfig(file, {"carol": CHEAP.hash("three")})
    return Passwords(
        config, effects=effects, source="mta.toml", log=lines.append, warn=lines.append
    )


def test_right_and_wrong(passwords):
    """Users of the file and of the configuration."""
    assert 3 == len(passwords)
    for user, password in (("alice", "one"), ("bob@here.test", "two"), ("carol", "three")):
        assert passwords.verify(user, password)
        assert not passwords.verify(user, "four")
        assert not passwords.verify(f"{user}x", password)
    assert not passwords.verify("Alice", "one")


def test_encrypt_makes_what_is_taken(effects):
    """Normalised like what the client sends."""
    made = AuthConfig(users={"u\u0308": encrypt("a\u0308")})
    passwords = Passwords(made, effects=effects, source="x", log=print, warn=print)
    assert passwords.verify("\u00fc", "\u00e4")


def test_nobody_takes_as_long_as_somebody(passwords, monkeypatch):
    """A user who is not there is checked against a hash of the same cost."""
    seen = []
    verify = argon2.PasswordHasher.verify

    def spy(self, known, password):
        seen.append(argon2.extract_parameters(known))
        return verify(self, known, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", spy)
    passwords.verify("alice", "x")
    passwords.verify("nobody", "x")
    assert seen[0] == seen[1]


def test_it_takes_as_long_with_a_clock(effects):
    """Measured: the two medians are within a factor of two."""
    config = AuthConfig(users={"alice": encrypt("x")})
    passwords = Passwords(config, effects=effects, source="x", log=print, warn=print)

    def median(user: str) -> float:
        taken = []
        for _ in range(7):
            before = time.perf_counter()
            passwords.verify(user, "wrong")
            taken.append(time.perf_counter() - before)
        return sorted(taken)[3]

    ratio = median("alice") / median("nobody")
    assert 0.5 < ratio < 2.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("alice", "line 1: the password of alice is no argon2id hash (mtactl encrypt makes one)"),
        ("alice secret", "line 1: needs a name and a hash"),
        ("alice $1$x$y", "is no argon2id hash"),
        (f"\n{CHEAP.hash('x')}", "line 2: needs a name and a hash"),
        (f"a {CHEAP.hash('x')}\na {CHEAP.hash('y')}", "line 2: a was given before"),
        ("a $argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$YWJjZA", "is no argon2id hash"),
        ("a $argon2id$v=19$m=999999999,t=1,p=1$c2FsdHNhbHQ$YWJjZA", "asks for more than 256 MiB"),
    ],
    ids=["no hash", "no dollar", "md5", "no name", "twice", "argon2i", "memory"],
)
def test_lines_that_can_not_be(text, why):
    """Told by their number; what may be a password is not repeated."""
    with pytest.raises(ValueError, match="line") as caught:
        parse_users(text.encode())
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_no_text():
    """Not UTF-8."""
    with pytest.raises(ValueError, match="is not UTF-8"):
        parse_users(b"\xff")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.unlink(), "no such file or directory"),
        (lambda path: path.chmod(0o644), "may be read by others"),
        (lambda path: path.chmod(0o660), "may be read by others"),
        (lambda path: path.write_text("x y"), "line 1: needs a name and a hash"),
        (lambda path: path.write_bytes(b"#" * (16 * 1024 * 1024 + 1)), "is longer than"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    ],
)
def test_a_file_that_can_not_be_used(file, effects, spoil, text):
    """One line, exit status 2."""
    spoil(file)
    with pytest.raises(ConfigError) as caught:
        Passwords(AuthConfig(file), effects=effects, source="mta.toml", log=print, warn=print)
    assert str(caught.value).startswith('mta.toml: auth.file = "/')
    assert text in str(caught.value)


@pytest.mark.parametrize("users", [{"a b": encrypt("x")}, {"a": "secret"}], ids=["name", "hash"])
def test_users_of_the_configuration_are_checked(effects, users):
    """A hash that is none may be a password: it is not shown."""
    with pytest.raises(ConfigError) as caught:
        Passwords(
            AuthConfig(users=users), effects=effects, source="mta.toml", log=print, warn=print
        )
    assert "auth.users.a" in str(caught.value)
    assert "secret" not in str(caught.value)


class TestChanges:
    """The file is read again when it has changed, at most once a second."""

    def test_a_new_user(self, file, passwords, effects, lines):
        """Without a word from the operator."""
        with file.open("a") as out:
            out.write(f"dora {CHEAP.hash('four')}\n")
        assert not passwords.verify("dora", "four")
        effects.time += 1.0
        assert passwords.verify("dora", "four")
        assert lines == ["auth: read 4 users"]

    def test_a_file_that_went_bad(self, file, passwords, effects, lines):
        """What was read before counts; the log says it once per version."""
        file.write_text("x y\n")
        for _ in range(3):
            effects.time += 1.0
            assert passwords.verify("alice", "one")
        file.unlink()
        for _ in range(3):
            effects.time += 1.0
            assert passwords.verify("alice", "one")
        assert [line.split(": ", 2)[2] for line in lines] == [
            "line 1: needs a name and a hash; what was read before is kept",
            "no such file or directory; what was read before is kept",
        ]

    def test_by_hand(self, file, passwords, lines):
        """`mtactl update auth`."""
        assert "3 users" == passwords.update()
        file.chmod(0o604)
        with pytest.raises(ValueError, match="may be read by others"):
            passwords.update()
        assert "is kept" in lines[-1]
        assert passwords.verify("alice", "one")

    def test_nobody_waits_while_it_is_read(self, passwords, effects):
        """Another thread at it: this one goes on with what there is."""
        effects.time += 5.0
        with passwords._mutex:
            assert passwords.verify("alice", "one")


@pytest.mark.parametrize(
    "error", [OSError(12, "Cannot allocate memory"), MemoryError(), OSError(24, "x")]
)
def test_what_can_not_be_said(passwords, effects, error):
    """Is not a wrong password."""
    effects.plan = Plan(1, lambda: error, matches=lambda point: point.op == "argon2")
    with pytest.raises(PasswordCheckError):
        passwords.verify("alice", "one")
    assert passwords.verify("alice", "one")


def test_a_broken_hash_is_not_a_wrong_password(effects):
    """One that looks right and can't be decoded."""
    broken = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$!!!!"
    assert problem_of(broken) == ""
    passwords = Passwords(
        AuthConfig(users={"a": broken}), effects=effects, source="x", log=print, warn=print
    )
    with pytest.raises(PasswordCheckError):
        passwords.verify("a", "x")
