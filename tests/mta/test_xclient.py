"""XCLIENT: who may name others, what it can say, and that afterwards only the other counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.reply import Reply
from mta.inbound_door import Listener
from mta.xclient import ClientAttributes, parse_xclient
from tests.support.door import FakeDoor
from tests.support.wire import Client

OFFER = "250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n"


def trusting(**limits: float) -> tuple[FakeDoor, Client]:
    door = FakeDoor(**limits)
    door.trusted = {"127.0.0.1"}
    return door, Client(door)


async def test_only_trusted_clients_may():
    """To others it is not offered, and 550."""
    door = FakeDoor()
    client = Client(door)
    assert "XCLIENT" not in client.say("EHLO c.test")
    assert client.say("XCLIENT ADDR=192.0.2.1") == "550 5.7.0 Insufficient authorization\r\n"
    assert client.say("MAIL FROM:<a@b>").startswith("250 ")
    assert door.connections == {"127.0.0.1": 1}


async def test_the_session_is_the_other_clients():
    """A new greeting; Received, log, counts and the queue have the other; EHLO is due again."""
    door, client = trusting()
    assert OFFER in client.say("EHLO proxy.test")
    answer = client.say("XCLIENT NAME=spike.test ADDR=192.0.2.1 PORT=4711 PROTO=ESMTP LOGIN=kim")
    assert answer == "220 mx.test ESMTP\r\n"
    assert door.connections == {"127.0.0.1": 0, "192.0.2.1": 1}
    assert client.say("MAIL FROM:<a@b>").startswith("503 ")
    client.say("EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
    assert client.send("x\r\n.\r\n").startswith("250 ")
    [message] = door.accepted
    assert message.body.startswith(b"Received: from c.test (spike.test [192.0.2.1])\r\n")
    assert message.transaction.peer_address == "192.0.2.1"
    assert message.transaction.peer_name == "spike.test"
    assert message.transaction.auth_user == "kim"
    assert (
        "0000000000000001 smtp xclient address=192.0.2.1 port=4711 host=spike.test user=kim"
        in door.lines
    )
    client.say("QUIT")
    assert door.connections == {"127.0.0.1": 0, "192.0.2.1": 0}


async def test_rights_are_the_connections_not_the_names():
    """One who may say it may say it again (a proxy keeps connections); one who may not can't get there."""
    door, client = trusting()
    door.trusted.add("192.0.2.9")
    assert client.say("XCLIENT ADDR=192.0.2.1").startswith("220 ")
    assert client.say("XCLIENT ADDR=IPV6:2001:db8::1").startswith("220 ")
    assert door.connections == {"127.0.0.1": 0, "192.0.2.1": 0, "2001:db8::1": 1}
    stranger = Client(door, peer="192.0.2.8")
    assert stranger.say("XCLIENT ADDR=192.0.2.9").startswith("550 ")
    assert stranger.say("XCLIENT ADDR=127.0.0.1").startswith("550 ")


async def test_helo_and_proto_are_taken_over():
    """A proxy that has heard EHLO need not repeat it, as in Postfix."""
    _door, client = trusting()
    assert client.say("XCLIENT HELO=spike.test PROTO=ESMTP").startswith("220 ")
    assert client.say("MAIL FROM:<a@b> SIZE=1").startswith("250 ")
    client.say("RSET", "XCLIENT PROTO=SMTP HELO=old.test")
    assert client.say("MAIL FROM:<a@b> SIZE=1").startswith("555 ")
    assert client.say("MAIL FROM:<a@b>").startswith("250 ")
    client.say("RSET", "XCLIENT HELO=[UNAVAILABLE]")
    assert client.say("MAIL FROM:<a@b>").startswith("503 ")


