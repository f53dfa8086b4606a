"""PLAIN and LOGIN without a network."""

from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from mta.core import sasl
from mta.core.reply import Reply
from mta.core.sasl import Challenge, Credentials, Exchange


def b64(data: bytes) -> bytes:
    return b64encode(data)


def test_plain():
    """RFC 4616 4: its first example, as far as it goes with nobody acting for another."""
    exchange = Exchange("plain")
    assert Challenge("334 ") == exchange.start("")
    found = exchange.respond(b64(b"\0tim\0tanstaaftanstaaf"))
    assert Credentials("tim", "tanstaaftanstaaf") == found
    assert sasl.REFUSED == exchange.respond(b64(b"Ursel\0Kurt\0xipj3plmq"))


def test_login():
    """Two challenges."""
    exchange = Exchange("LOGIN")
    assert Challenge("334 VXNlcm5hbWU6") == exchange.start("")
    assert Challenge("334 UGFzc3dvcmQ6") == exchange.respond(b64(b"tim"))
    assert Credentials("tim", "x y") == exchange.respond(b64("x\u3000y".encode()))


def test_the_initial_response():
    """``=`` is an empty one."""
    assert sasl.MALFORMED == Exchange("PLAIN").start("=")
    assert Challenge("334 UGFzc3dvcmQ6") == Exchange("LOGIN").start("dGlt")
    assert sasl.UNKNOWN_MECHANISM == Exchange("GSSAPI").start("dGlt")
    assert sasl.CANCELLED == Exchange("PLAIN").start("*")


def test_nobody_sees_the_password():
    """Also not in a traceback."""
    assert "Credentials(user='tim')" == repr(Credentials("tim", "secret"))


def test_names():
    """One word, of letters that can be seen."""
    assert "\u00fc" == sasl.clean_name("u\u0308")
    assert "a@b.test" == sasl.clean_name("a@b.test")
    for bad in ("", "a b", "a\u3000b", "a\n", "\x00", "\u200f", "x" * 256, "\u00fc" * 128):
        assert sasl.clean_name(bad) is None


def test_passwords():
    """Everything but control characters; not without end."""
    assert "\u00e4 b" == sasl.clean_password("a\u0308\u00a0b")
    for bad in ("", "a\n", "a\0", "a\ud800", "x" * 1025):
        assert sasl.clean_password(bad) is None
    assert "x" * 1024 == sasl.clean_password("x" * 1024)


@given(
    st.sampled_from(sasl.MECHANISMS), st.lists(st.binary(max_size=40), max_size=4), st.booleans()
)
def test_any_answer_has_an_outcome(mechanism, lines, encode):
    """Whatever the client says: a challenge, credentials that can be, or a refusal."""
    exchange = Exchange(mechanism)
    outcome = exchange.start("")
    for line in lines:
        outcome = exchange.respond(b64(line) if encode else line)
        if not isinstance(outcome, Challenge):
            break
    if isinstance(outcome, Credentials):
        assert sasl.clean_name(outcome.user) == outcome.user
        assert sasl.clean_password(outcome.password) == outcome.password
    elif isinstance(outcome, Reply):
        assert outcome.code in (501, 535)


@given(st.text(max_size=300))
def test_cleaning_twice_is_cleaning_once(text):
    """What `mtactl encrypt` hashes is what is compared."""
    for clean in (sasl.clean_name, sasl.clean_password):
        once = clean(text)
        assert once is None or clean(once) == once
