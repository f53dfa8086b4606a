"""The client of the load: what it says, what it makes of answers, and what it survives."""

import socket
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests._dialogue import (
    REPLY_BYTES_MAX,
    Attempt,
    ProtocolError,
    Reply,
    describe,
    parse_reply,
    stuffed,
    whole,
)
from loadtests._session import Session, Wants
from tests.loadtests.fake_server import OK, FakeServer, Script

BYTES = b"Subject: x\r\n\r\n.one dot\r\n..two\r\n.\r\nend\r\n"
MESSAGE = whole(BYTES)


class Seen(list[tuple[str, int]]):
    """(verb, code) of every verb that was observed; 0 for an error."""

    def __call__(
        self, verb: str, seconds: float, reply: Reply | None, error: Exception | None
    ) -> None:
        assert seconds >= 0
        assert (reply is None) != (error is None)
        self.append((verb, reply.code if reply else 0))


def session_to(
    server: FakeServer,
    seen: Seen | None = None,
    timeout_s: float = 10.0,
    *,
    pipelining: bool = False,
    wants: Callable[[], Wants] = Wants,
) -> Session:
    return Session(
        server.address,
        pipelining=pipelining,
        wants=wants,
        helo="client.test",
        timeout_s=timeout_s,
        observe=Seen() if seen is None else seen,
    )


def instead(verb: str, *replies: bytes | None) -> Script:
    """A script that answers a verb with these in turn, and then agrees."""
    return lambda said, n: replies[n] if said == verb and n < len(replies) else OK[said]


def test_a_message_arrives_unchanged_and_every_verb_is_observed(serve):
    """Dots and all; one observation per verb, in order."""
    server, seen = serve(), Seen()
    session = session_to(server, seen)
    attempt = session.send("a@x.test", ["b@y.test", "c@z.test"], MESSAGE)
    assert attempt == Attempt(".", 250, "2.0.0 Taken", ("b@y.test", "c@z.test"), (), unsure=False)
    assert session.is_open
    session.quit()
    assert not session.is_open
    (taken,) = server.taken
    assert (taken.sender, taken.recipients, taken.message) == (
        "a@x.test",
        ["b@y.test", "c@z.test"],
        BYTES,
    )
    assert seen == [
        ("CONNECT", 220),
        ("EHLO", 250),
        ("MAIL", 250),
        ("RCPT", 250),
        ("RCPT", 250),
        ("DATA", 354),
        (".", 250),
        ("QUIT", 221),
    ]


def test_a_kept_connection_takes_many_messages(serve):
    """One greeting for three messages."""
    server = serve()
    session = session_to(server)
    for _ in range(3):
        assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 250
    session.quit()
    assert (server.verbs["CONNECT"], server.verbs["EHLO"], len(server.taken)) == (1, 1, 3)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("code", [452, 550])
@pytest.mark.parametrize("pipelining", [False, True])
def test_a_refusal_ends_the_transaction_and_not_the_connection(serve, verb, code, pipelining):
    """The reply is what counts, not those to what went along with it; the next message uses the same connection."""
    server, seen = serve(instead(verb, b"%d 4.3.1 No\r\n" % code)), Seen()
    session = session_to(server, seen, pipelining=pipelining)
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert (attempt.verb, attempt.code, attempt.text) == (verb, code, "4.3.1 No")
    assert (attempt.accepted, attempt.unsure) == ((), False)
    assert attempt.refused == ((("b@y.test", code, "4.3.1 No"),) if verb == "RCPT" else ())
    assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 250
    session.quit()
    assert server.verbs["CONNECT"] == 1
    # After the dot the transaction is over by itself.
    assert server.verbs["RSET"] == (verb != ".")
    assert [each for each in seen if each[1] >= 400] == [(verb, code)]
    # Where DATA was already said there was an empty message, to nobody.
    assert [each.message for each in server.taken] in ([BYTES], [b"", BYTES], [BYTES, BYTES])
    assert server.taken[-1].recipients == ["b@y.test"]


def test_a_group_of_commands_is_one_write(serve):
    """With PIPELINING a message takes two round trips, with more recipients than a group holds a few more."""
    server = serve()
    session = session_to(server, pipelining=True)
    many = [f"u{k}@y.test" for k in range(250)]
    attempt = session.send("a@x.test", many, MESSAGE)
    assert attempt.accepted == tuple(many)
    session.quit()
    (taken,) = server.taken
    assert (taken.recipients, taken.message) == (many, BYTES)


