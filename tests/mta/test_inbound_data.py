"""Reading one message: where it ends, what it may not hold, what it costs."""

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mta.core.reply import Reply
from mta.inbound_data import (
    BARE,
    DRAIN_MAX,
    LINE_TOO_LONG,
    TOO_BIG,
    MessageReader,
    count_hops,
)

HEAD = b"Received: by mx.test\r\n"


def reader(*, size_max: int = 100_000, line_max: int = 1000) -> MessageReader:
    return MessageReader(HEAD, size_max=size_max, line_max=line_max)


def read(data: bytes, **limits: int) -> tuple[bytes | Reply, bytes | None]:
    message = reader(**limits)
    rest = message.feed(data)
    if message.refusal is not None:
        return message.refusal, rest
    assert rest is not None
    return message.body().removeprefix(HEAD), rest


def stuff(lines: list[bytes]) -> bytes:
    """What a client sends for these lines."""
    return b"".join((b"." if line[:1] == b"." else b"") + line + b"\r\n" for line in lines)


@pytest.mark.parametrize(
    ("sent", "body", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
        (b"..\r\n.\r\n", b".\r\n", b""),
        (b"...\r\n.\r\n", b"..\r\n", b""),
        (b".x\r\n.\r\n", b"x\r\n", b""),
        (b"a\r\n..\r\n..b\r\n.\r\n", b"a\r\n.\r\n.b\r\n", b""),
        (b". \r\n.\r\n", b" \r\n", b""),
        (b"a.\r\n.\r\n.\r\n", b"a.\r\n", b".\r\n"),
    ],
)
def test_a_message_ends_at_the_dot_and_loses_its_stuffing(sent, body, rest):
    """RFC 5321 4.5.2: each line that begins with a dot loses it, the line of one dot is the end."""
    assert (body, rest) == read(sent)


# What other servers have taken for the end (CVE-2023-51764, -51765, -51766, CVE-2024-27305).
SMUGGLED = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\n",
    b"\n.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\x00.\r\n\n",
    b"x\ny",
    b"x\ry",
]


@pytest.mark.parametrize("mark", SMUGGLED, ids=repr)
def test_no_other_mark_ends_a_message_nor_passes(mark):
    """The real end is found behind it, and the whole is refused: nothing of it is relayed."""
    sent = b"one" + mark + b"MAIL FROM:<admin@victim.test>\r\n.\r\nQUIT\r\n"
    refusal, rest = read(sent)
    assert refusal is BARE
    assert rest == b"QUIT\r\n"


@pytest.mark.parametrize("mark", [*SMUGGLED, b"\r\n", b"\r\n..\r\n"], ids=repr)
def test_cuts_change_nothing(mark):
    """However the bytes arrive, the answer is that of one piece."""
    sent = b"one" + mark + b"two\r\n..\r\n.\r\nREST"
    whole, rest = read(sent)
    pieces = [[sent[:at], sent[at:]] for at in range(1, len(sent) - len(rest or b""))]
    pieces.append([sent[at : at + 1] for at in range(len(sent))])
    for cut in pieces:
        message = reader()
        left = None
        for piece in cut:
            left = message.feed(piece) if left is None else left + piece
        assert left == rest, cut
        assert whole == (message.refusal or message.body().removeprefix(HEAD)), cut


_LINE = st.binary(max_size=30).map(lambda line: line.translate(None, b"\r\n"))


@given(st.lists(_LINE | st.sampled_from([b".", b"..", b"", b".a"]), max_size=20), st.data())
@example([b"."], None)
def test_any_lines_come_through(lines, data):
    """Stuffed by the client, unstuffed here: the same lines, whatever the segments."""
    sent = stuff(lines) + b".\r\nREST"
    message = reader()
    at, rest = 0, None
    while rest is None:
        size = data.draw(st.integers(1, len(sent))) if data is not None else 1
        rest = message.feed(sent[at : at + size])
        at += size
    assert rest + sent[at:] == b"REST"
    assert message.refusal is None
    assert message.body() == HEAD + b"".join(line + b"\r\n" for line in lines)


@given(
    st.binary(max_size=60).map(
        lambda raw: raw.translate(bytes(b"\r\n.a"[i % 4] for i in range(256)))
    )
)
def test_what_is_taken_has_no_bare_line_end(raw):
    """Over CR, LF, dot and a letter: a message is refused, or has nothing but whole CRLFs."""
    message = reader()
    rest = message.feed(raw + b"\r\n.\r\n")
    assert rest is not None
    if message.refusal is None:
        body = message.body()
        assert body.replace(b"\r\n", b"").translate(None, b"\r\n") == body.replace(b"\r\n", b"")
        assert raw.startswith(b".\r\n") or b"\r\n.\r\n" in raw + b"\r\n.\r\n"


