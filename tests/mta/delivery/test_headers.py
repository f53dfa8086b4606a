"""What goes before a message, what shows that it was here, and how its lines end."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.reply import Outcome
from mta.delivery import headers
from mta.delivery.headers import heading, loops, mbox_pieces, refusal, unix_pieces
from tests.mta.delivery.jobs import job


def with_header(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\nbody\r\n"


def test_fields_are_put_before(tmp_path):
    """The reverse-path and the final address, one line each; the null sender has a field as well."""
    mail = job(tmp_path)
    assert b"Return-Path: <bob@remote.test>\nDelivered-To: ann@example.test\n" == heading(mail)
    assert heading(mail._replace(sender="")).startswith(b"Return-Path: <>\n")
    assert b"Delivered-To: ann@example.test\n" == heading(mail, return_path=False)


@pytest.mark.parametrize(
    "field",
    [
        "Delivered-To: ann@example.test",
        "delivered-TO:ann@EXAMPLE.test  ",
        "Delivered-To : <ann@example.test>",
        "Delivered-To:\r\n\tann@example.test",
    ],
)
def test_a_message_that_was_here_loops(field):
    """The field is known however it is written; the domain's case does not matter."""
    assert loops(with_header("X: y", field, "Subject: z"), "ann@Example.TEST", hops_max=100)


@pytest.mark.parametrize(
    "body",
    [
        with_header("Delivered-To: anne@example.test"),
        with_header("Delivered-To: Ann@example.test"),
        with_header("X-Delivered-To: ann@example.test"),
        with_header("X: y", " Delivered-To: ann@example.test"),
        b"Subject: x\r\n\r\nDelivered-To: ann@example.test\r\n",
        b"",
        b"\r\n",
    ],
)
def test_another_message_does_not_loop(body):
    """Another address, another field, a folded line or the text of the message mean nothing."""
    assert not loops(body, "ann@example.test", hops_max=100)


def test_a_hundred_hops_beside_ours_are_a_loop(tmp_path):
    """As many Received fields as the door takes are delivered; one more is a loop (RFC 5321 6.3)."""
    hop = "Received: from a by b"
    ours = with_header(*[hop] * 100)
    assert refusal(job(tmp_path, body=ours), 100) is None
    refused = refusal(job(tmp_path, body=with_header(*[hop] * 101)), 100)
    assert refused == (Outcome.LOOP, "5.4.6 Loop detected")


def test_a_huge_header_is_not_searched_for_ever():
    """A header of 40 MiB is searched as far as `HEADER_MAX`."""
    body = b"X: " + b"Delivered-To: " * 3_000_000
    assert not loops(body, "ann@example.test", hops_max=100)


@pytest.mark.parametrize(
    "address", ["a\nb@c.test", "a\r\nX: y@c.test", "a\0@c.test", "\udc80@c.test", ""]
)
def test_an_address_cannot_add_a_field(tmp_path, address):
    """An address with a line break, a control character or no text at all is refused for good."""
    refused = refusal(job(tmp_path, dest=address), 100)
    assert refused is not None
    assert (Outcome.PERMFAIL, "5.1.3") == (refused.outcome, refused.status[:5])
    if address:
        refused = refusal(job(tmp_path, sender=address), 100)
        assert refused is not None
        assert (Outcome.PERMFAIL, "5.1.7") == (refused.outcome, refused.status[:5])


TEXT = st.lists(
    st.sampled_from([b"From ", b">", b"\r\n", b"\r", b"\n", b"x", b" ", b".", b"From"]), max_size=40
).map(b"".join)


@given(body=TEXT, piece=st.integers(2, 9))
def test_line_ends_do_not_depend_on_the_pieces(body, piece):
    """However a message is cut, its CRLF become LF and nothing else changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "PIECE", piece)
        assert body.replace(b"\r\n", b"\n") == b"".join(unix_pieces(body))


@given(
    lines=st.lists(TEXT.map(lambda t: re.sub(rb"[\r\n]", b"", t)), max_size=9),
    piece=st.integers(2, 30),
)
def test_mbox_quoting_can_be_undone(tmp_path_factory, lines, piece):
    """No line of a message begins with From, and taking one > away gives the message back."""
    body = b"".join(line + b"\r\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "PIECE", max(piece, max(map(len, lines), default=0) + 3))
        mail = job(tmp_path_factory.getbasetemp(), body=body)
        whole = b"".join(mbox_pieces(mail, b"From x y\n"))
    head = b"From x y\n" + heading(mail)
    assert whole.startswith(head)
    rest = whole[len(head) :]
    assert not re.search(rb"^From ", rest, re.MULTILINE)
    assert body.replace(b"\r\n", b"\n") + b"\n" == re.sub(rb"(?m)^>(>*From )", rb"\1", rest)


@given(body=TEXT, piece=st.integers(8, 20))
def test_no_message_begins_another(tmp_path_factory, body, piece):
    """Whatever a message has, and however long its lines are: after the first line none begins with
    From, and the end is an empty line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "PIECE", piece)
        mail = job(tmp_path_factory.getbasetemp(), body=body)
        whole = b"".join(mbox_pieces(mail, b"From x y\n"))
    assert not re.search(rb"^From ", whole[9:], re.MULTILINE)
    assert whole.endswith(b"\n\n")