def test_what_is_not_offered_is_not_done(serve):
    """STARTTLS and AUTH that a server lacks end the connection; CHUNKING that it lacks means DATA."""
    server = serve()
    session = session_to(server)
    assert session.send("a@x.test", ["b@y.test"], MESSAGE, bdat=True).verb == "."
    session.quit()
    for wants, problem in (
        (Wants(tls=True), "STARTTLS is not offered"),
        (Wants(login=("u", "p")), "AUTH PLAIN is not offered"),
    ):
        seen = Seen()
        session = session_to(server, seen, wants=lambda wants=wants: wants)
        attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
        assert (attempt.code, attempt.text) == (0, problem)
        assert not attempt.unsure
        assert seen[-1] == (problem.split()[0], 0)
        assert not session.is_open


def test_a_connection_comes_from_where_it_is_told(serve):
    """A source address of the loopback's network."""
    sources = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, peer = listener.accept()
            sources.append(peer[0])
            with connection:
                connection.sendall(b"554 No\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        session = Session(
            listener.getsockname(),
            helo="c.test",
            timeout_s=5.0,
            observe=Seen(),
            wants=lambda: Wants(source="127.0.0.77"),
        )
        assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 554
        thread.join(10)
    assert sources == ["127.0.0.77"]


def test_some_recipients_may_be_refused(serve):
    """The message goes to the others, and both are told apart."""
    server = serve(instead("RCPT", b"250 Ok\r\n", b"452 4.5.3 Too many\r\n"))
    session = session_to(server)
    attempt = session.send("a@x.test", ["b@y.test", "c@y.test", "d@y.test"], MESSAGE)
    assert attempt.code == 250
    assert attempt.accepted == ("b@y.test", "d@y.test")
    assert attempt.refused == (("c@y.test", 452, "4.5.3 Too many"),)
    session.quit()


@pytest.mark.parametrize(
    ("verb", "answers"), [("CONNECT", "EHLO"), ("EHLO", "MAIL"), ("DATA", "."), ("RSET", "MAIL")]
)
def test_421_unasked_is_the_answer_to_what_is_said_next(serve, verb, answers):
    """The server's time for the session ends just behind a reply of its own, and the client reads both at once."""
    first = {"RSET": ("RCPT", b"550 5.1.1 No\r\n")}.get(verb, ("", b""))

    def script(said: str, before: int) -> bytes | None:
        if said == first[0] and not before:
            return first[1]
        late = b"421 4.4.2 Time is up\r\n" if said == verb and not before else b""
        return OK[said] + late

    server = serve(script)
    session = session_to(server, pipelining=False)
    if verb == "RSET":
        assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 550
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert (attempt.verb, attempt.code, attempt.unsure) == (answers, 421, False)
    assert attempt.text == "4.4.2 Time is up"
    assert not session.is_open
    assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 250
    session.quit()


@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_421_closes_the_connection(serve, verb):
    """The server is about to close; the next message opens another."""
    server = serve(instead(verb, b"421 4.3.2 Later\r\n"))
    session = session_to(server)
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert (attempt.verb, attempt.code, attempt.unsure) == (verb, 421, False)
    assert not session.is_open
    assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 250
    session.quit()
    assert server.verbs["CONNECT"] == 2


@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("pipelining", [False, True])
def test_a_lost_connection_is_code_0_and_unsure_only_after_the_dot(serve, verb, pipelining):
    """Only who had sent the dot may have been heard."""
    server, seen = serve(instead(verb, None)), Seen()
    session = session_to(server, seen, pipelining=pipelining)
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert (attempt.verb, attempt.code, attempt.accepted) == (verb, 0, ())
    assert attempt.text in ("connection closed", "connection reset")
    assert attempt.unsure == (verb == ".")
    assert seen[-1] == (verb, 0)
    assert not session.is_open
    assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 250
    session.quit()


def test_a_refusal_stands_when_the_connection_is_lost_after_it(serve):
    """RSET unanswered does not turn a 550 into a lost connection."""
    server = serve(lambda verb, n: {"MAIL": b"550 5.7.1 No\r\n", "RSET": None}.get(verb, OK[verb]))
    session = session_to(server)
    assert session.send("a@x.test", ["b@y.test"], MESSAGE).code == 550
    assert not session.is_open


@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "MAIL", "DATA", ".", "QUIT"])
def test_silence_ends_with_the_timeout(serve, verb):
    """A server that says nothing costs the timeout, not the run."""
    server = serve(instead(verb, b""))
    session = session_to(server, timeout_s=0.2)
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    if verb == "QUIT":
        assert attempt.code == 250
        session.quit()
    else:
        assert (attempt.verb, attempt.code, attempt.text) == (verb, 0, "timed out")
    assert not session.is_open


