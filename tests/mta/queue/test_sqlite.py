"""The durable queue when the disk works: what is promised is there, after a restart too."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.core.envelopes.base import Recipient, Transaction, mta_envelope
from mta.core.ids import EvpId, MsgId
from mta.core.limits import QueueLimits
from mta.effects import Effects, Space
from mta.queue.base import DurableQueue, QueueUnavailableError
from mta.queue.database import QueueCorruptError
from mta.queue.sqlite import QueueLockedError, SqliteQueue
from tests.support.faults import FaultyEffects, Plan
from tests.support.queues import expected, held, ids, opened, submission


def as_protocol(queue: SqliteQueue) -> DurableQueue:
    """Satisfy the type checker that the class is what the server asks for."""
    return queue


async def test_a_submitted_message_comes_back_whole(tmp_path: Path, fds) -> None:
    """Every field of every envelope and the body's bytes are the same, at once and after a restart."""
    message = submission(7, recipients=3, flags=(0, 1, 2))
    async with opened(tmp_path / "q") as queue:
        await as_protocol(queue).submit(message)
        for number in (1, 2, 3):
            assert expected(message, number) == queue.envelope(ids(7, 3)[number - 1])
        assert queue.body(MsgId(7)) == message.body
        assert (queue.envelopes, queue.messages, queue.size_bytes) == (3, 1, len(message.body))
    async with opened(tmp_path / "q") as queue:
        assert [expected(message, number) for number in (1, 2, 3)] == list(queue.restore())
        assert queue.body(MsgId(7)) == message.body
        assert (queue.envelopes, queue.messages, queue.size_bytes) == (3, 1, len(message.body))
        assert queue.mta_envelope(ids(7)[0]) == mta_envelope(
            message.transaction, message.recipients[0], created_at=message.created_at
        )


async def test_the_plainest_message_comes_back(tmp_path: Path) -> None:
    """A bounce: null sender, an empty body, no parameters, an address that is not ASCII."""
    message = submission(1, transaction=Transaction("", 0), body=b"", flags=(2,))._replace(
        recipients=(Recipient("pøst@bücher.example", "xn--bcher-kva.example"),)
    )
    async with opened(tmp_path) as queue:
        await queue.submit(message)
        assert expected(message) == queue.envelope(ids(1)[0])
        assert queue.body(MsgId(1)) == b""


async def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    """An unknown envelope is None; an unknown message's body can't be read."""
    async with opened(tmp_path) as queue:
        assert queue.envelope(EvpId(1 << 32 | 1)) is None
        assert queue.mta_envelope(EvpId(1 << 32 | 1)) is None
        assert queue.of_message(MsgId(1)) == []
        with pytest.raises(QueueUnavailableError):
            queue.body(MsgId(1))


async def test_the_last_envelope_takes_its_message_along(tmp_path: Path) -> None:
    """Removing two of three recipients keeps the body; removing the third removes it."""
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1, recipients=3))
        await queue.submit(submission(2))
        first, second, third = ids(1, 3)
        queue.remove(first)
        queue.remove(third)
        await queue.flush()
        assert queue.body(MsgId(1))
        assert [second, *ids(2)] == held(queue)
        queue.remove(second)
        await queue.flush()
        assert ids(2) == held(queue)
        with pytest.raises(QueueUnavailableError):
            queue.body(MsgId(1))
        assert (queue.envelopes, queue.messages) == (1, 1)
        assert queue.body(MsgId(2))
    database = sqlite3.connect(tmp_path / "queue.db")
    counts = [
        database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("message", "body", "envelope")
    ]
    database.close()
    assert counts == [1, 1, 1]


async def test_an_envelope_is_gone_as_soon_as_its_removal_is_asked_for(tmp_path: Path) -> None:
    """Reading agrees with what was asked for, before any commit; and removing twice is removing once."""
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1, recipients=2))
        first, second = ids(1, 2)
        queue.remove(first)
        assert queue.envelope(first) is None
        assert [second] == held(queue)
        await queue.flush()
        queue.remove(first)
        await queue.flush()
        assert queue.envelopes == 1


