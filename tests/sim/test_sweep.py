"""Which points a sweep has: grids, samples, and everything that is no sweep at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.settings import ConfigError
from sim.sweep import AXES_MAX, Axis, axis, design, numeric


def test_a_grid_is_every_combination():
    """The last key varies fastest; the server's keys need no prefix, and a value may be a list."""
    found = design(["limits.mta.max_conn_per_host=1,20", "bounce.warn_interval_s=[],[60, 3600]"])
    assert [each.key for each in found.axes] == [
        "server.limits.mta.max_conn_per_host",
        "server.bounce.warn_interval_s",
    ]
    assert found.points == (("1", "[]"), ("1", "[60, 3600]"), ("20", "[]"), ("20", "[60, 3600]"))
    assert found.settings(found.points[1]) == {
        "server.limits.mta.max_conn_per_host": "1",
        "server.bounce.warn_interval_s": "[60, 3600]",
    }


def test_the_scenario_s_own_question():
    """Without --over it is what the scenario varies; true is TOML's true."""
    found = design([], vary={"load.keep": [True, False], "server.envelope": ["full"]})
    assert found.points == (("true", "full"), ("false", "full"))


@given(st.integers(2, 60), st.integers(0, 5), st.sampled_from(["", ":log"]))
def test_a_latin_hypercube_hits_each_stratum_once(count: int, seed: int, law: str):
    """Of every axis; and the same seed draws the same points."""
    texts = [f"load.rate=1.0..1000.0{law}", "load.sizes.sigma=0.0..2.0"]
    found = design(texts, sample=count, seed=seed)
    assert found == design(texts, sample=count, seed=seed)
    first = found.axes[0]
    edges = [first.at(n / count) for n in range(count)] + ["1000.0"]
    hits = [0] * count
    for value, _ in found.points:
        inside = [n for n in range(count) if float(edges[n]) <= float(value) <= float(edges[n + 1])]
        # Four digits may put a value on the edge of two.
        hits[inside[0]] += 1
    assert sum(hits) == count - found.dropped
    assert max(hits) <= 2
    values = sorted(float(value) for _, value in found.points)
    if len(values) == count:
        assert all(
            2.0 * n / count - 1e-3 <= v <= 2.0 * (n + 1) / count + 1e-3
            for n, v in enumerate(values)
        )


@given(st.floats(0, 1, exclude_max=True), st.integers(-5, 5), st.integers(1, 9), st.booleans())
def test_whole_ranges_hold_both_ends(part: float, low: int, span: int, logarithmic: bool):
    """Every whole number of the range, and nothing else."""
    low = max(low, 1) if logarithmic else low
    it = Axis("k", (), low, low + span, whole=True, logarithmic=logarithmic)
    assert low <= int(it.at(part)) <= low + span
    assert it.at(0.0) == str(low)
    assert it.at(1 - 1e-12) == str(low + span)


def test_another_seed_another_sample():
    """And plain random points are another sample still."""
    texts = ["load.rate=1..1000"]
    samples = [
        design(texts, sample=8, seed=1),
        design(texts, sample=8, seed=2),
        design(texts, sample=8, seed=1, sampling="random"),
    ]
    assert len({each.points for each in samples}) == 3


def test_points_that_come_out_the_same_are_run_once():
    """And it is said how many."""
    found = design(["load.sessions=1..3"], sample=12)
    assert sorted(found.points) == [("1",), ("2",), ("3",)]
    assert found.dropped == 9
    mixed = design(["load.sessions=1..3", "envelope=full,slim"], sample=200, sampling="random")
    assert len(mixed.points) == 6


def test_numbers_are_told_from_words():
    """For figures, and for the ends of an axis."""
    assert numeric(axis("a=1,2.5"), [("1",), ("2.5",)], 0) == [1.0, 2.5]
    assert numeric(axis("a=1,x"), [("1",), ("x",)], 0) is None
    assert numeric(axis("a=1,nan"), [("1",), ("nan",)], 0) is None


@pytest.mark.parametrize(
    ("texts", "options", "line"),
    [
        ([], {}, "--over: is missing: say key=value,value"),
        (["load.rate"], {}, '--over: "load.rate": must be key=value,value or key=low..high'),
        (["=1,2"], {}, '--over: "=1,2": must be'),
        (["load.rate=1,,2"], {}, '--over: "load.rate=1,,2": must be'),
        (["load.rate="], {}, '--over: "load.rate=": must be'),
        (["load.rate=1,1"], {}, '--over: "load.rate=1,1": names a value twice'),
        (["load.rate=1,2", "load.rate=3"], {}, '--over: "load.rate": is varied twice'),
        (["load.rate=1..9"], {}, "--over: load.rate: is a range, which needs --sample"),
        (["load.rate=9..1"], {"sample": 2}, "the range must rise"),
        (["load.rate=1..1"], {"sample": 2}, "the range must rise"),
        (["load.rate=0..1:log"], {"sample": 2}, "must begin above 0"),
        (["load.rate=1.2.3..9"], {"sample": 2}, "the range has no two numbers"),
        (["load.rate=1..1e999"], {"sample": 2}, "the range must rise"),
        (["seed=1,2"], {}, "--over: seed: is what --replications is for"),
        (["load.rate=1,2", "load.sessions=1,2"], {"points_max": 3}, "--over: 4: must make 3 points at most"),
        (["load.rate=1..9"], {"sample": 4, "points_max": 3}, "--over: 4: must make 3 points at most"),
        ([f"k{n}=1" for n in range(AXES_MAX + 1)], {}, f"must be {AXES_MAX} keys at most"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_one_line(texts: list[str], options: dict, line: str):
    """That names what was said."""
    with pytest.raises(ConfigError) as raised:
        design(texts, **options)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
