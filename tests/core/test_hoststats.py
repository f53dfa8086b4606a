"""The latest news of each destination."""

from mta.core import hoststats
from mta.core.hoststats import HostStats
from tests.support.core import EPOCH, Core


def test_the_latest_news_counts(monkeypatch):
    """And is last in the list; without a transaction the mean stays."""
    stats = HostStats()
    stats.note("a.test", "250 ok", 1.0, 4.0)
    stats.note("b.test", "451 later", 2.0)
    stats.note("a.test", "Connection refused", 3.0)
    stats.note("a.test", "250 ok", 4.0, 12.0)
    (_, b), (name, a) = stats.items(5.0)
    assert ("a.test", 4.0, "250 ok", 2, 5.0) == (name, a.at, a.status, a.transactions, a.seconds)
    assert (2.0, "451 later", 0, 0.0) == (b.at, b.status, b.transactions, b.seconds)


def test_news_are_forgotten_after_four_hours():
    """One that had others since then lives on."""
    stats = HostStats()
    stats.note("a.test", "250 ok", 0.0)
    stats.note("b.test", "250 ok", 0.0)
    stats.note("a.test", "250 ok", 1.0)
    assert ["a.test"] == [name for name, _ in stats.items(14_400.0)]
    assert [] == list(stats.items(14_401.0))
    assert 0 == len(stats)


def test_there_is_a_bound(monkeypatch):
    """Whoever was heard of least lately goes first."""
    monkeypatch.setattr(hoststats, "ENTRIES_MAX", 2)
    stats = HostStats()
    for name in ("a", "b", "a", "c"):
        stats.note(name, "250 ok", 0.0)
    assert ["a", "c"] == [name for name, _ in stats.items(1.0)]


def test_the_agent_notes_every_kind_of_news():
    """A transaction and its duration, a connection that failed or was lost, a domain that is not there."""
    core = Core(representations=("slim",))
    core.submit("one.test")
    core.resolve("one.test", (10, "192.0.2.1"))
    core.ready(1)
    core.now = EPOCH + 3
    core.done(1)
    core.submit("two.test")
    core.resolve("two.test", (10, "192.0.2.2"))
    core.failed(2, "Connection refused")
    core.submit("one.test")
    core.now = EPOCH + 5
    core.closed(1, "Connection reset")
    found = dict(core.engine.agent.hoststats.items(core.now))
    assert "Connection refused" == found["two.test"].status
    assert ("Connection reset", 2) == (found["one.test"].status, found["one.test"].transactions)
    assert 3.0 + (2.0 - 3.0) / 8 == found["one.test"].seconds
