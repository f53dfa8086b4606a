"""What is sent is decided before anything is sent, and is known again when it arrives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.checks import DOMAIN_MAX
from sim.distributions import Zipf
from sim.scenario import (
    MESSAGES_MAX,
    SIZE_MIN,
    Destination,
    Load,
    Recipients,
    Scenario,
    Sizes,
    domains_of,
    load,
)
from sim.workload import (
    RUN_ID_MAX,
    Schedule,
    digest,
    draw,
    headers,
    identify,
    is_run_id,
    message_bytes,
    wire_form,
)

COLUMNS = ("due_s", "size", "sender_number", "first", "recipient_domain", "mailbox")


def columns(schedule: Schedule, *names: str) -> list[list[float]]:
    return [getattr(schedule, name).tolist() for name in names or COLUMNS]


def scenario(**changes: object) -> Scenario:
    destinations = [
        Destination("a", "a.test", share=3.0),
        Destination("b", "b.test", share=1.0, domains=5),
    ]
    return Scenario("s", seed=7, load=Load(**changes), destinations=destinations)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "override",
    [
        "server.limits.mta.max_conn_per_host=1",
        "server.envelope=whole",
        "server.retry.base_s=100",
        "drain_s=1",
        "load.sessions=1",
        "load.keep=true",
        "destinations.1.hosts=1",
        "destinations.1.behaviours=[]",
        "representations=['full']",
    ],
)
def test_limits_do_not_change_what_is_sent(override):
    """Common random numbers: no setting of the server, the world or the client moves a message."""
    few = "load.messages=300"
    assert columns(draw(load("backlog", [few]))) == columns(draw(load("backlog", [few, override])))


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("load.rate=800", ("size", "sender_number", "first", "recipient_domain", "mailbox")),
        (
            "load.sizes.law=fixed",
            ("due_s", "sender_number", "first", "recipient_domain", "mailbox"),
        ),
        ("load.recipients.law=fixed", ("due_s", "size", "sender_number")),
        ("destinations.0.share=9", ("due_s", "size", "sender_number", "first", "mailbox")),
    ],
)
def test_a_parameter_changes_only_what_it_says(override, same):
    """Each attribute has its own stream."""
    before, after = draw(load("backlog")), draw(load("backlog", [override]))
    assert columns(before, *same) == columns(after, *same)
    assert columns(before) != columns(after)


def test_another_rate_scales_time():
    """Four times the rate: the same gaps, a quarter as long."""
    slow, fast = draw(load("backlog")), draw(load("backlog", ["load.rate=800"]))
    np.testing.assert_allclose(slow.due_s / 4, fast.due_s, rtol=1e-12)


def test_more_messages_keep_the_first_ones():
    """Message 17 is message 17 however many come after it."""
    few, many = draw(load("backlog", ["load.messages=200"])), draw(load("backlog"))
    assert few.due_s.tolist() == many.due_s[:200].tolist()
    for i in range(200):
        assert few.recipients(i) == many.recipients(i)
        assert message_bytes(few, i, "run") == message_bytes(many, i, "run")


def test_replications_differ():
    """Another repetition of the experiment is another sample, and can be had again."""
    few = load("backlog", ["load.messages=100"])
    assert columns(draw(few, 1)) == columns(draw(few, 1)) != columns(draw(few))


def test_arrivals_keep_the_rate():
    """Poisson gaps have the mean that the rate says, constant gaps are all alike."""
    poisson = draw(scenario(messages=20_000, rate=50.0))
    gaps = np.diff(poisson.due_s)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)
    constant = draw(scenario(messages=5, rate=50.0, arrivals="constant"))
    np.testing.assert_allclose(constant.due_s, [0.02, 0.04, 0.06, 0.08, 0.1])


def test_shares_are_of_recipients():
    """Three quarters of the recipients are at the destination with three quarters of the shares."""
    schedule = draw(scenario(messages=20_000))
    counts = np.bincount([schedule.domains[k][0] for k in schedule.recipient_domain])
    assert counts[0] / counts.sum() == pytest.approx(0.75, abs=0.01)


def test_domains_of_a_destination_have_their_popularity():
    """With skew 1 the first of five domains gets 1/H(5) of its destination's recipients."""
    both = scenario(messages=30_000, recipients=Recipients("fixed"))
    both.destinations[1].skew = 1.0
    schedule = draw(both)
    ranks = [
        schedule.domains[k][1] for k in schedule.recipient_domain if schedule.domains[k][0] == 1
    ]
    first = ranks.count("d1.b.test") / len(ranks)
    assert first == pytest.approx(1 / sum(1 / k for k in range(1, 6)), abs=0.02)
    assert set(ranks) == set(domains_of(both.destinations[1]))