@pytest.mark.parametrize(
    ("size", "taken"), [(998, True), (999, True), (1000, True), (1001, False), (5000, False)]
)
@pytest.mark.parametrize("piece", [1 << 20, 700, 7])
def test_a_line_has_a_limit(size, taken, piece):
    """A line of just the limit passes, one byte more does not; first, middle or last, in any pieces."""
    for lines in ([b"x" * size], [b"a", b"x" * size, b"b"], [b"a" * 900, b"b" * 900, b"x" * size]):
        sent = stuff(lines) + b".\r\n"
        message = reader()
        for at in range(0, len(sent), piece):
            rest = message.feed(sent[at : at + piece])
        assert rest == b""
        assert (None if taken else LINE_TOO_LONG) == message.refusal


def test_a_line_without_end_costs_its_limit_and_no_more():
    """48 MiB without a line end: refused at the limit, and from then on nothing is kept."""
    message = reader(size_max=1 << 20, line_max=65_536)
    piece = b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(768):
            assert message.feed(piece) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.refusal is LINE_TOO_LONG
    assert message.is_endless
    assert peak < 1 << 20


@pytest.mark.parametrize(("size", "taken"), [(1000, True), (1001, False)])
@pytest.mark.parametrize("piece", [1 << 20, 64, 1])
@pytest.mark.parametrize("dots_first", [True, False])
def test_a_message_has_a_limit(size, taken, piece, dots_first):
    """The limit counts what the message is: neither our field, nor the end mark, nor stuffed dots."""
    dots, text = [b"."] * 100, [b"x" * (size - 100 * 3 - 2)]
    lines = dots + text if dots_first else text + dots
    assert sum(len(line) + 2 for line in lines) == size
    sent = stuff(lines) + b".\r\nREST"
    message = reader(size_max=1000)
    rest, at = None, 0
    while rest is None:
        rest = message.feed(sent[at : at + piece])
        at += piece
    assert (None if taken else TOO_BIG) == message.refusal
    assert rest + sent[at:] == b"REST"


def test_a_refused_message_is_read_to_its_end_but_not_for_ever():
    """Within the allowance the end is found; beyond it the reader says so."""
    message = reader(size_max=1000)
    assert message.feed(b"x" * 900 + b"\r\n" + b"y" * 900) is None
    assert message.refusal is TOO_BIG
    assert not message.is_endless
    assert message.feed(b"z\r\n") is None
    assert message.feed(b".\r") is None
    assert message.feed(b"\nNOOP") == b"NOOP"
    message = reader(size_max=1000)
    for _ in range(DRAIN_MAX // 4096 + 2):
        assert not message.is_endless
        message.feed(b"x" * 4096)
    assert message.is_endless


def test_the_first_reason_stays():
    """A client hears of the first fault, not of the last."""
    message = reader()
    message.feed(b"a\nb\rc\r\n")
    message.refuse(TOO_BIG)
    assert message.refusal is BARE


def test_empty_lines_cost_less_than_three_times_their_size():
    """16 million empty lines are 32 MiB, and never a list of 16 million objects."""
    size = 32 * 1024 * 1024
    piece = b"\r\n" * 32_768
    tracemalloc.start()
    try:
        message = reader(size_max=size, line_max=65_536)
        for _ in range(size // len(piece)):
            assert message.feed(piece) is None
        assert message.feed(b".\r\n") == b""
        body = message.body()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(HEAD) + size == len(body)
    assert peak < 3 * size


@pytest.mark.parametrize("count", [0, 1, 2, 99, 100, 101])
def test_hops_are_counted_in_the_header_only(count):
    """Received fields in any case, our own not counted, and none of the body's."""
    header = HEAD + b"".join(
        b"rEceived: from far away by way of many\r\n" if number % 2 else b"Received: x\r\n"
        for number in range(count)
    )
    body = header + b"X-Received: no\r\nSubject: Received: no\r\n\r\n" + b"Received: no\r\n" * 200
    assert count == count_hops(body, hops_max=1)
    counted = count_hops(body, hops_max=100)
    # Where 100 have no room nobody counts.
    assert counted == count if count >= 100 else counted < 100


def test_a_message_without_body_is_all_header():
    """No blank line: all of it counts."""
    assert count_hops(HEAD + b"Received: x\r\n" * 7, hops_max=100) == 7