async def test_a_deferral_is_read_back_at_once_and_after_a_restart(tmp_path: Path) -> None:
    """Attempts, time and status; the last of several counts, and a hostile status stays one."""
    message, envelope = submission(1), ids(1)[0]
    status = "451 4.7.1 \ud800 \x00 é " + "x" * 5000
    async with opened(tmp_path) as queue:
        await queue.submit(message)
        queue.defer(envelope, attempts=1, due_at=1400.5, status="first")
        queue.defer(envelope, attempts=2, due_at=2600.015625, status=status)
        found = queue.envelope(envelope)
        assert found is not None
        assert (2, 2600.015625) == (found.attempts, found.due_at)
        assert found.status.startswith("451 4.7.1 \\ud800 \x00 é xxx")
        assert len(found.status) < 1100
    async with opened(tmp_path) as queue:
        assert found == queue.envelope(envelope)


async def test_flags_are_read_back_at_once_and_after_a_restart(tmp_path: Path) -> None:
    """Flags change alone, also to none."""
    message, envelope = submission(1, flags=(3,)), ids(1)[0]
    async with opened(tmp_path) as queue:
        await queue.submit(message)
        queue.defer(envelope, attempts=1, due_at=9.0, status="s")
        queue.set_flags(envelope, 0)
        changed = expected(message, flags=0, attempts=1, due_at=9.0, status="s")
        assert changed == queue.envelope(envelope)
    async with opened(tmp_path) as queue:
        assert changed == queue.envelope(envelope)


async def test_a_bounce_replaces_what_it_reports(tmp_path: Path) -> None:
    """The envelopes go in the commit that brings the bounce, and with the last of them their message."""
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1, recipients=2))
        await queue.submit(submission(2), replaces=tuple(ids(1, 2)))
        await queue.flush()
        assert ids(2) == held(queue)
        assert (queue.envelopes, queue.messages) == (1, 1)


async def test_submissions_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    """Two hundred at once take a handful of commits, not two hundred."""
    commits = []
    queue = SqliteQueue(tmp_path, effects=Effects(), limits=QueueLimits(), on_commit=commits.append)
    await queue.open()
    await asyncio.gather(*(queue.submit(submission(number)) for number in range(1, 201)))
    await queue.close()
    assert 200 == sum(len(commit.items) for commit in commits)
    assert len(commits) <= 5
    assert all(not commit.problem for commit in commits)


async def test_a_commit_takes_no_more_than_its_cap(tmp_path: Path) -> None:
    """With commit_batch_max = 16 no commit has more than 16 submissions."""
    commits = []
    limits = QueueLimits(commit_batch_max=16)
    queue = SqliteQueue(tmp_path, effects=Effects(), limits=limits, on_commit=commits.append)
    await queue.open()
    await asyncio.gather(*(queue.submit(submission(number)) for number in range(1, 101)))
    for number in range(1, 101):
        queue.remove(ids(number)[0])
    await queue.close()
    assert 16 == max(len(commit.items) for commit in commits)


async def test_what_lags_is_committed_without_being_asked(tmp_path: Path) -> None:
    """A removal alone is durable soon, though nobody waits for it."""
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1))
        queue.remove(ids(1)[0])
        async with asyncio.timeout(5):
            while queue.envelopes:  # noqa: ASYNC110  # the queue tells nobody, that is the point
                await asyncio.sleep(0.01)
        assert queue.pressure().lagging == 0


async def test_a_thousand_recipients_are_one_message(tmp_path: Path) -> None:
    """More changes than a statement has are still one transaction."""
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1, recipients=2500))
        assert ids(1, 2500) == held(queue)
        assert 2500 == len(queue.of_message(MsgId(1)))
        for envelope in ids(1, 2500):
            queue.remove(envelope)
        await queue.flush()
        assert (0, 0, 0) == (queue.envelopes, queue.messages, queue.size_bytes)