def test_sizes_and_counts_follow_their_laws():
    """Fixed is fixed; Zipf has its mean; lognormal its median; nothing leaves the bounds."""
    fixed = draw(
        scenario(sizes=Sizes("fixed", bytes=5000), recipients=Recipients("fixed", count=4))
    )
    assert set(fixed.size.tolist()) == {5000}
    assert set(np.diff(fixed.first).tolist()) == {4}
    drawn = draw(scenario(messages=20_000, sizes=Sizes("lognormal", median=2000, max=9000)))
    assert float(np.median(drawn.size)) == pytest.approx(2000, rel=0.03)
    assert (drawn.size.min(), drawn.size.max()) == (SIZE_MIN, 9000)
    assert np.diff(drawn.first).mean() == pytest.approx(Zipf(2.6, 100).mean, rel=0.05)
    wild = draw(scenario(sizes=Sizes("lognormal", sigma=10.0, max=100_000)))
    assert (wild.size.min(), wild.size.max()) == (SIZE_MIN, 100_000)


def test_recipients_of_a_message_differ():
    """Also when a message goes to every mailbox there is."""
    schedule = draw(scenario(recipients=Recipients("fixed", count=20, mailboxes=20)))
    for i in range(50):
        addresses = [mailbox.address for mailbox in schedule.recipients(i)]
        assert len(set(addresses)) == len(addresses) == 20
    one = schedule.recipients(0)[0]
    assert one.domain == schedule.domains[int(schedule.recipient_domain[0])][1]
    assert schedule.envelopes == 20 * len(schedule)


RUN_IDS = st.from_regex(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{RUN_ID_MAX - 1}}}", fullmatch=True)


@settings(max_examples=150)
@given(
    size=st.one_of(st.integers(SIZE_MIN, 3000), st.integers(78_000, 82_000), st.just(500_000)),
    i=st.integers(0, 1200),
    run=RUN_IDS,
)
def test_a_message_is_exactly_what_was_asked_for(size, i, run):
    """The size is exact, lines are short and end in CRLF, and the sink knows it again."""
    schedule = draw(scenario(messages=1201, sizes=Sizes("fixed", bytes=size)))
    message = message_bytes(schedule, i, run)
    assert len(message) == size
    assert message.isascii()
    assert message.endswith(b"\r\n")
    lines = message[:-2].split(b"\r\n")
    assert max(map(len, lines)) <= 78
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert identify(message) == (run, i, digest(message))


