"""`.forward` files in a real file system: what is trusted, and what becomes of trouble."""

import errno
import os
import socket
from pathlib import Path

import pytest

from mta.core.aliases import EntryKind
from mta.core.lookup import NOT_FOUND, Account, Found, TemporaryError
from mta.effects import Effects
from mta.tables import (
    TableEffects,
    read_forward,
)
from tests.support.tables import LIMITS, failing, texts


@pytest.fixture
def account(tmp_path: Path) -> Account:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    return Account("alice", str(home), os.getuid(), os.getgid())


def forward(account: Account, effects: Effects | None = None):
    return read_forward(account, TableEffects(effects or Effects()), LIMITS)


def test_a_forward(account, fds):
    """Its entries, in order; comments are none."""
    Path(account.home, ".forward").write_text("# mine\nalice, bob@example.test\n|cmd\n")
    answer = forward(account)
    assert isinstance(answer, Found)
    assert [entry.kind for entry in answer.entries] == [
        EntryKind.USER,
        EntryKind.ADDRESS,
        EntryKind.COMMAND,
    ]


def test_no_forward(account, tmp_path, fds):
    """Missing, or no home to have it in: none. Empty: none of its entries."""
    assert forward(account) == NOT_FOUND
    for home in (str(tmp_path / "missing"), "/dev/null", "", "relative"):
        assert forward(account._replace(home=home)) == NOT_FOUND, home
    Path(account.home, ".forward").write_text("")
    assert forward(account) == Found()
    Path(account.home, ".forward").write_text("\n# nothing\n")
    assert forward(account) == Found()


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def hard_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("a")
    path.hardlink_to(other)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def written(text: str = "bob\n", mode: int = 0o644, home: int = 0o755):
    def make(path: Path) -> None:
        path.write_text(text)
        path.chmod(mode)
        path.parent.chmod(home)

    return make


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (link, "is a symbolic link"),
        (hard_link, "has another name elsewhere"),
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (written(mode=0o664), "is writable by others"),
        (written(mode=0o646), "is writable by others"),
        (written(home=0o775), "is in a home directory that others may write to"),
        (written(home=0o757), "is in a home directory that others may write to"),
        (written(home=0o1755), "is in a sticky home directory"),
        (written("a" * 4096), "is longer than 4095 bytes"),
        (written("# \n" * 1365 + "b"), "is longer than 4095 bytes"),
        (written("bob\n\ntwo words\n"), "line 3: an entry is neither an address, a user, a file, a command, an include nor an error"),
        (written("bob, 'open, \"x\n"), "line 1: a quoted string does not end"),
        (written("x" * 2049), "line 1: is longer than 2048 bytes"),
    ],
)  # fmt: skip
def test_a_forward_that_is_not_followed(account, fds, make, why):
    """Temporary: the mail waits until the user has mended it. None of them makes us wait."""
    make(Path(account.home, ".forward"))
    assert forward(account) == TemporaryError(why)


def test_a_socket_is_no_forward(account, fds):
    """It can't even be opened."""
    unix_socket(Path(account.home, ".forward"))
    assert forward(account) == TemporaryError("No such device or address")


def test_the_size_of_a_forward(account):
    """4,095 bytes are followed, as by OpenSMTPD."""
    text = "# \n" * 1363 + "bobby\n"
    assert len(text) == 4095
    Path(account.home, ".forward").write_text(text)
    assert texts(forward(account)) == ["bobby"]


def test_a_forward_of_somebody_else(account, fds):
    """Its owner must be the user, and the home's the user or root."""
    Path(account.home, ".forward").write_text("bob\n")
    other = account._replace(uid=account.uid + 1)
    why = "is not owned by the user"
    if account.uid != 0:
        why = "is in a home directory that others may write to"
    assert forward(other) == TemporaryError(why)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_forward_in_a_home_of_somebody_else(account):
    """Who owns the home can replace the file at any time."""
    Path(account.home, ".forward").write_text("bob\n")
    os.chown(account.home, 12345, 12345)
    assert forward(account) == TemporaryError("is in a home directory that others may write to")
    os.chown(account.home, 0, 0)
    os.chown(Path(account.home, ".forward"), 12345, 12345)
    assert texts(forward(account._replace(uid=12345))) == ["bob"]


def test_a_forward_that_is_swapped_while_it_is_looked_at(account, tmp_path):
    """What was checked is what is read, whatever has its name by then."""
    path = Path(account.home, ".forward")
    path.write_text("bob\n")
    secret = tmp_path / "secret"
    secret.write_text("stolen\n")

    class Swapping(Effects):
        def done(self, op: str, site: str) -> None:
            if op == "open":
                path.unlink()
                path.symlink_to(secret)

    assert forward(account, Swapping()) == TemporaryError("has another name elsewhere")
    path.unlink()
    path.write_text("bob\n")

    class SwappingLater(Effects):
        def point(self, op: str, site: str) -> None:
            if op == "read":
                path.unlink()
                path.symlink_to(secret)

    assert texts(forward(account, SwappingLater())) == ["bob"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forward_that_cannot_be_read_now(account, fds, code, when):
    """EIO, EMFILE: temporary wherever it happens, and nothing stays open."""
    Path(account.home, ".forward").write_text("bob\n")
    failed = 0
    for number in range(1, 10):
        answer = forward(account, failing(number, code, when))
        if isinstance(answer, Found):
            break
        failed += 1
        assert answer == TemporaryError(os.strerror(code))
    assert failed == 2  # open, read
