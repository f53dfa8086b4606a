"""Lines of traces and the load's record, read fast, say what the slow way says."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.records import plain_json
from mta.core.settings import ConfigError
from sim import loadrecord
from sim.rows import Rows
from sim.sentline import sent_line
from sim.tracefile import decode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_json_is_read_as_the_standard_library_reads_it(value: object):
    """To the last bit, numbers that JSON has not included."""
    line = json.dumps(value).encode() + b"\n"
    assert repr(decode(line)) == repr(plain_json(line))


@given(st.binary(max_size=30))
def test_what_is_no_json_is_none_either_way(line: bytes):
    """Nothing is accepted by one and refused by the other."""

    def read(reader: object) -> str:
        try:
            return repr(reader(line))  # type: ignore[operator]
        except ValueError:
            return "no JSON"

    assert read(decode) == read(plain_json)


def test_rows_are_what_was_appended():
    """In the order of time, those of two processes one after the other."""
    first: Rows[tuple[float, int, str]] = Rows("dqO")
    first.append((0.5, 1, "a"))
    second: Rows[tuple[float, int, str]] = Rows("dqO")
    second.append((1.5, 2, "b"))
    assert list(first + second) == [(0.5, 1, "a"), (1.5, 2, "b")]
    assert len(first + second) == 2
    assert list(first) == [(0.5, 1, "a")]
    with pytest.raises(ValueError, match="shorter"):
        first.append((0.5, 1))  # type: ignore[arg-type]


def test_a_load_is_columns(tmp_path: Path):
    """Refused messages have no id; half a line at the end was never written."""
    path = tmp_path / "load.jsonl"
    line = {
        "kind": "message",
        "seq": 3,
        "scheduled": 1.5,
        "sent": 2.0,
        "done": 2.25,
        "attempts": 2,
        "code": 250,
        "reply": "2.0.0 0000abcd Message accepted for delivery",
        "rcpts": ["a@a.test", "b@a.test"],
    }
    refused = line | {"code": 452, "seq": 4, "rcpts": []}
    lost = line | {"code": 0, "seq": 5, "reply": ""}
    text = "".join(
        json.dumps(each) + "\n"
        for each in ({"kind": "start", "load_start": 1.0}, line, refused, lost, {"kind": "end"})
    )
    path.write_text(text + '{"kind": "mess')
    found = loadrecord.read(path)
    assert len(found) == 3
    assert found.start == 1.0
    assert list(found.number) == [3, 4, 5]
    assert list(found.recipients) == [2, 0, 2]
    assert list(found.code) == [250, 452, 0]
    assert (found.scheduled[0], found.sent[0], found.done[0], found.attempts[0]) == (
        1.5,
        2,
        2.25,
        2,
    )
    assert list(found.accepted()) == [(0xABCD, 2.0)]


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"kind": "message"}', '{"kind": "message", "seq": "x", "code": 250, "reply": "", "sent": 1}', "no"]
)  # fmt: skip
def test_a_damaged_load_is_one_line(tmp_path: Path, line: str):
    """The file is named, whatever is wrong with it."""
    path = tmp_path / "load.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"load.jsonl.*is no record of a load"):
        loadrecord.read(path)
    with pytest.raises(ConfigError, match="can't be read"):
        loadrecord.read(tmp_path / "none")


def test_an_unusual_message_is_read_as_the_usual_one(tmp_path: Path):
    """Whole lines are read without what nobody asks for; one that is not so whole counts as much."""
    said = {
        "kind": "message",
        "seq": 3,
        "scheduled": 5.0,
        "sent": 5.5,
        "done": 5.5,
        "attempts": 1,
        "code": 250,
        "reply": "2.0.0 0000002a Message accepted for delivery",
        "rcpts": ["a@b.test", "c@b.test"],
        "digest": {"nobody": ["asks"]},
    }
    unusual = {**said, "seq": 3.0, "attempts": "1"}
    never_answered = {"kind": "message", "seq": 4, "sent": 6, "code": None, "reply": None}
    lines = [json.dumps(each) + "\n" for each in (said, unusual, never_answered)]
    (tmp_path / "load.jsonl").write_text("".join(lines))
    found = loadrecord.read(tmp_path / "load.jsonl")
    assert sent_line(lines[0].encode()) is not None
    assert sent_line(lines[1].encode()) is None
    columns = (found.number, found.scheduled, found.sent, found.done, found.code, found.attempts)
    assert [(3, 5.0, 5.5, 5.5, 250, 1)] * 2 + [(4, 6, 6, 6, 0, 1)] == list(
        zip(*columns, strict=True)
    )
    assert list(found.recipients) == [2, 2, 0]
    assert list(found.msgid) == [42, 42, loadrecord.NOT_OURS]
