"""Run directories: found, read, trimmed, linked."""

import json
from pathlib import Path

import numpy as np
import pytest

from testbed.children import UsageError
from testbed.run import render
from testbed.rundir import Run, find, link_latest, read_samples, trim, write_json, write_samples


def test_a_run_is_found_by_path_name_or_latest(tmp_path: Path) -> None:
    """As `testbed show` is told of it."""
    one = tmp_path / "runs" / "backlog-1"
    one.mkdir(parents=True)
    (one / "scenario.toml").write_text("")
    link_latest(one)

    assert one == find(str(one), tmp_path / "runs")
    assert one == find("backlog-1", tmp_path / "runs")
    assert one == find("latest", tmp_path / "runs").resolve()
    with pytest.raises(UsageError, match=r"^nope: there is no such run; the latest are backlog-1$"):
        find("nope", tmp_path / "runs")
    with pytest.raises(UsageError, match=r"^latest: there is no such run$"):
        find("latest", tmp_path / "none")


def test_latest_moves_and_is_never_missing(tmp_path: Path) -> None:
    """The link is replaced in one step, and survives that a run was removed."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        link_latest(tmp_path / name)
        assert Path(name) == (tmp_path / "latest").readlink()
    (tmp_path / "b").rmdir()
    link_latest(tmp_path / "a")
    assert Path("a") == (tmp_path / "latest").readlink()


def test_a_directory_of_that_name_is_left_alone(tmp_path: Path) -> None:
    """Somebody's own `latest` is not replaced by a link."""
    (tmp_path / "latest").mkdir()
    (tmp_path / "a").mkdir()
    link_latest(tmp_path / "a")

    assert not (tmp_path / "latest").is_symlink()


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    """One line that names the directory and what is missing."""
    with pytest.raises(UsageError, match="no such run"):
        Run(tmp_path / "x")
    with pytest.raises(UsageError, match=r"has no scenario\.toml"):
        Run(tmp_path)


def test_damaged_files_are_told(made: Run) -> None:
    """A summary that is missing or half there is one line."""
    with pytest.raises(UsageError, match=r"summary\.json: can't be read"):
        _ = made.summary
    (made.directory / "summary.json").write_text('{"a": ')
    with pytest.raises(UsageError, match=r"summary\.json: not JSON"):
        _ = made.summary


def test_samples_are_read_as_written(tmp_path: Path) -> None:
    """Numbers come back; text columns and half a last line do not; a hole is NaN."""
    path = tmp_path / "samples.csv"
    path.write_text("t,phase,a\n10.5,load,3\n10.7,load,\n10.9,lo")
    found = read_samples(path, start=10.0)

    assert ["t", "a"] == found.names
    assert [0.5, 0.7] == pytest.approx(found["t"].tolist())
    assert 3.0 == found["a"][0]
    assert np.isnan(found["a"][1])
    assert 1 == len(found.at_or_after(0.6))

    write_samples(path, {"t": np.array([0.2]), "queued": np.array([12345678.0])})
    assert 12345678.0 == read_samples(path)["queued"][0]


def test_a_table_without_instants_is_none(tmp_path: Path) -> None:
    """Another file of that name is not taken for samples."""
    path = tmp_path / "samples.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column t"):
        read_samples(path)


def test_json_is_written_whole_or_not(tmp_path: Path) -> None:
    """What can't be JSON leaves the old file as it was, and nothing beside it."""
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})

    assert {"a": 1} == json.loads(path.read_text())
    assert ["a.json"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_trimmed_run_says_the_same(made: Run, tmp_path: Path) -> None:
    """What is shipped gives the same summary as what was run, without traces and logs."""
    (made.directory / "slim" / "trace.jsonl").write_text("x" * 1000)
    render(made, page=False)
    copy = trim(made, tmp_path / "copy")
    render(copy, page=False)

    assert made.summary == copy.summary
    assert not (copy.directory / "slim" / "trace.jsonl").exists()
    with pytest.raises(UsageError, match="can't be made"):
        trim(made, tmp_path / "copy")