async def test_whoever_is_cancelled_gives_up_the_answer_only(tmp_path: Path) -> None:
    """A submitter that goes away in the middle leaves a durable message and no error behind."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        gone = asyncio.ensure_future(queue.submit(submission(1)))
        neighbour = asyncio.ensure_future(queue.submit(submission(2)))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await asyncio.wait_for(neighbour, 10)
        await queue.flush()
        assert [*ids(1), *ids(2)] == held(queue)
        assert (2, 0) == (queue.envelopes, queue.waiting)


async def test_restoring_is_in_order_of_time(tmp_path: Path) -> None:
    """(due_at, evpid), over more envelopes than a chunk, and what leaves meanwhile is left out."""
    async with opened(tmp_path) as queue:
        for msgid in range(1, 41):
            await queue.submit(submission(msgid, recipients=60))
        dues = {}
        for number, envelope in enumerate(held(queue)):
            dues[envelope] = float(number * 7919 % 97)
            queue.defer(envelope, attempts=1, due_at=dues[envelope], status="")
        await queue.flush()
        order = sorted(dues, key=lambda envelope: (dues[envelope], envelope))
        restored = queue.restore()
        found = [next(restored).evpid]
        queue.remove(order[-1])
        found += [stored.evpid for stored in restored]
        assert order[:-1] == found


async def test_pages_cover_everything_once(tmp_path: Path) -> None:
    """Pages in order of ids, also where all of a page is on its way out."""
    async with opened(tmp_path) as queue:
        for msgid in range(1, 31):
            await queue.submit(submission(msgid))
        for msgid in range(5, 25):
            queue.remove(ids(msgid)[0])
        found, after = [], 0
        while page := queue.page(after=after, limit=4):
            assert len(page) <= 4
            found += [stored.evpid for stored in page]
            after = found[-1]
        assert [ids(msgid)[0] for msgid in [*range(1, 5), *range(25, 31)]] == found


# ---- large messages


async def test_a_large_body_has_a_file_of_its_own(tmp_path: Path, fds) -> None:
    """Private, the same bytes, and gone with the last envelope."""
    body = os.urandom(100_000)
    path = tmp_path / "bodies" / "0000000b"
    async with opened(tmp_path) as queue:
        await queue.submit(submission(11, recipients=2, body=body))
        assert path.read_bytes() == body
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert queue.body(MsgId(11)) == body
        assert queue.size_bytes == 100_000
        queue.remove(ids(11, 2)[0])
        await queue.flush()
        assert path.exists()
    async with opened(tmp_path) as queue:
        assert queue.body(MsgId(11)) == body
        queue.remove(ids(11, 2)[1])
    assert not path.exists()


async def test_a_body_without_a_row_goes_at_the_next_start(tmp_path: Path) -> None:
    """What a crash left between file and commit is removed; what is none of ours stays."""
    notes: list[str] = []
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1, body=b"x" * 70_000))
    (tmp_path / "bodies" / "00000002").write_bytes(b"never accepted")
    (tmp_path / "bodies" / "README").write_bytes(b"?")
    async with opened(tmp_path, notes=notes):
        pass
    assert ["00000001", "README"] == sorted(entry.name for entry in (tmp_path / "bodies").iterdir())
    assert any("never accepted" in note for note in notes)
    assert any("README is none of ours" in note for note in notes)


async def test_a_body_file_that_vanished_is_a_temporary_failure(tmp_path: Path) -> None:
    """The body can't be read now, and the operator learns which."""
    notes: list[str] = []
    async with opened(tmp_path, notes=notes) as queue:
        await queue.submit(submission(1, body=b"x" * 70_000))
        (tmp_path / "bodies" / "00000001").unlink()
        with pytest.raises(QueueUnavailableError):
            queue.body(MsgId(1))
    assert any("00000001" in note for note in notes)


async def test_a_large_message_does_not_hold_up_small_ones(tmp_path: Path) -> None:
    """While a body file's fsync hangs, other messages are committed."""
    effects = FaultyEffects()
    gate = effects.gates["fsync", "queue.body"] = threading.Event()
    async with opened(tmp_path, effects=effects) as queue:
        large = asyncio.ensure_future(queue.submit(submission(1, body=b"x" * 70_000)))
        await queue.submit(submission(2))
        assert not large.done()
        assert ids(2) == held(queue)
        gate.set()
        await large
        assert [*ids(1), *ids(2)] == held(queue)


# ---- caps


async def test_too_many_waiting_submissions_are_refused(tmp_path: Path) -> None:
    """Over max_waiting at once: refused without waiting; the others are kept."""
    async with opened(tmp_path, max_waiting=10) as queue:
        results = await asyncio.gather(
            *(queue.submit(submission(number)) for number in range(1, 16)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, QueueUnavailableError)]
        assert 5 == len(refused)
        assert 10 == queue.envelopes


async def test_a_full_queue_takes_bounces_only(tmp_path: Path) -> None:
    """Over max_envelopes or max_bytes nothing is taken but what takes others away."""
    async with opened(tmp_path, max_envelopes=3, max_bytes=1000) as queue:
        await queue.submit(submission(1, recipients=3))
        assert queue.full()
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(2))
        await queue.submit(submission(3), replaces=tuple(ids(1, 3)))
        await queue.flush()
        assert not queue.full()
        assert queue.full(1000)
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(4, body=b"x" * 990))


