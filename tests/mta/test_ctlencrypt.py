"""`mtactl encrypt`: hashes that the server takes."""

import io

import pytest

from mta import ctl, passwords


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_hash_for_each_line(monkeypatch):
    """Of standard input; each with a salt of its own. The server finds nothing wrong with them."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2\nhunter2\r\n"))
    out = io.StringIO()
    assert 0 == ctl.run(["enc"], out)
    first, second = out.getvalue().splitlines()
    assert first != second
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert ["", ""] == [passwords.problem_of(first), passwords.problem_of(second)]


def test_a_terminal_is_asked_twice(monkeypatch):
    """Unseen, because nobody could check what was typed."""
    answers = iter(["hunter2", "hunter2", "hunter2", "hunter3"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    monkeypatch.setattr("sys.stdin", _Terminal())
    out = io.StringIO()
    assert 0 == ctl.run(["encrypt"], out)
    assert "" == passwords.problem_of(out.getvalue().strip())
    with pytest.raises(ctl.CtlError, match="encrypt: the two differ"):
        ctl.run(["encrypt"], out)


@pytest.mark.parametrize("bad", ["\n", "a\tb\n", "x" * 1025 + "\n"])
def test_what_can_be_no_password(monkeypatch, bad):
    """One line that does not repeat it, exit status 2."""
    monkeypatch.setattr("sys.stdin", io.StringIO(bad))
    with pytest.raises(ctl.CtlError, match="a password has 1 to 1,024 bytes") as caught:
        ctl.run(["encrypt"], io.StringIO())
    assert caught.value.status == 2
