"""Histograms: those of several processes are as one of all; the warm-up is in none."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests._results import summed
from loadtests._tally import Tally, encoded, merged, new_histogram, percentiles

SECONDS = st.floats(0.0, 3600.0)


def counts(histogram) -> Counter[int]:
    """Return how often each recorded value is in a histogram."""
    return Counter(
        {
            each.value_iterated_to: each.count_at_value_iterated_to
            for each in histogram.get_recorded_iterator()
        }
    )


def tally_of(values: dict[str, list[float]]) -> Tally:
    tally = Tally()
    for name, many in values.items():
        for seconds in many:
            tally.add(name, seconds)
    tally.take()
    return tally


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["MAIL", "."]), st.lists(SECONDS, min_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_merged_histograms_are_the_histogram_of_all_values(workers):
    """Value by value, through the text that travels between processes."""
    found = merged([encoded(tally_of(each).histograms()) for each in workers])
    wanted = {}
    for worker in workers:
        for name, many in worker.items():
            histogram = wanted.setdefault(name, new_histogram())
            for seconds in many:
                histogram.record_value(round(seconds * 1e6))
    assert found.keys() == wanted.keys()
    for name, histogram in wanted.items():
        assert counts(found[name]) == counts(histogram)
        assert found[name].get_total_count() == sum(len(each.get(name, ())) for each in workers)


def test_what_began_in_the_warm_up_does_not_count():
    """Neither in the histograms nor in what Locust is told; what began later counts, whatever came before."""
    tally = Tally(counts_from=time.perf_counter() + 0.05)
    tally.add("MAIL", 0.001, 10)
    deadline = time.perf_counter() + 0.06
    while time.perf_counter() < deadline:
        pass
    tally.add("MAIL", 0.2, 10)  # ended after the warm-up, began in it
    tally.add("MAIL", 0.001, 10)
    (gathered,) = tally.take()
    assert (gathered.name, gathered.octets, len(gathered.seconds)) == ("MAIL", 10, 1)
    assert percentiles(tally.histograms())["MAIL"]["count"] == 1


def test_ends_of_workers_add_up():
    """Counts are sums, lag is that of the worst, and one invalid share makes the run invalid."""
    end = {
        "run": "r", "complete": True, "valid": True, "messages": 3, "settled": 3, "accepted_envelopes": 4, "retries": 1,
        "outcomes": {"250": 3}, "generator_lag_s": {"p50": 0.1, "p99": 0.2, "max": 0.3}, "pulse_s": None,
    }  # fmt: skip
    other = end | {
        "complete": False, "valid": False, "settled": 2, "outcomes": {"250": 1, "lost": 1},
        "generator_lag_s": {"p50": 0.0, "p99": 0.4, "max": 0.4},
    }  # fmt: skip
    total = summed([end, other])
    assert (total["complete"], total["valid"]) == (False, False)
    assert (total["messages"], total["settled"], total["accepted_envelopes"], total["retries"]) == (
        6,
        5,
        8,
        2,
    )
    assert total["outcomes"] == {"250": 4, "lost": 1}
    assert total["generator_lag_s"] == other["generator_lag_s"]
    assert total["pulse_s"] is None
    assert total["workers"] == [end, other]
    assert summed([end])["valid"] == pytest.approx(True)
