"""Before the first transaction: whatever a host says, nothing is weakened and no secret gets out."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtpgreeting import LOOPS_BACK, Greeting
from mta.smtphello import AUTH_IN_CLEAR, CLEAR, NO_MECHANISM, NO_STARTTLS, Hello, Login
from mta.smtpstates import State

LOGIN = Login("us", "correct horse")
OFFERS = st.sampled_from(
    [b"STARTTLS", b"AUTH PLAIN", b"AUTH LOGIN", b"auth plain login", b"AUTH", b"SIZE 1", b"X \xff"]
)
REPLIES = st.tuples(
    st.sampled_from([220, 235, 250, 334, 354, 421, 454, 500, 535, 554]),
    st.lists(OFFERS, max_size=4),
)
HELLOS = st.builds(
    Hello,
    starttls=st.booleans(),
    must=st.booleans(),
    implicit=st.booleans(),
    login=st.sampled_from([None, LOGIN]),
    login_in_clear=st.booleans(),
)


def secrets(line: bytes) -> bool:
    """Return whether the password can be read in what is sent."""
    try:
        said = base64.b64decode(line.split()[-1])
    except (ValueError, IndexError):
        return False
    return LOGIN.password.encode() in said


@given(HELLOS, st.lists(REPLIES, max_size=12), st.booleans())
def test_no_conversation_gets_more_than_it_may(
    hello: Hello, replies: list[tuple[int, list[bytes]]], lmtp: bool
) -> None:
    if hello.implicit or hello.must:
        hello = hello._replace(starttls=not hello.implicit, must=True)
    greeting = Greeting("client.test", hello, lmtp=lmtp)
    secure = False
    told = 0
    for code, offers in replies:
        if greeting.failure or greeting.state is State.READY:
            break
        if greeting.state is State.TLS:
            greeting.secured()
            secure = True
        greeting.answer(code, f"{code} some words", [b"mx.test", *offers])
        sent, greeting.out = greeting.out, b""
        told += secrets(sent)
        assert not secrets(sent) or secure or hello.login_in_clear
        assert sent.startswith(b"STARTTLS") <= (hello.starttls and not secure)
        assert sent.count(b"\r\n") == sent.count(b"\n") <= 1
        assert not (sent and greeting.failure)
    if greeting.state is State.READY:
        assert secure or not hello.must, "what must have TLS has it"
        assert told == (hello.login is not None), "who logs in says the password once"
    assert LOGIN.password not in greeting.failure


def through(greeting: Greeting, *replies: tuple[int, list[bytes]]) -> list[bytes]:
    """Tell it replies; return what it said to each."""
    sent = []
    for code, offers in replies:
        if greeting.state is State.TLS:
            greeting.secured()
            sent.append(greeting.out)
        greeting.answer(code, f"{code} 2.0.0 some words", [b"mx.test", *offers])
        sent.append(greeting.out)
        greeting.out = b""
    return sent


def test_the_whole_way() -> None:
    hello = Hello(starttls=True, must=True, login=LOGIN)
    greeting = Greeting("client.test", hello, lmtp=False)
    secret = base64.b64encode(b"\0us\0correct horse")
    said = through(
        greeting,
        (220, []),
        (250, [b"STARTTLS"]),
        (220, []),
        (250, [b"AUTH LOGIN PLAIN"]),
        (235, []),
    )
    assert said == [
        b"EHLO client.test\r\n",
        b"STARTTLS\r\n",
        b"",
        b"EHLO client.test\r\n",
        b"AUTH PLAIN " + secret + b"\r\n",
        b"",
    ]
    assert greeting.state is State.READY


def test_what_was_offered_in_clear_does_not_count_under_tls() -> None:
    """Somebody in between may have said it."""
    greeting = Greeting("client.test", Hello(starttls=True, login=LOGIN), lmtp=False)
    through(greeting, (220, []), (250, [b"STARTTLS", b"AUTH PLAIN", b"PIPELINING"]), (220, []))
    greeting.secured()
    greeting.out = b""
    assert not greeting.extensions.pipelining
    greeting.answer(250, "250 ok", [b"mx.test"])
    assert greeting.failure == NO_MECHANISM


@pytest.mark.parametrize(
    ("hello", "replies", "failure"),
    [
        (Hello(starttls=True, must=True), [(220, []), (500, []), (250, [])], NO_STARTTLS),
        (Hello(login=LOGIN), [(220, []), (250, [b"AUTH PLAIN"])], AUTH_IN_CLEAR),
        (CLEAR, [(554, [])], "554 2.0.0 some words"),
        (CLEAR, [(220, []), (454, [])], "454 2.0.0 some words"),
    ],
)
def test_failures(hello: Hello, replies: list[tuple[int, list[bytes]]], failure: str) -> None:
    greeting = Greeting("client.test", hello, lmtp=False)
    through(greeting, *replies)
    assert greeting.failure == failure


def test_a_host_with_our_name_is_us() -> None:
    greeting = Greeting("MX.test", CLEAR, lmtp=False)
    through(greeting, (220, []), (250, []))
    assert greeting.failure == LOOPS_BACK