class SmallDisk(Effects):
    """A disk with as much room as the test says."""

    free_bytes = 10_000_000

    def space(self, path: Path, *, site: str) -> Space:
        self.point("statvfs", site)
        return Space(self.free_bytes, 100_000_000)


async def test_a_disk_without_room_is_full(tmp_path: Path, monkeypatch) -> None:
    """min_free_bytes and min_free_ratio hold, and the message has to fit twice."""
    monkeypatch.setattr("mta.queue.sqlite.SPACE_AGE_S", 0.0)
    effects = SmallDisk()
    async with opened(tmp_path / "a", effects=effects, min_free_bytes=9_000_000) as queue:
        assert not queue.full(500_000)
        assert queue.full(500_001)
        effects.free_bytes = 8_999_999
        assert queue.full()
    async with opened(
        tmp_path / "b", effects=effects, min_free_bytes=1, min_free_ratio=0.09
    ) as queue:
        assert queue.full()
        effects.free_bytes = 9_000_000
        assert not queue.full()


async def test_a_disk_that_does_not_say_is_full(tmp_path: Path) -> None:
    """An error of statvfs is no room, not any amount of it."""
    effects = FaultyEffects(Plan(1, matches=lambda point: point.op == "statvfs"))
    async with opened(tmp_path, effects=effects) as queue:
        assert queue.full()
        assert effects.failed


# ---- who else is there


async def test_a_directory_is_for_one_server(tmp_path: Path, fds) -> None:
    """The second is told who is there, also when it is another process; closing lets the next in."""
    async with opened(tmp_path / "q"):
        assert stat.S_IMODE((tmp_path / "q").stat().st_mode) == 0o700
        with pytest.raises(QueueLockedError) as caught:
            async with opened(tmp_path / "q"):
                pass
        assert caught.value.pid == os.getpid()
        code = (
            "import asyncio, sys, pathlib\n"
            "from mta.core.limits import QueueLimits\n"
            "from mta.effects import Effects\n"
            "from mta.queue.sqlite import QueueLockedError, SqliteQueue\n"
            "q = SqliteQueue(pathlib.Path(sys.argv[1]), effects=Effects(), limits=QueueLimits())\n"
            "try:\n    asyncio.run(q.open())\n"
            "except QueueLockedError as e:\n    print(e.pid)\n"
        )
        run = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code, str(tmp_path / "q")],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        )
        assert f"{os.getpid()}\n" == run.stdout
    async with opened(tmp_path / "q"):
        pass


async def test_a_file_that_is_no_database_is_reported(tmp_path: Path, fds) -> None:
    """The error names the file; nothing of it is changed, and nothing stays open or locked."""
    content = b"not a database, but long enough to be read as one" * 50
    (tmp_path / "queue.db").write_bytes(content)
    for _ in range(2):
        with pytest.raises(QueueCorruptError) as caught:
            async with opened(tmp_path):
                pass
        assert caught.value.path == tmp_path / "queue.db"
    assert content == (tmp_path / "queue.db").read_bytes()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [("PRAGMA application_id = 0", "another program"), ("PRAGMA user_version = 99", "version 99")],
)
async def test_a_database_of_another_kind_is_reported(
    tmp_path: Path, statement: str, problem: str
) -> None:
    """Another program's, or another version's, is left alone."""
    async with opened(tmp_path):
        pass
    database = sqlite3.connect(tmp_path / "queue.db")
    database.execute(statement)
    database.commit()
    database.close()
    with pytest.raises(QueueCorruptError, match=problem):
        async with opened(tmp_path):
            pass


