"""--fail-if: what fails a run, what does not, and what is not understood."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim.conditions import ConditionError
from testbed.__main__ import app
from testbed.gates import expectations, tripped, understand
from testbed.quantities import PART_KEYS, QUANTITIES, dimension_of, known, shown, value_of
from testbed.run import render
from testbed.rundir import Run

from .conftest import make_run


@pytest.fixture
def summary(made: Run) -> dict[str, Any]:
    """Of slim and packed: everything went well, p99 of acceptance is 30 ms."""
    render(made, page=False)
    return made.summary


@pytest.mark.parametrize(
    ("condition", "servers"),
    [
        ("lost > 0", []),
        ("lost == 0", ["slim", "packed"]),
        ("p99_accepted > 800 ms", []),
        ("p99_accepted >= 30ms", ["slim", "packed"]),
        ("accept_latency_s.p99 >= 0.03 s", ["slim", "packed"]),
        ("p99_delivered.steady > 20 ms", ["slim", "packed"]),
        ("bytes_per_envelope > 200 B", ["slim"]),
        ("store_per_envelope < 100 B", ["packed"]),
        ("cpu_per_message > 1 ms", ["slim", "packed"]),
        ("foreign_cpu > 99 %", []),
        ("fit.r2 < 0.5", []),
        # It has no value: that is not fine.
        ("fsyncs_per_message > 3", ["slim", "packed"]),
        ("p99_delivered.nowhere > 1 s", ["slim", "packed"]),
    ],
)
def test_gates(summary: dict[str, Any], condition: str, servers: list[str]) -> None:
    """A gate fails the run if it holds for one of the servers, and names which."""
    assert servers == [line.partition(":")[0] for line in tripped([condition], summary)]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("p99_acepted > 1 s", "no quantity p99_acepted"),
        ("lost.steady.p99 > 1", "no destination steady.p99"),
        ("p99_accepted > 800", "is a time"),
        ("p99_accepted > 800 MiB", "is a time"),
        ("peak_rss > 5 s", "is a size"),
        ("lost > 1 s", "is a plain number"),
        ("foreign_cpu > 3", "is a share"),
        ("messages_per_s < 3", "is a rate"),
        ("cpu.one > 3 s", "no quantity"),
        ("p99_delivered.mars > 3 s", "no destination mars"),
    ],
)
def test_what_is_not_understood(condition: str, words: str) -> None:
    """Said before anything is started, with what would have been right."""
    with pytest.raises(ConditionError, match=words):
        understand(condition, ["steady", "flaky"])


def test_zero_needs_no_unit() -> None:
    """Nothing is nothing in any unit."""
    assert 0.0 == understand("growth_rss > 0").number


def test_expectations_are_in_the_summary(summary: dict[str, Any]) -> None:
    """Each with each server and what it had; one that fails trips `unhealthy`."""
    found = expectations(["lost == 0", "p99_accepted < 1 ms"], summary)

    assert [("slim", True), ("packed", True), ("slim", False), ("packed", False)] == [
        (each["server"], each["holds"]) for each in found
    ]
    assert 2 == len(tripped(["unhealthy"], {**summary, "expected": found}))
    assert "30 ms" in tripped(["unhealthy"], {**summary, "expected": found})[0]


def _numbers(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path + key


def test_every_number_of_a_summary_has_a_name(summary: dict[str, Any]) -> None:
    """By a quantity, or by its path; and what is in seconds or bytes is compared so."""
    for part in summary["representations"].values():
        for path in _numbers(part):
            first = path.partition(".")[0]
            assert first in PART_KEYS or first in QUANTITIES, path
            assert known(path), path
            assert value_of(part, path) is not None, path
    for quantity in QUANTITIES.values():
        first = quantity.path.partition(".")[0]
        assert first in summary["representations"]["slim"] or quantity.name == "fsyncs_per_message"


@pytest.mark.parametrize(
    ("value", "dimension", "words"),
    [
        (None, "time", "no value"),
        (0.0123, "time", "12.3 ms"),
        (0.00005, "time", "50 us"),
        (75.0, "time", "75 s"),
        (1536.0, "size", "1.5 KiB"),
        (100.0, "size", "100 B"),
        (0.125, "share", "12.5 %"),
        (1234.5, "rate", "1,234.5 /s"),
        (12345.0, "", "12,345"),
        (1.234, "", "1.23"),
    ],
)
def test_values_are_shown_for_people(value: float | None, dimension: Any, words: str) -> None:
    """Three digits and a unit."""
    assert words == shown(value, dimension)


def test_dimensions() -> None:
    """Of names and of paths."""
    assert "time" == dimension_of("p99_accepted")
    assert "time" == dimension_of("delivery_latency_s.steady.p95")
    assert "size" == dimension_of("fit.intercept_bytes")
    assert "" == dimension_of("lost.steady")


def test_the_command_line(tmp_path: Path) -> None:
    """Status 2 before anything is started; help prints what there is; several conditions follow one option."""
    out = str(tmp_path / "out")
    for arguments, words in (
        (["--fail-if", "lost > 0", "p9 > 1"], "no quantity p9"),
        (["--fail-if", "lost.mars > 0"], "no destination mars"),
    ):
        result = CliRunner().invoke(app, ["run", "backlog", *arguments, "--out", out])
        assert 2 == result.exit_code
        assert words in result.stderr
        assert 1 == len(result.stderr.splitlines())
    assert not (tmp_path / "out").exists()

    result = CliRunner().invoke(app, ["run", "backlog", "--fail-if", "help"])
    assert 0 == result.exit_code
    for name in QUANTITIES:
        assert name in result.stdout

    assert 2 == CliRunner().invoke(app, ["run", "backlog", "lost > 0"]).exit_code


@pytest.mark.parametrize("command", ["run", "show", "compare"])
def test_the_quantities_need_no_run(command: str) -> None:
    """`testbed run --fail-if help`, as the message about an unknown one says: nothing else has to be named."""
    result = CliRunner().invoke(app, [command, "--fail-if", "help"])
    assert 0 == result.exit_code
    assert "p99_accepted" in result.stdout


def test_show_gates_a_run_that_is_there(tmp_path: Path) -> None:
    """`testbed show RUN --fail-if`: the same for a run of yesterday."""
    made = make_run(tmp_path / "run", {"slim": 400.0}, lost=3, delivered=17_797)
    render(made, page=False)
    for condition, status in (("lost>0", 1), ("lost>3", 0), ("lost>0s", 2)):
        result = CliRunner().invoke(app, ["show", str(made.directory), "--fail-if", condition])
        assert status == result.exit_code, condition
    result = CliRunner().invoke(
        app, ["show", str(made.directory), "--json", "--fail-if", "lost>0", "duplicates>0"]
    )
    assert "testbed: --fail-if: slim: lost>0: 3" in result.stderr
    assert 3 == json.loads(result.stdout)["lost"]