def test_a_reply_that_drips_ends_with_the_timeout():
    """The time is for the whole reply, not for each byte of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"2")
                        time.sleep(0.02)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        session = Session(listener.getsockname(), helo="c.test", timeout_s=0.3, observe=Seen())
        started = time.perf_counter()
        attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
        assert (attempt.verb, attempt.code, attempt.text) == ("CONNECT", 0, "timed out")
        assert time.perf_counter() - started < 5
        thread.join(10)


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("MAIL", b"hello\r\n"),
        ("MAIL", b"250-one\r\n451 two\r\n"),
        ("MAIL", b"250 one\r\n250 two\r\n"),
        ("MAIL", b"354 Go on\r\n"),
        ("MAIL", b"25\r\n"),
        ("DATA", b"250 Ok\r\n"),
        (".", b"354 More\r\n"),
        ("CONNECT", b"250 Hello\r\n"),
        ("EHLO", b"250-x" + b"y" * (2 * REPLY_BYTES_MAX)),
        ("EHLO", b"250-x\r\n" * REPLY_BYTES_MAX),
    ],
)
def test_what_makes_no_sense_closes_the_connection(serve, verb, reply):
    """A server that speaks no SMTP, or does not stop, is left alone."""
    server = serve(instead(verb, reply))
    session = session_to(server)
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert (attempt.verb, attempt.code, attempt.unsure) == (verb, 0, verb == ".")
    assert not session.is_open


def test_nobody_listens():
    """A refused connection is an outcome with few words."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    seen = Seen()
    session = Session(address, helo="c.test", timeout_s=5.0, observe=seen)
    attempt = session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert (attempt.verb, attempt.code, attempt.text) == ("CONNECT", 0, "connection refused")
    assert seen == [("CONNECT", 0)]
    session.quit()
    session.close()


def test_who_is_stopped_in_the_middle_leaves_no_connection(serve):
    """An exception that is none of the network's closes the socket and goes on its way."""
    server = serve()

    def stop_at_data(
        verb: str, seconds: float, reply: Reply | None, error: Exception | None
    ) -> None:
        if verb == "DATA":
            raise KeyboardInterrupt

    session = Session(server.address, helo="c.test", timeout_s=5.0, observe=stop_at_data)
    with pytest.raises(KeyboardInterrupt):
        session.send("a@x.test", ["b@y.test"], MESSAGE)
    assert not session.is_open
    assert session.verb == "DATA"


def test_size_is_declared_only_where_it_is_offered(serve):
    """RFC 1870: the parameter belongs to the extension."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen(offer: bytes) -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b"220 x\r\n")
                lines.readline()
                connection.sendall(offer)
                heard.append(lines.readline())

        for offer in (b"250 x.test\r\n", b"250-x.test\r\n250 SIZE\r\n"):
            thread = threading.Thread(target=listen, args=(offer,))
            thread.start()
            Session(listener.getsockname(), helo="c.test", timeout_s=5.0, observe=Seen()).send(
                "", ["b@y.test"], MESSAGE
            )
            thread.join(10)
    assert heard == [b"MAIL FROM:<>\r\n", b"MAIL FROM:<> SIZE=%d\r\n" % len(BYTES)]


@given(st.lists(st.sampled_from([b".", b"..", b"a", b"\r\n", b".\r\n"]), max_size=12))
def test_stuffing_can_be_undone(parts):
    """What a server takes off (RFC 5321 4.5.2) is what was put on, and only the last line is a dot."""
    message = b"".join(parts) + b"\r\n"
    wire = stuffed(message)
    lines = wire.removesuffix(b"\r\n").split(b"\r\n")
    assert lines.index(b".") == len(lines) - 1
    restored = b"".join(
        (line[1:] if line.startswith(b".") else line) + b"\r\n" for line in lines[:-1]
    )
    assert restored == message


@given(
    st.integers(200, 599),
    st.lists(st.from_regex(r"[ -~]{0,20}", fullmatch=True), min_size=1, max_size=5),
)
def test_a_reply_is_read_whole_or_not_at_all(code, texts):
    """Every beginning of a reply is incomplete, the whole of it is what was sent."""
    lines = [b"%d-%b\r\n" % (code, text.encode()) for text in texts]
    lines[-1] = lines[-1].replace(b"-", b" ", 1)
    whole = b"".join(lines)
    assert all(parse_reply(whole[:k]) is None for k in range(1, len(whole)))
    assert parse_reply(whole) == (code, " ".join(texts)[:500])


def test_a_reply_is_printable():
    """Control characters and eight-bit text do not get into records and logs."""
    assert parse_reply(b"451 4.0.0 caf\xc3\xa9\x1b[31m\r\n") == (451, "4.0.0 caf???[31m")
    assert parse_reply(b"250\r\n") == (250, "")
    with pytest.raises(ProtocolError):
        parse_reply(b"\n")


def test_network_errors_have_few_words():
    """Failures are counted by their words."""
    assert describe(TimeoutError()) == "timed out"
    assert describe(BrokenPipeError()) == "connection reset"
    assert describe(OSError(113, "No route to host")) == "no route to host"
    assert describe(OSError()) == "network error"
    assert describe(ProtocolError("reply too long")) == "reply too long"