async def test_a_torn_database_is_reported(tmp_path: Path, fds) -> None:
    """Damage in the middle comes out as corruption, not as an empty queue."""
    async with opened(tmp_path) as queue:
        for number in range(1, 200):
            await queue.submit(submission(number))
    data = bytearray((tmp_path / "queue.db").read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    (tmp_path / "queue.db").write_bytes(data)
    with pytest.raises(QueueCorruptError):
        async with opened(tmp_path):
            pass


async def test_one_damaged_envelope_does_not_hide_the_others(tmp_path: Path) -> None:
    """A row that makes no sense is noted and left; the rest of the queue is restored."""
    notes: list[str] = []
    async with opened(tmp_path) as queue:
        for number in (1, 2, 3):
            await queue.submit(submission(number))
    database = sqlite3.connect(tmp_path / "queue.db")
    database.execute("UPDATE message SET details = '{]' WHERE msgid = 2")
    database.commit()
    database.close()
    async with opened(tmp_path, notes=notes) as queue:
        assert [*ids(1), *ids(3)] == held(queue)
        assert queue.envelope(ids(2)[0]) is None
        assert queue.envelopes == 3
    assert any("0000000200000001 is damaged" in note for note in notes)


def damaged(text: str) -> Iterator[bytes]:
    """Yield a record cut after each of its bytes, and with one bit turned in each."""
    record = text.encode()
    for place, byte in enumerate(record):
        yield record[:place]
        for bit in (0, 5, 7):
            yield record[:place] + bytes([byte ^ 1 << bit]) + record[place + 1 :]


@pytest.mark.parametrize(
    ("table", "column", "key"),
    [
        ("message", "details", "msgid = 2"),
        ("envelope", "domain", "evpid >> 32 = 2"),
        ("envelope", "status", "evpid >> 32 = 2"),
    ],
)
async def test_damage_costs_one_message(tmp_path: Path, table: str, column: str, key: str) -> None:
    """Cut or with a bit turned at any byte: the others are restored, and what was damaged is noted or harmless."""
    notes: list[str] = []
    local = Recipient("al@b.test", "al@", "", "", "maildir", "al", "tag", "", "rule")
    async with opened(tmp_path, notes=notes) as queue:
        for number in (1, 2, 3):
            message = submission(number)._replace(recipients=(local,))
            await queue.submit(message)
        queue.defer(ids(2)[0], attempts=1, due_at=0.5, status="451 4.3.0 Try again later")
        await queue.flush()
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as database:
            database.execute("PRAGMA synchronous = OFF")
            (text,) = database.execute(f"SELECT {column} FROM {table} WHERE {key}").fetchone()
            for record in damaged(text):
                database.execute(
                    f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {key}", (record,)
                )
                database.commit()
                notes.clear()
                restored = [stored.evpid for stored in queue.restore()]
                assert sorted({*restored, *ids(2)}) == [*ids(1), *ids(2), *ids(3)]
                told = sum("0000000200000001 is damaged" in note for note in notes)
                assert told == 3 - len(restored), record
                assert (queue.envelope(ids(2)[0]) is not None) == (len(restored) == 3)
        assert len(text) > 20


async def test_messages_without_envelopes_are_removed_at_the_start(tmp_path: Path) -> None:
    """Whatever made them (a hand in the database), they would never leave otherwise."""
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1))
        await queue.submit(submission(2, body=b"x" * 70_000))
        await queue.submit(submission(3))
    database = sqlite3.connect(tmp_path / "queue.db")
    database.execute("DELETE FROM envelope WHERE evpid >> 32 < 3")
    database.commit()
    database.close()
    async with opened(tmp_path) as queue:
        assert (1, 1) == (queue.envelopes, queue.messages)
        assert ids(3) == held(queue)
    assert list((tmp_path / "bodies").iterdir()) == []


async def test_closing_twice_is_closing_once(tmp_path: Path, fds) -> None:
    """Also at the same time, also cancelled; afterwards nothing is taken."""
    queue = SqliteQueue(tmp_path, effects=Effects(), limits=QueueLimits())
    await queue.open()
    queue.enqueue(submission(1))
    first = asyncio.ensure_future(queue.close())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(queue.close(), queue.close())
    await queue.close()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(QueueUnavailableError):
        await queue.submit(submission(2))
    async with opened(tmp_path) as queue:
        assert ids(1) == held(queue)


async def test_closing_what_was_never_opened_is_nothing(tmp_path: Path) -> None:
    """No directory is made, no error comes."""
    queue = SqliteQueue(tmp_path / "q", effects=Effects(), limits=QueueLimits())
    await queue.close()
    assert not (tmp_path / "q").exists()


async def test_a_directory_that_can_not_be_made_is_an_oserror(tmp_path: Path, fds) -> None:
    """The queue's directory is a file."""
    (tmp_path / "q").write_bytes(b"")
    with pytest.raises(OSError, match="exists"):
        async with opened(tmp_path / "q"):
            pass
