"""Ctrl-C, and a supervisor's SIGTERM, in real processes of the model: one line, status 130, no file half written."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sim.wholefile import none_left, whole
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


def interrupted(words: Sequence[str], *, number: int, begun: Path, cwd: Path) -> str:
    """Send a signal as soon as a file is there; return what was said on standard error."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTED, str(begun), *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as it:
        eventually(begun.exists, "the command does not begin", timeout_s=60.0)
        it.send_signal(number)
        out, err = it.communicate(timeout=60)
    assert (it.returncode, out) == (130, "")
    return err


STARTED = """
import pathlib, signal, sys
from sim import __main__ as command, runner

begun, run = pathlib.Path(sys.argv.pop(1)), runner.Model.run

def running(model):
    begun.touch()
    run(model)
    signal.pause()  # a fast machine is done before the signal comes

runner.Model.run = running
sys.argv[0] = "sim"
command.main()
"""
"""The command itself; a file says that a model has begun to run."""

LONG = ("--set", "load.messages=3000000")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run(tmp_path: Path, number: int):
    """Its trace, of which a part was written, is gone; what was in the directory before is not."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "trace-9.jsonl").write_text("of another run\n")
    words = ("run", "backlog", *LONG, "--out", str(out))
    err = interrupted(words, number=number, begun=tmp_path / "begun", cwd=tmp_path)
    assert err == "sim: interrupted\n"
    assert [path.name for path in out.iterdir()] == ["trace-9.jsonl"]


def test_validate(tmp_path: Path):
    """The same."""
    words = ("validate", "--json")
    err = interrupted(words, number=signal.SIGINT, begun=tmp_path / "begun", cwd=tmp_path)
    assert err == "sim: interrupted\n"


def test_replay(tmp_path: Path):
    """The same, of a recorded run."""
    run = tmp_path / "long-1"
    made = [sys.executable, "-c", RECORDED, str(run)]
    subprocess.run(made, check=True, timeout=60)
    words = ("replay", str(run), "--json")
    err = interrupted(words, number=signal.SIGINT, begun=tmp_path / "begun", cwd=tmp_path)
    assert err == "sim: interrupted\n"


RECORDED = """
import pathlib, sys
from sim.runner import simulate
from tests.sim.test_calibrate import LATENCY, SERVER, TRUTH
from tests.support.model import scenario, write_run

write_run(pathlib.Path(sys.argv[1]), scenario(LATENCY, messages=4000, server=SERVER), costs=TRUTH)
"""


def _interrupted_while_writing(path: Path) -> None:
    with whole(path) as new:
        new.write_text("thi")
        raise KeyboardInterrupt


def _interrupted_among_files(folder: Path) -> None:
    with none_left(folder, "t*"):
        (folder / "t-2").write_text("half of it")
        (folder / "t-3").write_text("half")
        raise KeyboardInterrupt


def test_a_file_is_whole_or_not_there(tmp_path: Path):
    """Whoever is interrupted while writing leaves what was there before, and nothing beside it."""
    path = tmp_path / "a.json"
    for words in ("first", "second"):
        with whole(path) as new:
            new.write_text(words)
    with pytest.raises(KeyboardInterrupt):
        _interrupted_while_writing(path)
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]
    gone = tmp_path / "none" / "a.json"
    with pytest.raises(FileNotFoundError) as caught, whole(gone) as new:
        new.write_text("nowhere")
    assert caught.value.filename == str(gone)


def test_what_was_not_written_stays(tmp_path: Path):
    """Only files that the block wrote are removed, and only if it fails."""
    (tmp_path / "t-1").write_text("old")
    with none_left(tmp_path, "t*"):
        (tmp_path / "t-2").write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        _interrupted_among_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["t-1"]
