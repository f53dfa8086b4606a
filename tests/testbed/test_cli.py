"""The command: what it is told wrongly is one line and status 2, before anything is started."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.__main__ import app
from testbed.run import render
from testbed.rundir import Run, link_latest

from .conftest import make_run


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "nope"),
        (["./nope.toml"], "nope.toml"),
        (["backlog", "--set", "load.mesages=5"], "mesages"),
        (["backlog", "--set", "load.messages=many"], "many"),
        (["backlog", "--set", "load.messages=-5"], "-5"),
        (["backlog", "--representations", "slim,fat"], "fat"),
        (["backlog", "--representations", ","], "representations"),
        (["backlog", "--seed", "-1"], "-1"),
    ],
)
def test_what_was_asked_wrongly(tmp_path: Path, arguments: list[str], words: str) -> None:
    """One line that names it, status 2, and no directory is left behind."""
    out = tmp_path / "out"
    status, stdout, stderr = run("run", *arguments, "--out", str(out))

    assert (2, "") == (status, stdout)
    (line,) = stderr.splitlines()
    assert line.startswith("testbed: ")
    assert words in line
    assert not out.exists()


def test_a_run_never_overwrites_another(tmp_path: Path) -> None:
    """A directory that has something in it is not used."""
    (tmp_path / "mine.txt").write_text("x")
    status, _, stderr = run("run", "backlog", "--out", str(tmp_path))

    assert 2 == status
    assert "not empty" in stderr
    status, _, stderr = run("run", "backlog", "--out", str(tmp_path / "mine.txt" / "below"))
    assert (2, 1) == (status, len(stderr.splitlines()))


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_run_that_is_not_there(tmp_path: Path, command: str) -> None:
    """One line, status 2."""
    status, _, stderr = run(command, "nope", "--runs", str(tmp_path))

    assert (2, "testbed: nope: there is no such run\n") == (status, stderr)


def test_report_and_show(made: Run) -> None:
    """A run is rendered again from its files, and its tables are printed."""
    link_latest(made.directory)
    runs = str(made.directory.parent)
    status, stdout, _ = run("report", "--runs", runs)
    assert (0, "report.html\n") == (status, stdout[-12:])

    status, stdout, _ = run("show", "--runs", runs)
    assert 0 == status
    assert "packing (slim to packed) saves" in stdout
    assert "lost 0" in stdout

    status, stdout, _ = run("show", "run", "--runs", runs, "--json")
    assert 0 == status
    assert made.summary == json.loads(stdout)


def test_show_tells_of_failures(tmp_path: Path) -> None:
    """A failed run is shown as one."""
    made = make_run(tmp_path / "run", {"slim": 400.0}, lost=3, delivered=17_797)
    render(made, page=False)
    status, stdout, _ = run("show", str(made.directory))

    assert 0 == status
    assert "FAILED: slim: 3 recipients were accepted and lost" in stdout


def test_trim(made: Run, tmp_path: Path) -> None:
    """A small copy that `show` can show."""
    status, stdout, _ = run("trim", str(made.directory), str(tmp_path / "small"))
    assert (0, f"{tmp_path / 'small'}\n") == (status, stdout)

    assert 0 == run("show", str(tmp_path / "small"))[0]
    assert 2 == run("trim", str(made.directory), str(tmp_path / "small"))[0]


def test_the_world_has_its_own_options() -> None:
    """`testbed world` is `python -m testbed.world`: the same words, the same complaints."""
    status, _, stderr = run("world", "nope")

    assert 2 == status
    assert "nope" in stderr


def test_the_kinds_of_hosts_are_listed() -> None:
    """With what they do; real hosts' words to the letter, brackets and all; as JSON, too."""
    assert "mixed" in run("profiles")[1]
    assert "[#4.16.1]" in run("profiles", "--replies")[1].replace("\n", "")
    status, stdout, _ = run("profiles", "--replies", "--json")
    assert (0, "RCPT 550 Invalid recipient: <user@example.net>") == (
        status,
        json.loads(stdout)["opensmtpd/unknown"],
    )
