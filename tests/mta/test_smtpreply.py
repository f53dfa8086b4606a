"""Replies of servers, whole or in pieces, in order or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtpclient import (
    Closed,
    Failed,
    TransactionResult,
)
from mta.smtpreply import LINE_BYTES_MAX, REPLY_LINES_MAX, STATUS_BYTES_MAX, ReplyReader
from tests.support.smtpclient import (
    BODY,
    EHLO_PIPELINING,
    EHLO_PLAIN,
    OK,
    PERMFAIL,
    TEMPFAIL,
    at_stage,
    envelopes,
    ready,
    sent,
)


class TestReplies:
    @pytest.mark.parametrize(
        ("reply", "status"),
        [
            (b"550\r\n", "550"),
            (b"550 \r\n", "550"),
            (b"550 no\n", "550 no"),
            (b"550-5.1.1 no such\r\n550 5.1.1 user\r\n", "550 5.1.1 no such user"),
            (b"550-a\r\n550-\r\n550 b\r\n", "550 a b"),
            (b"550-5.1.1 a\r\n550-5.1.1\r\n550 5.7.1 b\r\n", "550 5.1.1 a 5.7.1 b"),
            (b"550-5.1.10 a\r\n550 5.1.1 b\r\n", "550 5.1.10 a 5.1.1 b"),
            (b"550 \x1b[31mred\x07\r\n", "550 \\x1b[31mred\\x07"),
            (b"550 a\rtype: mda\r\n", "550 a\\x0dtype: mda"),
            (b"550 a\tb\r\n", "550 a b"),
            ("550 é\r\n".encode(), "550 \\xc3\\xa9"),
            (b"550 \x85\xff\r\n", "550 \\x85\\xff"),
            (b"550 " + b"x" * 3000 + b"\r\n", "550 " + "x" * (STATUS_BYTES_MAX - 4)),
            (b"550-" + b"x" * 3000 + b"\r\n550 y\r\n", "550 " + "x" * (STATUS_BYTES_MAX - 4)),
            (b"550 " + b"\xff" * 2000 + b"\r\n", ("550 " + "\\xff" * 2000)[:STATUS_BYTES_MAX]),
        ],
    )
    def test_status_lines(self, reply, status):
        """Folded, escaped, cut."""
        session = at_stage("mail")
        (event,) = session.receive(reply, 0.0)
        assert event.results == ((PERMFAIL, status),)

    @pytest.mark.parametrize(
        ("reply", "why"),
        [
            (b"250-a\r\n550 b\r\n", "different codes"),
            (b"550-a\r\n551-b\r\n", "different codes"),
            (b"25\r\n", "no reply code"),
            (b"2500 a\r\n", "no space"),
            (b"250_a\r\n", "no space"),
            (b"\xb2\xb5\xb0 a\r\n", "no reply code"),
            (b"650 a\r\n", "no reply code"),
            (b"250 a\0b\r\n", "NUL"),
            (b"550-x\r\n" * (REPLY_LINES_MAX + 1), "too many lines"),
            (b"550 " + b"x" * LINE_BYTES_MAX, "line too long"),
            (b"550 " + b"x" * LINE_BYTES_MAX + b"\r\n", "line too long"),
            (b"x" * 1024 * 1024, "line too long"),
            (b"HTTP/1.1 400 Bad Request\r\n", "no reply code"),
            (b"\x16\x03\x01\r\n", "no reply code"),
        ],
    )
    @pytest.mark.parametrize("stage", ["banner", "ehlo", "mail", "rcpt", "data", "dot"])
    def test_what_is_no_reply_is_temporary_and_ends_the_session(self, stage, reply, why):
        """The mail waits, and nobody talks to that connection again."""
        session = at_stage(stage)
        events = session.receive(reply, 0.0)
        assert session.closed
        last = events[-1]
        assert last.reason.startswith(f"Bad response: {why}")
        if stage in ("banner", "ehlo"):
            assert isinstance(last, Failed)
        else:
            assert [outcome for outcome, _ in events[0].results] == [TEMPFAIL]
            assert events[0].ambiguous == (stage == "dot")

    def test_endless_replies_are_bounded(self):
        """Neither endless lines nor endless continuation are kept."""
        session = at_stage("mail")
        fed = 0
        while not session.closed:
            session.receive(b"250-" + b"x" * 4000 + b"\r\n", 0.0)
            fed += 1
        assert fed == REPLY_LINES_MAX + 1
        reader = ReplyReader()
        for _ in range(LINE_BYTES_MAX // 1000 + 2):
            reader.feed(b"x" * 1000)
            assert reader.next_line() is None
        assert reader.error == "line too long"

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"250",
                    b" ",
                    b"-",
                    b"ok",
                    b"\r\n",
                    b"\n",
                    b"550",
                    b"\0",
                    b"354 x\r\n",
                    b"421 y\r\n",
                    b"250 a\r\n",
                    b"250-b\r\n",
                    b"\xff",
                    b"5.1.1 ",
                ]
            ),
            max_size=30,
        ),
        st.booleans(),
        st.integers(1, 3),
    )
    def test_any_server(self, parts, pipelining, count):
        """Whatever a server says, the events keep their order, and what they carry is printable."""
        session = ready(EHLO_PIPELINING if pipelining else EHLO_PLAIN)
        session.start(envelopes(count), BODY, 0.0)
        sent(session)
        events = []
        for part in parts:
            events += session.receive(part, 0.0)
            sent(session)
        events += session.eof(0.0)
        results = [event for event in events if isinstance(event, TransactionResult)]
        assert len(results) == 1
        assert isinstance(events[-1], Closed)
        assert [type(event) for event in events].count(Closed) == 1
        assert len(results[0].results) == count
        for outcome, status in results[0].results:
            assert status.isascii()
            assert status.isprintable()
            assert len(status) <= STATUS_BYTES_MAX
            if outcome is OK:
                assert status.startswith("2")
            if outcome is PERMFAIL:
                assert status.startswith("5")

    @given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
    def test_splits_do_not_matter(self, data, sizes):
        """Replies are the same however the network cuts them."""
        whole = ReplyReader()
        whole.feed(data)
        expected = drain(whole)
        pieces = ReplyReader()
        got = []
        at = 0
        for size in sizes:
            pieces.feed(data[at : at + size])
            got += drain(pieces)
            at += size
        pieces.feed(data[at:])
        got += drain(pieces)
        assert got == expected


def drain(reader: ReplyReader) -> list[tuple[bytes, int, bytes, str]]:
    """Take all lines, each with what it completed."""
    lines = []
    while (line := reader.next_line()) is not None:
        lines.append((line, reader.code, reader.text if reader.code else b"", reader.error))
    return lines
