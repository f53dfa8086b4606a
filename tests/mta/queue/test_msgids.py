"""Message ids: none twice, whatever happens to the server that gives them out."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mta.queue.msgids import BLOCK, LAST, MsgIds, reserved_from
from tests.support.queues import held, ids, opened, submission


def nothing_is_known(msgid: int) -> bool:
    return False


async def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    """A clean restart skips none; ids count up from 1."""
    async with opened(tmp_path) as queue:
        assert [1, 2, 3] == [queue.next_msgid() for _ in range(3)]
    async with opened(tmp_path) as queue:
        assert 4 == queue.next_msgid()
    async with opened(tmp_path):
        pass
    async with opened(tmp_path) as queue:
        assert 5 == queue.next_msgid()


@given(st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=6))
def test_no_id_is_given_out_twice_whatever_the_crashes(lives: list[int]) -> None:
    """Each life gives out some ids and crashes; the mark it wrote down last is where the next begins."""
    mark, given_out = 1, set()
    for count in lives:
        written = [reserved_from(mark)]

        def write(mark: int, wrapped: bool, written: list[int] = written) -> None:
            written.append(mark)

        msgids = MsgIds(mark, wrapped=False, is_known=nothing_is_known, set_mark=write)
        for _ in range(count):
            msgid = msgids.next()
            assert msgid not in given_out
            assert msgid < written[-1], "the mark is behind the ids"
            given_out.add(msgid)
        mark = written[-1]
    assert all(0 < msgid <= LAST for msgid in given_out)


def test_ids_start_again_and_leave_out_those_in_use() -> None:
    """After the last comes the first that no message has."""
    marks: list[tuple[int, bool]] = []
    msgids = MsgIds(
        LAST - 1,
        wrapped=False,
        is_known=lambda msgid: msgid in (1, 2, 4),
        set_mark=lambda mark, wrapped: marks.append((mark, wrapped)),
    )
    assert [LAST - 1, LAST, 3, 5, 6] == [msgids.next() for _ in range(5)]
    assert marks[-1] == (3 + 1 + BLOCK, True)
    msgids.close()
    assert marks[-1] == (7, True)


async def test_starting_again_is_remembered(tmp_path: Path) -> None:
    """After a restart too, the ids of messages that are there are left out."""
    async with opened(tmp_path) as queue:
        for msgid in (3, 5, LAST):
            await queue.submit(submission(msgid))
        queue._ids._next = LAST - 1
        # Ids are given out up to the last, and before the start again nobody looks what is there.
        assert [LAST - 1, LAST, 1, 2, 4] == [queue.next_msgid() for _ in range(5)]
    async with opened(tmp_path) as queue:
        assert [6, 7] == [queue.next_msgid() for _ in range(2)]
        assert [ids(3)[0], ids(5)[0], ids(LAST)[0]] == held(queue)