def test_the_longest_headers_fit_into_the_smallest_message():
    """Whatever the scenario allows, `SIZE_MIN` bytes are enough, and no header line is too long."""
    longest = Scenario(
        "s",
        destinations=[Destination("a", "a." * ((DOMAIN_MAX - 4) // 2) + "test", domains=1_000_000)],
    )
    assert not list(longest.problems()) + list(longest.destinations[0].problems())
    domain = domains_of(longest.destinations[0])[-1]
    head = headers(f"sender999999@{domain}", MESSAGES_MAX - 1, "r" * RUN_ID_MAX)
    assert len(head) <= SIZE_MIN - 2
    assert max(map(len, head.split(b"\r\n"))) <= 78


def test_transparency_is_always_part_of_the_load():
    """Lines that begin with one dot and with two are in messages of ordinary size."""
    schedule = draw(scenario(messages=64, sizes=Sizes("fixed", bytes=8192)))
    messages = [message_bytes(schedule, i, "run") for i in range(64)]
    assert all(b"\r\n." in message for message in messages)
    assert any(b"\r\n.." in message for message in messages)


def test_messages_differ():
    """Two messages of the same size have different digests."""
    schedule = draw(scenario(messages=500, sizes=Sizes("fixed", bytes=2000)))
    assert len({digest(message_bytes(schedule, i, "run")) for i in range(500)}) == 500


TRACE = (
    b"Return-Path: <sender1@a.test>\r\n"
    b"Delivered-To: user1@a.test\r\n"
    b"Received: from a.test (localhost [127.0.0.1])\r\n"
    b"\tby b.test with ESMTP id 1\r\n for <user1@a.test>;\r\n\tSat, 26 Jan 2013 09:37:23 +0000\r\n"
    b"RECEIVED: by c.test\r\n"
)


def test_trace_fields_in_front_do_not_matter():
    """What every relay must add (RFC 5321 4.4) is left out of the digest, folded lines included."""
    message = message_bytes(draw(load("backlog")), 3, "run-1")
    assert identify(TRACE + message) == ("run-1", 3, digest(message))


@settings(max_examples=60)
@given(at=st.integers(0, 1999), change=st.sampled_from(["flip", "drop", "add"]))
def test_any_other_change_changes_the_digest(at, change):
    """A byte that is lost, added or turned is noticed wherever it is."""
    message = bytearray(message_bytes(draw(scenario(sizes=Sizes("fixed", bytes=2000))), 5, "run"))
    before = digest(bytes(message))
    if change == "flip":
        message[at] ^= 1
    elif change == "drop":
        del message[at]
    else:
        message.insert(at, message[at] ^ 1)
    assert identify(TRACE + bytes(message)).digest != before


def test_fields_behind_ours_count():
    """A Received field that is not in front is part of the message."""
    message = message_bytes(draw(load("backlog")), 3, "run")
    later = message.replace(b"Subject:", b"Received: by x\r\nSubject:", 1)
    assert identify(later).digest != digest(message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\r\n",
        b"Received: no end",
        b"Received: a\r\n no end",
        b"From: <>\r\nSubject: bounce\r\n\r\nX-Testbed-Run: r\r\nX-Testbed-Seq: 1\r\n\r\n",
        b"X-Testbed-Run: r\r\nX-Testbed-Seq: 1\r\n",
        b"A: b\r\nX-Testbed-Run: r\r\nX-Testbed-Seq: -1\r\n\r\n",
        b"A: b\r\nX-Testbed-Run: r\r\nX-Testbed-Seq: \r\n\r\n",
        b"A: b\r\nX-Testbed-Run: r\r\nX-Testbed-Seq: " + b"9" * 5000 + b"\r\n\r\n",
        "A: b\r\nX-Testbed-Run: r\r\nX-Testbed-Seq: ²\r\n\r\n".encode("latin-1"),
    ],
)
def test_what_is_none_of_ours_has_no_run(message):
    """A bounce, which quotes a message of ours below its own header, or any rubbish."""
    assert identify(message) == ("", -1, digest(message))


@given(st.binary(max_size=300))
def test_any_bytes_can_be_identified(message):
    """A sink is never brought down by what it receives."""
    assert len(identify(message).digest) == 32


def test_run_ids_are_words():
    """A run id is fit for a header, a file name and a log line."""
    assert all(map(is_run_id, ("a", "backlog-20260101T120000.slim", "x" * RUN_ID_MAX)))
    assert not any(map(is_run_id, ("", "-a", "a b", "a\r\nb", "a\n", "é", "x" * (RUN_ID_MAX + 1))))


@given(st.integers(0, 5000), st.integers(SIZE_MIN, SIZE_MIN + 400), st.booleans())
def test_what_is_prebuilt_is_what_would_be_built(i, size, large):
    """Header and a view of the shared body are the message, its dots doubled, with the final dot."""
    size += large * 200_000
    one = scenario(messages=1)
    schedule = draw(one)
    column = np.full(i + 1, size)
    senders = np.full(i + 1, 3)
    schedule = replace(schedule, size=column, sender_number=senders)
    message = message_bytes(schedule, i, "run")
    stuffed = message.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    assert b"".join(wire_form(schedule, i, "run")) == stuffed
