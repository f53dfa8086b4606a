import errno

import pytest

from mta.core import stimuli
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, SessionId, evpid
from mta.core.records import STIMULI, from_record, header, parse
from mta.core.reply import Outcome
from mta.effects import Effects
from mta.log import Log
from mta.trace import SUBSYSTEMS, StimulusTrace, Tracer, encode

HEADER = header(
    clock="epoch",
    started_at=1.0,
    seed=1,
    representation="slim",
    limits={},
    config={},
    versions={},
    host={},
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def tracer(path):
    log = Log(Effects(), path, host="mx", pid=1)
    yield Tracer(log)
    log.close()


def _logged(path):
    return [line.partition("]: ")[2] for line in path.read_text().splitlines()]


def test_a_subsystem_is_off_until_somebody_wants_it(tracer, path):
    """No line is made or written for a subsystem that nobody traces."""
    assert not any(tracer.on(name) for name in SUBSYSTEMS)
    tracer.line("smtp", "unseen")
    tracer.set("smtp", True)
    assert tracer.smtp
    assert not tracer.mta
    tracer.line("smtp", "<<< EHLO client\r")
    tracer.set("smtp", False)
    assert not tracer.smtp
    assert [r"trace smtp: <<< EHLO client\r"] == _logged(path)


def test_all_is_every_subsystem(tracer):
    """`trace all` and `untrace all` switch everything; one can be taken out again."""
    tracer.set("all", True)
    assert list(SUBSYSTEMS) == tracer.logged()
    tracer.set("io", False)
    assert not tracer.io
    tracer.set("all", False)
    assert tracer.logged() == []


def test_a_follower_sees_what_it_asked_for(tracer, path):
    """Following does not write into the log, and ends without touching what the operator set."""
    seen, other = [], []
    stop = tracer.follow("dns", seen.append)
    stop_other = tracer.follow("all", other.append)
    tracer.set("smtp", True)
    tracer.line("dns", "query \x1b")
    tracer.line("smtp", "hello")
    stop()
    stop()
    tracer.line("dns", "more")
    stop_other()
    assert not tracer.dns
    assert tracer.smtp
    assert [r"dns: query \x1b"] == seen
    assert [r"dns: query \x1b", "smtp: hello", "dns: more"] == other
    assert ["trace smtp: hello"] == _logged(path)


def test_a_follower_that_leaves_while_lines_come(tracer):
    """A follower may take itself off in the middle of a line."""
    seen = []

    def once(line):
        seen.append(line)
        stop()

    stop = tracer.follow("io", once)
    tracer.line("io", "1")
    tracer.line("io", "2")
    assert ["io: 1"] == seen


def test_unknown_subsystems_are_told(tracer):
    """The error names what there is."""
    for call in (lambda: tracer.set("smpt", True), lambda: tracer.follow("", print)):
        with pytest.raises(ValueError, match=r"there are smtp, mta, .* and all"):
            call()
    assert tracer.logged() == []


SUBMITTED = stimuli.MessageSubmitted(
    MsgId(7), Transaction("a@a.test", 4096), (Recipient("b@b.test", "b.test"),)
)
DONE = stimuli.TransactionDone(
    SessionId(3), (stimuli.Result(evpid(MsgId(7), 1), Outcome.OK, "250 2.0.0 Ok"),), True
)


async def test_what_is_recorded_is_read_back(tmp_path):
    """Stimuli, gauges and durations come back in order; a second run replaces the first."""
    path = tmp_path / "trace.jsonl"
    for _ in range(2):
        trace = StimulusTrace(Effects(), path, HEADER)
        trace.stimulus(SUBMITTED, 1.5)
        trace.measured("commit", 1.6, batch=3, seconds=0.004)
        trace.gauges({"scheduler.envelope": 1}, 1.7)
        trace.stimulus(DONE, 1.8)
        trace.close()
    with path.open("rb") as file:
        found = parse(file)
        rows = list(found.records)
    assert HEADER == found.header
    assert [(SUBMITTED, 1.5), (DONE, 1.8)] == [
        from_record(row) for row in rows if row["k"] in STIMULI
    ]
    assert {"t": 1.6, "k": "commit", "batch": 3, "seconds": 0.004} == rows[1]
    assert {"t": 1.7, "k": "gauges", "scheduler.envelope": 1} == rows[2]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_text_that_is_no_text_is_recorded(tmp_path):
    """Half a surrogate pair in a reply does not stop the trace, and comes back."""
    path = tmp_path / "trace.jsonl"
    failed = stimuli.ConnectionFailed(SessionId(1), "\udc80 odd")
    trace = StimulusTrace(Effects(), path, HEADER)
    trace.stimulus(failed, 2.0)
    trace.close()
    with path.open("rb") as file:
        assert [(failed, 2.0)] == [from_record(row) for row in parse(file).records]


class _FullDisk(Effects):
    full = False

    def point(self, op, site):
        if self.full and op == "write":
            raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_leaves_a_hole_that_says_so(tmp_path):
    """Lines that could not be written are counted in their place."""
    path, disk = tmp_path / "trace.jsonl", _FullDisk()
    trace = StimulusTrace(disk, path, HEADER)
    trace.stimulus(SUBMITTED, 1.0)
    trace.flush()
    disk.full = True
    trace.stimulus(DONE, 2.0)
    trace.gauges({}, 2.5)
    trace.flush()
    disk.full = False
    trace.stimulus(DONE, 3.0)
    trace.close()
    assert trace.lost == 2
    with path.open("rb") as file:
        rows = list(parse(file).records)
    assert ["MessageSubmitted", "lost", "TransactionDone"] == [row["k"] for row in rows]
    assert rows[1]["lines"] == 2


def test_a_trace_that_can_not_be_made_is_an_error_at_the_start(tmp_path):
    """The server can tell the operator before it takes mail."""
    with pytest.raises(OSError, match="No such file"):
        StimulusTrace(Effects(), tmp_path / "missing" / "trace.jsonl", HEADER)


def test_encoding_does_not_change_numbers():
    """Floats keep every bit, ids are text."""
    assert b'{"t":1700000000.015625}\n' == encode({"t": 1700000000.015625})
