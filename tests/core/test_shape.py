"""The age of queued mail by destination."""

from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes import REPRESENTATIONS, make_store
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, evpid
from mta.core.shape import COLUMNS, Shape

NOW = 1_700_000_000.0


def test_columns_are_those_of_qshape():
    """Doubling from five minutes; the last one is open."""
    assert ("5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+") == COLUMNS


def test_an_age_belongs_to_the_first_column_that_holds_it():
    """Ends belong to their column; an envelope from the future is new."""
    shape = Shape(NOW)
    for minutes in (-1, 0, 5, 5.1, 1280, 1281, 99_999):
        shape.add("a.test", NOW - 60 * minutes)
    _, row = shape.rows()
    assert row == {"domain": "a.test", "total": 7, "ages": [3, 1, 0, 0, 0, 0, 0, 0, 1, 2]}


def test_an_empty_queue_has_only_totals():
    """Which are zeros."""
    assert [{"domain": "TOTAL", "total": 0, "ages": [0] * 10}] == list(Shape(NOW).rows())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6))))
def test_totals_are_the_sum_and_the_fullest_comes_first(envelopes):
    """However many there are of whatever age."""
    shape = Shape(NOW)
    for domain, age in envelopes:
        shape.add(domain, NOW - age)
    total, *rows = shape.rows()
    assert total["total"] == len(envelopes) == sum(row["total"] for row in rows)
    assert total["ages"] == [sum(row["ages"][n] for row in rows) for n in range(len(COLUMNS))]
    assert rows == sorted(rows, key=lambda row: (-row["total"], row["domain"]))
    assert all(row["total"] == sum(row["ages"]) for row in rows)


def test_ages_can_be_read_while_envelopes_come_and_go():
    """Each that is there all the time is met once, in every representation."""
    for name in REPRESENTATIONS:
        store = make_store(name, epoch=NOW)

        def add(number, store=store):
            return store.add(
                evpid(MsgId(number), 1),
                Recipient(f"x@d{number}.test", f"d{number}.test"),
                Transaction("a@b.test", 100),
                created_at=NOW,
                expires_at=NOW + 60,
                body=b"x",
            )

        handles = [add(number) for number in range(1, 9)]
        met = []
        for count, (domain, created_at) in enumerate(store.ages()):
            met.append(domain)
            assert created_at == NOW
            if count == 1:
                store.discard(handles[0])
                for number in (6, 7, 5):
                    store.discard(handles[number])
                add(9)
        assert len(met) == len(set(met))
        assert {"d2.test", "d3.test", "d4.test", "d5.test"} <= set(met)
        for number in (2, 3, 4, 5, 9):
            store.discard(store.find(evpid(MsgId(number), 1)))
        assert [] == list(store.ages())
        walk = store.ages()
        add(10)
        next(walk, None)
        store.discard(store.find(evpid(MsgId(10), 1)))
        assert [] == list(walk)
