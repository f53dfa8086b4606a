"""The durable queue against the simplest thing that does the same: a dict."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.ids import EvpId, MsgId, msgid_of
from mta.queue.sqlite import SqliteQueue
from tests.support.queues import expected, ids, opened, submission

if TYPE_CHECKING:
    from mta.queue.base import StoredEnvelope

NUMBERS = st.integers(0, 30)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 4), st.sampled_from([0, 10, 5000, 70_000])),
        st.tuples(st.just("bounce"), st.lists(NUMBERS, max_size=4), st.just(0)),
        st.tuples(st.just("remove"), NUMBERS, st.just(0)),
        st.tuples(st.just("defer"), NUMBERS, st.floats(0, 4e9, width=64)),
        st.tuples(st.just("flags"), NUMBERS, st.integers(0, 3)),
        st.tuples(st.sampled_from(["flush", "restart", "look"]), st.just(0), st.just(0)),
    ),
    max_size=30,
)


class Model:
    """What should be there."""

    def __init__(self) -> None:
        self.envelopes: dict[EvpId, StoredEnvelope] = {}
        self.bodies: dict[MsgId, bytes] = {}

    def pick(self, number: int) -> EvpId | None:
        """Return one of those that are there."""
        known = sorted(self.envelopes)
        return known[number % len(known)] if known else None

    def remove(self, envelope: EvpId) -> None:
        del self.envelopes[envelope]
        msgid = msgid_of(envelope)
        if all(msgid_of(other) != msgid for other in self.envelopes):
            del self.bodies[msgid]


def look(queue: SqliteQueue, model: Model) -> None:
    """Compare everything that can be read."""
    found = list(queue.restore())
    assert sorted(model.envelopes.values()) == sorted(found)
    paged, after = [], 0
    while page := queue.page(after=after, limit=3):
        paged += page
        after = page[-1].evpid
    assert [model.envelopes[envelope] for envelope in sorted(model.envelopes)] == paged
    for msgid, body in model.bodies.items():
        assert body == queue.body(msgid)
    for envelope in model.envelopes:
        assert model.envelopes[envelope] == queue.envelope(envelope)


async def play(directory: Path, operations: list[tuple[Any, ...]]) -> None:
    model = Model()
    pending = list(operations)
    while True:
        async with opened(directory) as queue:
            look(queue, model)
            assert len(model.envelopes) == queue.envelopes
            assert len(model.bodies) == queue.messages
            while pending:
                word, which, value = pending.pop(0)
                if word == "submit":
                    msgid = queue.next_msgid()
                    message = submission(msgid, recipients=which, body=b"%d" % msgid * value)
                    await queue.submit(message)
                    for number in range(1, which + 1):
                        model.envelopes[ids(msgid, which)[number - 1]] = expected(message, number)
                    model.bodies[msgid] = message.body
                elif word == "bounce":
                    gone = {model.pick(number) for number in which} - {None}
                    message = submission(queue.next_msgid())
                    await queue.submit(message, replaces=tuple(gone))
                    for envelope in gone:
                        model.remove(envelope)
                    model.envelopes[ids(message.msgid)[0]] = expected(message)
                    model.bodies[message.msgid] = message.body
                elif word == "flush":
                    await queue.flush()
                    assert len(model.envelopes) == queue.envelopes
                    assert len(model.bodies) == queue.messages
                    assert sum(map(len, model.bodies.values())) == queue.size_bytes
                elif word == "restart":
                    break
                elif word == "look":
                    look(queue, model)
                elif (envelope := model.pick(which)) is not None:
                    stored = model.envelopes[envelope]
                    if word == "remove":
                        queue.remove(envelope)
                        model.remove(envelope)
                    elif word == "defer":
                        attempts = stored.attempts + 1
                        queue.defer(envelope, attempts=attempts, due_at=value, status="451 x")
                        model.envelopes[envelope] = stored._replace(
                            attempts=attempts, due_at=value, status="451 x"
                        )
                    else:
                        queue.set_flags(envelope, value)
                        model.envelopes[envelope] = stored._replace(flags=value)
            else:
                look(queue, model)
                return


@given(OPERATIONS)
def test_a_queue_is_a_dict_that_survives(operations: list[tuple[Any, ...]]) -> None:
    """Whatever is asked of it, in whatever order, with restarts in between, it holds what a dict holds."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory), operations))


COUNTED = """
import asyncio, pathlib, sys
from tests.support.queues import opened, submission

async def main():
    async with opened(pathlib.Path(sys.argv[1])) as queue:
        print("open", flush=True)
        for number in range(1, 51):
            await queue.submit(submission(number))
            print("kept", number, flush=True)
        await queue.submit(submission(51, body=b"x" * 70_000))
        print("kept 51", flush=True)

asyncio.run(main())
"""


@pytest.mark.system
def test_every_answer_follows_an_fsync(tmp_path: Path) -> None:
    """Seen from outside: between any two acknowledgements there is an fdatasync of the log that ended.

    A killed process proves nothing of this: the kernel keeps what it wrote. `strace` sees the calls.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    run = subprocess.run(
        [
            *(strace, "-f", "-y", "-o", trace, "-e", "trace=write,fdatasync,fsync"),
            *(sys.executable, "-c", COUNTED, tmp_path / "q"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    if "ptrace" in run.stderr and run.returncode:
        pytest.skip(f"strace may not trace here: {run.stderr.splitlines()[0]}")
    assert run.returncode == 0, run.stderr
    synced = 0
    kept = 0
    body_synced = directory_synced = False
    for line in trace.read_text().splitlines():
        if "sync(" in line or "sync resumed" in line:
            ended = line.rstrip().endswith("= 0")
            synced += ended
            body_synced |= "bodies/00000033" in line
            directory_synced |= "/bodies>" in line
        elif '"open' in line:
            synced = 0
        elif '"kept' in line:
            kept += 1
            assert synced, f"acknowledgement {kept} without an fsync before it"
            synced = 0
    assert kept == 51
    assert body_synced
    assert directory_synced
