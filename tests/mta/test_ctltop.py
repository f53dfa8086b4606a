"""The live view: rates by the server's clock, 80 columns, and nothing hostile on the terminal."""

import io
import json

import pytest

from mta.core.envelopes import REPRESENTATIONS, make_store
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, evpid
from mta.core.metrics import METRICS, Kind
from mta.ctltop import RATES, rates, show_top
from mta.footprint import estimate_bytes
from tests.support.control import NOW, FakeTarget


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return FakeTarget()


def show(target, mode, **options):
    out = Terminal() if mode == "terminal" else io.StringIO()
    slept = []
    options = {"count": 1, "interval_s": 1.0, **options}
    show_top(target.top, out, mode, sleep=slept.append, **options)
    return out.getvalue(), slept


def test_rates_are_of_counters_that_exist():
    """Each is a sum of counters, never of gauges."""
    for names in RATES.values():
        assert all(METRICS[name].kind is Kind.COUNTER for name in names)


def test_the_first_rates_are_means_since_the_start(target):
    """Later ones are what changed since the reading before, by the server's clock."""
    first, second = target.top(), target.top()
    assert 50 / 93_784 == rates(first, None)["messages"]
    assert 50.0 == rates(second, first)["messages"]
    second["t"] = first["t"]
    assert rates(second, first)["messages"] > 0  # the clock did not move: no division by zero


def test_in_a_pipe_it_is_80_columns_wide(target):
    """Rates, states, memory and destinations; one reading, no waiting."""
    text, slept = show(target, "pipe")
    assert [] == slept
    assert "mx.test  up 1d2h" in text
    for word in ("tempfail", "inflight", "envelopes, slim", "2.0 KiB", "d0.test", "dead", "1.5 s"):
        assert word in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert 20 == text.count("Connection")


def test_json_has_rates(target):
    """One object a line."""
    text, slept = show(target, "json", count=2, interval_s=0.5)
    first, second = map(json.loads, text.splitlines())
    assert 50.0 == second["rates"]["messages"]
    assert NOW + 1 == first["t"]
    assert [0.5] == slept


def test_on_a_terminal_it_fits_the_screen(target):
    """And stays when it ends; control characters of a remote host do nothing."""
    text, _ = show(target, "terminal", count=2)
    last = text.rpartition("\x1b[?1049l")[2]
    assert "Connection\\x1b" in text
    assert "\x1b ref" not in text
    assert len(last.splitlines()) <= 24
    assert "d0.test" in last


def test_pressure_and_stress_are_told(target):
    """In the first line; a limit gives a share."""
    target.values |= {"memory.pressure": 2, "smtp.stress": 1}
    target.values |= {"memory.usage": 1 << 20, "memory.limit": 4 << 20}
    text, _ = show(target, "pipe")
    assert "memory 1.0 MiB of 4.0 MiB (25%)  pressure 2  stress" in text


def test_interrupted_it_leaves_the_terminal_as_it_was(target):
    """The alternate screen is left, whatever happens."""

    def interrupted(seconds):
        raise KeyboardInterrupt

    out = Terminal()
    with pytest.raises(KeyboardInterrupt):
        show_top(target.top, out, "terminal", count=None, interval_s=1.0, sleep=interrupted)
    assert "\x1b[?1049h" in out.getvalue()
    assert "\x1b[?1049l" in out.getvalue()


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_the_estimate_grows_with_the_queue(name):
    """From next to nothing; a representation that keeps more is larger."""
    store = make_store(name, epoch=NOW)
    empty = estimate_bytes(store)
    for number in range(1, 1001):
        store.add(
            evpid(MsgId(number), 1),
            Recipient(f"user{number}@d{number}.test", f"d{number}.test"),
            Transaction("a@b.test", 1000),
            created_at=NOW,
            expires_at=NOW + 60,
            body=b"x" * 1000,
        )
    each = (estimate_bytes(store) - empty) / 1000
    low, high = {"packed": (30, 250), "fixed": (8_000, 12_000)}.get(name, (150, 3_000))
    assert low < each < high
