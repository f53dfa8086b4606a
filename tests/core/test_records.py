import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core import records, stimuli
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import EvpId, MsgId, SessionId, evpid
from mta.core.records import TraceError, from_record, header, parse, to_record
from mta.core.reply import Outcome
from mta.core.routing import MxHost, Resolution, ResolutionStatus

text = st.text(max_size=20)
ids32 = st.integers(1, 2**32 - 1)
ids64 = st.integers(1, 2**64 - 1)
instants = st.floats(0, 4e9)

transactions = st.builds(
    Transaction,
    sender=text,
    size=st.integers(0, 2**40),
    session=ids64.map(SessionId),
    helo=text,
    peer_address=text,
    peer_name=text,
    tls=text,
    auth_user=text,
    smtputf8=st.booleans(),
    body_type=st.sampled_from(["", "7BIT", "8BITMIME"]),
    ret=st.sampled_from(["", "FULL", "HDRS"]),
    envid=text,
    declared_size=st.integers(0, 2**40),
    esmtp=st.booleans(),
)
recipients = st.builds(Recipient, address=text, domain=text, notify=text, orcpt=text)
bodies = st.none() | st.integers(0, 50).map(bytes)
resolutions = st.builds(
    Resolution,
    status=st.sampled_from(ResolutionStatus),
    hosts=st.lists(
        st.builds(
            MxHost,
            preference=st.integers(0, 65535),
            name=text,
            addresses=st.lists(text, max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    ttl_s=instants,
    text=text,
)
results = st.builds(
    stimuli.Result, evpid=ids64.map(EvpId), outcome=st.sampled_from(Outcome), status=text
)
selectors = st.one_of(
    st.just(stimuli.Selector()),
    st.builds(stimuli.Selector, evpid=ids64.map(EvpId)),
    st.builds(stimuli.Selector, msgid=ids32.map(MsgId)),
)
sessions = ids64.map(SessionId)
agents = st.sampled_from(stimuli.Agent)

BY_KIND = {
    stimuli.MessageSubmitted: st.builds(
        stimuli.MessageSubmitted,
        msgid=ids32.map(MsgId),
        transaction=transactions,
        recipients=st.lists(recipients, max_size=3).map(tuple),
        body=bodies,
    ),
    stimuli.EnvelopeRestored: st.builds(
        stimuli.EnvelopeRestored,
        evpid=ids64.map(EvpId),
        recipient=recipients,
        transaction=transactions,
        created_at=instants,
        expires_at=instants,
        attempts=st.integers(0, 1000),
        due_at=instants,
        flags=st.integers(0, 3),
        body=bodies,
    ),
    stimuli.TimeReached: st.just(stimuli.TimeReached()),
    stimuli.DomainResolved: st.builds(stimuli.DomainResolved, domain=text, resolution=resolutions),
    stimuli.ConnectionReady: st.builds(stimuli.ConnectionReady, session=sessions),
    stimuli.ConnectionFailed: st.builds(stimuli.ConnectionFailed, session=sessions, reason=text),
    stimuli.TransactionDone: st.builds(
        stimuli.TransactionDone,
        session=sessions,
        results=st.lists(results, max_size=3).map(tuple),
        usable=st.booleans(),
    ),
    stimuli.ConnectionClosed: st.builds(stimuli.ConnectionClosed, session=sessions, reason=text),
    stimuli.LocalDeliveryDone: st.builds(
        stimuli.LocalDeliveryDone,
        evpid=ids64.map(EvpId),
        outcome=st.sampled_from(Outcome),
        status=text,
    ),
    stimuli.ScheduleRequested: st.builds(stimuli.ScheduleRequested, which=selectors),
    stimuli.RemoveRequested: st.builds(stimuli.RemoveRequested, which=selectors),
    stimuli.SuspendRequested: st.builds(stimuli.SuspendRequested, which=selectors),
    stimuli.UnsuspendRequested: st.builds(stimuli.UnsuspendRequested, which=selectors),
    stimuli.AgentPaused: st.builds(stimuli.AgentPaused, agent=agents, only=text, source=text),
    stimuli.AgentResumed: st.builds(stimuli.AgentResumed, agent=agents, only=text, source=text),
    stimuli.RouteEnabled: st.builds(stimuli.RouteEnabled, address=text),
    stimuli.LimitChanged: st.builds(
        stimuli.LimitChanged, key=text, value=st.integers(0, 10) | instants | text
    ),
    stimuli.DrainRequested: st.just(stimuli.DrainRequested()),
}

HEADER = header(
    clock="epoch",
    started_at=1.5,
    seed=7,
    representation="slim",
    limits={"limits.mta.max_conn": 500},
    config={"hostname": "mx.test"},
    versions={"python": "3.11.2"},
    host={"cores": 2},
)


def _line(record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def test_every_stimulus_is_covered():
    """There is a record, and a test, for each kind of stimulus."""
    kinds = set(typing.get_args(stimuli.Stimulus))
    assert kinds == set(BY_KIND)
    assert {kind.__name__ for kind in kinds} == records.STIMULI


@pytest.mark.parametrize("kind", BY_KIND, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_stimulus_comes_back_as_it_was(kind, data):
    """Through a record, JSON, and back: the same stimulus at the same instant, to the last bit."""
    stimulus, now = data.draw(BY_KIND[kind]), data.draw(instants)
    line = _line(to_record(stimulus, now))
    assert (stimulus, now) == from_record(json.loads(line))
    assert type(stimulus) is type(from_record(json.loads(line))[0])


_FULL = Transaction(
    "a@a.test", 9, SessionId(5), helo="h", esmtp=False, smtputf8=True, declared_size=8
)
_TO = Recipient("b@b.test", "b.test", notify="NEVER", orcpt="rfc822;b@b.test")


@pytest.mark.parametrize(
    "stimulus",
    [
        stimuli.MessageSubmitted(MsgId(1), _FULL, (_TO,), None),
        stimuli.MessageSubmitted(MsgId(1), _FULL, (_TO, _TO), bytes(9)),
        stimuli.EnvelopeRestored(EvpId(1 << 32 | 1), _TO, _FULL, 1.0, 2.0, 3, 4.0),
        stimuli.EnvelopeRestored(EvpId(1 << 32 | 1), _TO, _FULL, 1.0, 2.0, 3, 4.0, 1, bytes(9)),
        stimuli.RemoveRequested(stimuli.Selector()),
        stimuli.RemoveRequested(stimuli.Selector(evpid=EvpId(1 << 32 | 1))),
        stimuli.RemoveRequested(stimuli.Selector(msgid=MsgId(1))),
    ],
)
def test_what_may_be_absent_comes_back_too(stimulus):
    """With and without a body, flags, or a selection."""
    assert (stimulus, 1.5) == from_record(json.loads(_line(to_record(stimulus, 1.5))))


def test_ids_are_written_as_the_log_writes_them():
    """Whoever has an id from the log finds it in the trace with grep; defaults take no space."""
    one = evpid(MsgId(0x2A), 1)
    done = stimuli.TransactionDone(
        SessionId(0xBEEF), (stimuli.Result(one, Outcome.TEMPFAIL, "450 4.2.1 Later"),), True
    )
    assert {
        "t": 12.25,
        "k": "TransactionDone",
        "session": "000000000000beef",
        "results": [
            {"evpid": "0000002a00000001", "outcome": "TempFail", "status": "450 4.2.1 Later"}
        ],
        "usable": True,
    } == to_record(done, 12.25)
    submitted = stimuli.MessageSubmitted(
        MsgId(0x2A), Transaction("a@a.test", 4096), (Recipient("b@b.test", "b.test"),), b"x" * 9
    )
    assert {
        "t": 1.0,
        "k": "MessageSubmitted",
        "msgid": "0000002a",
        "transaction": {"sender": "a@a.test", "size": 4096},
        "recipients": [{"address": "b@b.test", "domain": "b.test"}],
        "body_bytes": 9,
    } == to_record(submitted, 1.0)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"t": 1.0, "k": "gauges"}, "no stimulus"),
        ({"t": 1.0}, "no stimulus"),
        ({"k": "TimeReached"}, "KeyError"),
        ({"t": 1.0, "k": "ConnectionReady"}, "KeyError"),
        ({"t": 1.0, "k": "ConnectionReady", "session": "xyz"}, "ValueError"),
        ({"t": 1.0, "k": "ConnectionReady", "session": 12}, "TypeError"),
        (
            {"t": 1.0, "k": "MessageSubmitted", "msgid": "01", "transaction": [], "recipients": []},
            "TypeError",
        ),
        ({"t": 1.0, "k": "AgentPaused", "agent": "lda"}, "ValueError"),
    ],
)
def test_what_is_no_stimulus_is_said_in_one_line(record, problem):
    """A wrong record names its kind and what is wrong with it."""
    with pytest.raises(TraceError, match=problem) as caught:
        from_record(record)
    assert "\n" not in str(caught.value)


def test_a_trace_is_read_in_order():
    """Header first, then every record; blank lines do not count."""
    lines = [
        _line(HEADER),
        _line({"t": 1, "k": "TimeReached"}),
        b"\n",
        _line({"t": 2, "k": "gauges"}),
    ]
    trace = parse(lines)
    assert HEADER == trace.header
    assert [1, 2] == [record["t"] for record in trace.records]


def test_a_torn_last_line_is_no_record():
    """A killed server leaves half a line; everything before it is there."""
    whole = _line({"t": 1, "k": "TimeReached"})
    for cut in range(1, len(whole)):
        assert [1] == [r["t"] for r in parse([_line(HEADER), whole, whole[:cut]]).records]


def test_a_line_torn_by_a_full_disk_is_followed_by_lost():
    """In the middle of a file, half a line is accepted only where the writer says that it lost some."""
    torn, lost = b'{"t": 1, "k": "Tim\n', _line({"t": 2, "k": "lost", "lines": 3})
    after = _line({"t": 3, "k": "TimeReached"})
    assert ["lost", "TimeReached"] == [
        record["k"] for record in parse([_line(HEADER), torn, lost, after]).records
    ]
    for lines in ([torn, after], [torn, torn, lost], [torn]):
        with pytest.raises(TraceError, match="line 2: not a record"):
            list(parse([_line(HEADER), *lines]).records)


@pytest.mark.parametrize(
    "line", [b"", b"hello\n", b"[1]\n", b'{"k": "gauges"}\n', b'{"k":"header"']
)
def test_a_file_without_header_is_no_trace(line):
    """What does not begin with a header is refused at once, with the file's name."""
    with pytest.raises(TraceError, match=r"x\.jsonl: line 1: no header"):
        parse([line] if line else [], source="x.jsonl")


def test_a_trace_of_another_schema_is_refused():
    """A reader does not guess what a later version means."""
    with pytest.raises(TraceError, match="schema 2, this reads 1"):
        parse([_line({**HEADER, "schema": 2})])


def test_a_record_without_instant_is_refused():
    """Every record says when."""
    with pytest.raises(TraceError, match="line 2: no instant"):
        list(parse([_line(HEADER), _line({"k": "gauges"})]).records)