async def test_what_is_not_known():
    """No address, no rights; no name, no guess from the proxy's."""
    door, client = trusting()
    client.say(
        "XCLIENT NAME=[TEMPUNAVAIL] ADDR=[unavailable] PORT=[UNAVAILABLE] LOGIN=[UNAVAILABLE]"
    )
    assert door.connections == {"127.0.0.1": 0, "unknown": 1}
    client.say("EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
    assert b"from c.test (unknown [unknown])\r\n" in door.accepted[0].body
    assert door.accepted[0].transaction.auth_user == ""
    client.say("XCLIENT ADDR=192.0.2.1")
    assert client.session.peer_name == "unknown"


async def test_not_in_a_transaction():
    """503 between MAIL and the dot, between chunks too; the transaction goes on."""
    door, client = trusting()
    client.say("EHLO c.test", "MAIL FROM:<a@b>")
    assert client.say("XCLIENT ADDR=192.0.2.1").startswith("503 5.5.1 ")
    client.say("RCPT TO:<c@d>", "BDAT 0")
    assert client.say("XCLIENT ADDR=192.0.2.1").startswith("503 5.5.1 ")
    assert client.say("BDAT 0 LAST").startswith("250 ")
    assert door.accepted[0].transaction.peer_address == "127.0.0.1"


async def test_a_login_may_relay():
    """Whose proxy has authenticated it."""
    door, client = trusting()
    door.may_relay = False
    client.say("EHLO c.test", "MAIL FROM:<a@b>")
    assert client.say("RCPT TO:<c@d>").startswith("550 5.7.1 ")
    client.say("RSET", "XCLIENT LOGIN=kim", "EHLO c.test", "MAIL FROM:<a@b>")
    assert client.say("RCPT TO:<c@d>").startswith("250 ")


async def test_another_client_is_not_logged_in():
    """Whether the proxy said who its last client was, or logged in itself: that was not this one."""
    door, client = trusting()
    door.may_relay = False
    client.say("XCLIENT ADDR=192.0.2.1 LOGIN=kim", "EHLO c.test", "MAIL FROM:<a@b>")
    assert client.say("RCPT TO:<c@d>").startswith("250 ")
    client.say("RSET", "XCLIENT ADDR=192.0.2.2", "EHLO c.test", "MAIL FROM:<a@b>")
    assert client.say("RCPT TO:<c@d>").startswith("550 5.7.1 ")


async def test_a_login_opens_what_asks_for_one():
    """A listener for users, behind a proxy that knows them; and it closes again."""
    door = FakeDoor()
    door.trusted = {"127.0.0.1"}
    client = Client(door, listener=Listener("submission", "none", "required", False))
    client.say("EHLO c.test")
    assert client.say("MAIL FROM:<a@b>").startswith("530 ")
    client.say("XCLIENT LOGIN=kim", "EHLO c.test")
    assert client.say("MAIL FROM:<a@b>").startswith("250 ")
    client.say("RSET", "XCLIENT LOGIN=[UNAVAILABLE]", "EHLO c.test")
    assert client.say("MAIL FROM:<a@b>").startswith("530 ")


async def test_nothing_may_follow_in_the_same_segment():
    """It would be the proxy's words in the client's session, or the other way round."""
    _, client = trusting()
    client.say("EHLO c.test")
    assert client.send("XCLIENT ADDR=192.0.2.1\r\nMAIL FROM:<a@b>\r\n").startswith("554 5.5.0 ")
    assert not client.is_open


async def test_limits_of_the_other_client():
    """Its connections count together, whoever made them; junk is junk."""
    door, client = trusting(max_conn_per_client=1, max_junk=3)
    Client(door, peer="192.0.2.1")
    assert client.say("XCLIENT ADDR=192.0.2.1").startswith("421 4.7.0 ")
    assert not client.is_open
    client.take()
    assert door.connections == {"127.0.0.1": 1, "192.0.2.1": 1}
    client.clock.advance(2)
    assert door.connections == {"127.0.0.1": 0, "192.0.2.1": 1}
    client = Client(door)
    for _ in range(3):
        assert client.say("XCLIENT PORT=1").startswith("220 ")
    assert client.say("XCLIENT PORT=1").startswith("421 4.7.0 ")


@pytest.mark.parametrize("point", ["may_say_xclient", "move"])
async def test_a_fault_of_ours(point):
    """A 4xx, and nothing has moved."""
    door, client = trusting()

    def fault(name: str) -> None:
        if name == point:
            raise OSError(5, "Input/output error")

    door.fault = fault
    assert client.say("XCLIENT ADDR=192.0.2.1").startswith("452 ")
    assert door.connections == {"127.0.0.1": 1}
    assert client.session.peer == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NAME=spike.test", ClientAttributes(name="spike.test")),
        ("name=[unavailable]", ClientAttributes(name="")),
        ("ADDR=192.0.2.1", ClientAttributes(address="192.0.2.1")),
        ("ADDR=IPv6:2001:DB8::1", ClientAttributes(address="2001:db8::1")),
        ("ADDR=2001:db8::1", ClientAttributes(address="2001:db8::1")),
        ("ADDR=IPV6:::ffff:192.0.2.1", ClientAttributes(address="192.0.2.1")),
        ("PORT=0 PORT=65535", ClientAttributes(port=65535)),
        ("PROTO=esmtp HELO=[192.0.2.1]", ClientAttributes(protocol="ESMTP", helo="[192.0.2.1]")),
        ("LOGIN=kim+2Bx+3D@one.test", ClientAttributes(login="kim+x=@one.test")),
        ("LOGIN=", ClientAttributes(login="")),
    ],
)
def test_what_can_be_said(text, said):
    """xtext is decoded, addresses have one form."""
    assert said == parse_xclient(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NAME",
        "=x",
        "NAME=spike test",
        "NAME=a/b",
        "NAME=a+0D+0AX-Injected:+201",
        "ADDR=192.0.2.256",
        "ADDR=spike.test",
        "ADDR=IPV6:192.0.2.1.1",
        "ADDR=fe80::1%25eth0",
        "ADDR=fe80::1%eth0",
        "PORT=65536",
        "PORT=-1",
        "PORT=x",
        "PROTO=LMTP",
        "PROTO=[UNAVAILABLE]",
        "HELO=a+0Ab",
        "HELO=+C3+A4",
        "LOGIN=a+20b",
        "LOGIN=a+2",
        "LOGIN=a+2b",
        "LOGIN=" + "x" * 256,
        "DESTADDR=192.0.2.1",
        "XYZZY=1",
        "NAME=\u00e4.test",
    ],
)
def test_what_can_not(text):
    """One 501 for each."""
    answer = parse_xclient(text)
    assert isinstance(answer, Reply), answer
    assert (501, "5.5.4") == answer[:2]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=60))
def test_nothing_unprintable_passes(text):
    """Whatever is said."""
    said = parse_xclient(f"NAME={text} LOGIN={text}")
    if isinstance(said, ClientAttributes):
        assert all(str(value).isprintable() for value in said)
