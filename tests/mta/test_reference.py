"""The reference is what the code says, and the code says enough."""

import re
from pathlib import Path

import pytest

from mta.config import Config
from mta.core.settings import flatten
from mta.reference import pages
from mta.reference.__main__ import run
from mta.reference.keys import default_text, keys
from mta.reference.loglines import lines_of
from sim.behaviours import KINDS

DOCS = Path(__file__).parents[2] / "docs" / "reference"
KEYS = list(keys())
PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_files_are_what_the_code_says(name):
    """If not: ``make reference``."""
    assert PAGES[name] == (DOCS / name).read_text(), f"{name} is out of date: make reference"


def test_there_is_no_page_of_the_past():
    """Whatever lies there is made."""
    assert {path.name for path in DOCS.iterdir()} == set(PAGES)


def test_every_key_is_there():
    """Those of the defaults, and those below tables that are empty by default."""
    paths = {key.path for key in KEYS}
    assert set(flatten(Config())) - paths <= {"relays"} | {
        "rules",
        "tables",
        "userbases",
        "listeners",
    }
    assert {"rules[].name", "tables.NAME.kind", "userbases.NAME.NAME.home"} <= paths


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_says_what_it_is(key):
    """In a sentence; a number has a unit, and its default a source, if only that it is ours."""
    assert key.text.endswith((".", ")")), key.path
    assert key.unit, f"{key.path}: name the unit in the docstring: {key.text!r}"
    if key.is_tunable:
        assert key.source, f"{key.path}: say where the default comes from: {key.text!r}"


def test_every_key_is_on_its_page():
    """With its default."""
    for key in KEYS:
        page = "limits.md" if key.path.startswith("limits.") else "configuration.md"
        assert f"**`{key.path.rpartition('.')[2]}`** ({default_text(key)}, " in PAGES[page]


def test_every_behaviour_has_a_part():
    """Of the page of scenarios, with the keys that it has; tables are there once."""
    page = PAGES["scenarios.md"]
    headings = re.findall(r"^## `(.+)`$", page, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(KINDS) <= set(headings)
    assert {"[load]", "[destinations[]]", "[timeline[]]", "[local[]]"} <= set(headings)
    assert "- **`slower`** (`10.0`): How many times" in page


def test_lines_of_the_log_are_found():
    """With what varies in brackets, whatever it is made of; a name alone is found elsewhere."""
    source = """
def f(self, log, text, evpid, ok):
    log.info(f"{show_evpid(evpid)} sent to=<{self.peer.address}> n={len(items)}" + (" late" if ok else ""))
    self._log.warn("queue: it is full")
    log.info(text)
    out.append(Note(f"smtp-out: hiwat on [relay:{relay.domain}]"))
    log.info(f"result={'ok' if ok else 'no'} {a + b} {rows[0]} {x or y} {call()}")
    other("not a line of the log")
"""
    assert {
        ("info", "<evpid> sent to=<<address>> n=<items>[ late]"),
        ("warn", "queue: it is full"),
        ("info", "smtp-out: hiwat on [relay:<domain>]"),
        ("info", "result=<ok|no> <a> <rows> <x> <call>"),
    } == set(lines_of(source))


def test_lines_that_operators_know_are_there():
    """OpenSMTPD's words, and ours."""
    page = PAGES["log.md"]
    assert "smtp-out: hiwat reached on [relay:<domain>]: holding envelopes" in page
    assert "warn: internal error: <what>" in page


def test_the_program(tmp_path, capsys):
    """It writes what differs, and says so; with --check it only says so."""
    assert 1 == run(["--check", str(tmp_path)])
    assert [] == list(tmp_path.iterdir())
    assert 0 == run([str(tmp_path)])
    assert 0 == run(["--check", str(tmp_path)])
    (tmp_path / "limits.md").write_text("old")
    capsys.readouterr()
    assert 0 == run([str(tmp_path)])
    assert f"{tmp_path / 'limits.md'}: written\n" == capsys.readouterr().out
    assert 2 == run(["--chek", str(tmp_path)])
    assert 2 == run([str(tmp_path / "missing" / "dir")])
