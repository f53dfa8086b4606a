"""Outages, told from greylisting and chance."""

import math
import random

import pytest

from sim.logs.windows import Outage, Try, outages


def tries(text: str, *, connected: bool = True) -> list[Try]:
    """An attempt a second: ``.`` goes well, ``x`` fails, ``r`` a retry that fails, ``o`` one that goes well, ``-`` is put off unasked."""
    return [
        Try(float(i), c in "xr-", c in ".x-", c != "-", connected or c in ".o", 0)
        for i, c in enumerate(text)
    ]


def spans(text: str, *, connected: bool = True) -> list[tuple[float, float]]:
    return [(each.begin, each.end) for each in outages(tries(text, connected=connected))]


def test_a_run_of_failures_is_an_outage_from_half_way_to_half_way():
    """Its first and last failure are in it, the attempts around are not."""
    found = outages(tries("." * 10 + "x" * 8 + "." * 10))
    assert [Outage(9.5, 17.5, True, 8, 8, 0)] == found


def test_two_outages_are_two():
    """What goes well between them ends the first."""
    assert [(19.5, 29.5), (30.5, 40.5)] == spans("." * 20 + "x" * 10 + "." + "x" * 10 + "." * 20)


@pytest.mark.parametrize("text", ["", ".", "x", "." * 20 + "xxxx" + "." * 20, "xo" * 50])
def test_a_few_failures_are_no_outage(text: str):
    """Nor are failures that others' success interrupts."""
    assert [] == spans(text)


def test_greylisting_is_no_outage():
    """All first attempts fail in the time until somebody comes again, and that again and again."""
    assert [] == spans(("x" * 30 + "o" * 30) * 5)


def test_chance_is_no_outage():
    """A host that fails for two attempts of three has runs of failures."""
    rng = random.Random(1)
    text = "".join("x" if rng.random() < 0.66 else "." for _ in range(2000))
    assert "xxxxxxxxxx" in text
    assert [] == spans(text)


def test_an_outage_at_the_beginning_or_the_end_has_no_edge_there():
    """Nobody knows when it began, or whether it ended."""
    assert [(-math.inf, 9.5)] == spans("x" * 10 + "." * 20)
    assert [(19.5, math.inf)] == spans("." * 20 + "x" * 10)


def test_two_connections_that_fail_are_enough():
    """That is never about a message."""
    assert [(9.5, 11.5)] == spans("." * 10 + "xx" + "." * 10, connected=False)
    assert [False] == [
        each.reachable for each in outages(tries("." * 10 + "xx" + ".", connected=False))
    ]


def test_who_was_not_asked_says_nothing_about_the_edges():
    """What was put off unasked after the last failure was put off because of it."""
    (found,) = outages(tries("." * 10 + "xx" + "-" * 8 + "." * 10, connected=False))
    assert (9.5, (11 + 20) / 2) == (found.begin, found.end)


def test_where_all_first_attempts_failed_the_words_decide():
    """A log that begins in an outage, or one of a host that is greylisting."""
    text = "x" * 30 + "o" * 30
    assert 1 == len(outages(tries(text), ["450 4.2.0 Mailbox server is down"]))
    assert [] == outages(tries(text), ["451 4.7.1 Greylisted, see http://..."])
    assert [] == outages(tries(text), ["450 4.2.0 <a@b>: Recipient address rejected: Greylisted"])
