"""STARTTLS and implicit TLS at the door (RFC 3207, RFC 8314)."""

import asyncio
import ssl

import pytest

from mta.core.reply import Reply
from mta.inbound_door import Listener
from tests.support.door import FakeDoor
from tests.support.tls import SecureClient, client_context, server_context

STARTTLS = Listener("mx", "starttls")
REQUIRED = Listener("submission", "required")
IMPLICIT = Listener("smtps", "implicit")
TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
FAILED = "smtp disconnected reason=tls-accept-failed error="


@pytest.fixture
def door() -> FakeDoor:
    made = FakeDoor()
    made.context = server_context()
    return made


def gone(door: FakeDoor, client: SecureClient) -> None:
    """Nothing is left of a connection."""
    if not client.wire.lost:
        client.wire.lose(None)
    assert door.encrypted == {False: 0, True: 0}
    assert not any(door.connections.values())
    assert 0 == client.clock.pending()
    assert 0 == door.reserved


@pytest.mark.parametrize(
    ("version", "name"),
    [(ssl.TLSVersion.TLSv1_3, "TLSv1.3:"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2:")],
)
async def test_a_message_is_taken_under_tls(door, version, name):
    """EHLO offers STARTTLS until there is TLS; Received, transaction and log say so."""
    client = SecureClient(door, listener=STARTTLS)
    assert "250-STARTTLS\r\n" in client.say("EHLO c.test")
    client.starttls(client_context(version))
    assert "STARTTLS" not in client.say("EHLO c.test")
    assert {False: 1, True: 0} == door.encrypted
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
    assert client.send("Subject: x\r\n\r\nhello\r\n.\r\n").startswith("250 2.0.0 ")
    assert client.say("QUIT") == "221 2.0.0 Bye\r\n"
    assert client.ended
    [message] = door.accepted
    tls = message.transaction.tls
    assert tls.startswith(name)
    assert f" with ESMTPS id 00000001 ({tls}:NO);\r\n" in message.body.decode()
    assert message.text == b"Subject: x\r\n\r\nhello\r\n"
    assert f"0000000000000001 smtp tls ciphers={tls}" in door.lines
    assert (
        "0000000000000001 smtp connected address=127.0.0.1 host=localhost listener=mx" in door.lines
    )
    assert "0000000000000001 smtp disconnected reason=quit" == door.lines[-1]
    gone(door, client)


async def test_smtputf8_under_tls_has_its_own_word(door):
    """RFC 6531 3.7.3."""
    client = SecureClient(door, listener=STARTTLS).starttls()
    client.say("MAIL FROM:<a@b> SMTPUTF8", "RCPT TO:<c@d>", "DATA", ".")
    assert b" with UTF8SMTPS id " in door.accepted[0].body


async def test_implicit_tls_greets_after_the_handshake(door):
    """Not a byte in clear."""
    client = SecureClient(door, listener=IMPLICIT)
    assert client.greeting == ""
    assert client.secure() == "220 mx.test ESMTP\r\n"
    assert "STARTTLS" not in client.say("EHLO c.test")
    assert client.say("STARTTLS").startswith("503 5.5.1 ")
    assert {False: 0, True: 1} == door.encrypted
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
    assert TLS == door.accepted[0].transaction.tls
    client.say("QUIT")
    gone(door, client)


@pytest.mark.parametrize("command", ["MAIL FROM:<a@b>", "RSET", "VRFY x", "AUTH PLAIN", "HELP"])
async def test_required_tls_lets_nothing_through(door, command):
    """RFC 3207 4: 530 for all but EHLO, NOOP, QUIT and STARTTLS, until there is TLS."""
    client = SecureClient(door, listener=REQUIRED)
    client.say("EHLO c.test")
    assert client.say(command) == "530 5.7.0 Must issue a STARTTLS command first\r\n"
    assert client.say("NOOP").startswith("250 ")
    assert client.say("XYZZY").startswith("500 ")
    client.starttls()
    assert client.say("MAIL FROM:<a@b>").startswith("250 ")


class TestForgetting:
    """RFC 3207 4.2; CVE-2024-34083 was an MTA's Python part that did not."""

    @pytest.mark.parametrize(
        "command",
        ["MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "BDAT 0 LAST", "AUTH PLAIN AGEAYg=="],
    )
    async def test_what_was_said_in_clear_is_forgotten(self, door, command):
        """Transaction and EHLO."""
        client = SecureClient(door, listener=Listener("x", "starttls", "optional"))
        client.say("EHLO c.test", "MAIL FROM:<evil@x>", "RCPT TO:<c@d>")
        assert client.say("STARTTLS").startswith("220 ")
        client.secure()
        assert client.say(command).startswith("503 ")
        assert [] == door.logins

    async def test_a_login_in_clear_is_forgotten(self, door):
        """It says nothing of who speaks now."""
        door.users["alice"] = "secret"
        client = SecureClient(door, listener=Listener("x", "starttls", "required", False))
        client.say("EHLO c.test")
        assert client.say("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith("235 ")
        client.starttls()
        assert client.say("MAIL FROM:<a@b>").startswith("530 ")

    async def test_the_errors_are_not(self, door):
        """STARTTLS does not buy new ones."""
        door = FakeDoor(max_errors=3)
        door.context = server_context()
        client = SecureClient(door, listener=STARTTLS)
        client.say("EHLO c.test", "XYZZY", "XYZZY")
        client.starttls()
        assert "421 4.7.0 Too many errors" in client.say("XYZZY")
        assert client.ended


class TestInjection:
    """CVE-2011-0411: what came in clear behind STARTTLS must not be obeyed after it."""

    @pytest.mark.parametrize(
        "behind", ["EHLO x\r\n", "RSET\r\nMAIL FROM:<evil@x>\r\n", "x", "\r", "\x16\x03\x01"]
    )
    async def test_in_the_same_segment(self, door, behind):
        """The client is sent away before it is told to start."""
        client = SecureClient(door, listener=STARTTLS)
        client.say("EHLO c.test")
        answer = client.send(f"STARTTLS\r\n{behind}")
        assert answer == "554 5.5.0 SMTP protocol synchronization\r\n"
        assert not client.is_open
        assert 0 == door.handshakes_failed

    async def test_in_a_segment_of_its_own(self, door):
        """It is no handshake."""
        client = SecureClient(door, listener=STARTTLS)
        client.say("EHLO c.test", "STARTTLS")
        client.feed(b"RSET\r\nMAIL FROM:<evil@x>\r\n")
        assert b"250" not in client.take_bytes()
        assert FAILED + '"' in door.lines[-1]
        assert 1 == door.handshakes_failed
        gone(door, client)

    async def test_while_the_client_does_not_read(self, door):
        """Input that waited for the client to read is obeyed in clear, or not at all."""
        client = SecureClient(door, listener=STARTTLS)
        client.say("EHLO c.test")
        client.wire.stuck = True
        client.feed(b"NOOP\r\n")
        client.feed(b"STARTTLS\r\n")
        client.feed(b"MAIL FROM:<evil@x>\r\n") if client.wire.reading else None
        client.wire.stuck = False
        client.session.resume_writing()
        if client.is_open:
            client.take()
            assert client.wire.reading, "the handshake must be read"
            client.secure()
            assert client.say("EHLO c.test").startswith("250-")
            assert client.say("RCPT TO:<a@b>").startswith("503 ")

    async def test_starttls_that_waited_is_obeyed(self, door):
        """The pause in which it came does not outlast it."""
        client = SecureClient(door, listener=STARTTLS)
        client.say("EHLO c.test")
        client.wire.stuck = True
        client.feed(b"NOOP\r\n")
        client.feed(b"STARTTLS\r\n")
        assert not client.wire.reading
        client.wire.stuck = False
        client.session.resume_writing()
        assert client.take().endswith("220 2.0.0 Ready to start TLS\r\n")
        client.secure()
        assert client.say("EHLO c.test").startswith("250-")


class TestRefused:
    """Where there is no TLS, or not now."""

    async def test_not_offered(self, door):
        """502."""
        client = SecureClient(door)
        assert "STARTTLS" not in client.say("EHLO c.test")
        assert client.say("STARTTLS").startswith("502 5.5.1 ")

    async def test_out_of_place(self, door):
        """503 before EHLO and inside TLS; 501 with an argument."""
        client = SecureClient(door, listener=STARTTLS)
        assert client.say("STARTTLS").startswith("503 ")
        client.say("HELO c.test")
        assert client.say("STARTTLS").startswith("503 ")
        client.say("EHLO c.test")
        assert client.say("STARTTLS now").startswith("501 ")
        client.starttls()
        assert client.say("STARTTLS").startswith("503 ")

    @pytest.mark.parametrize("error", [ssl.SSLError(1, "x"), MemoryError(), OSError(24, "x")])
    async def test_a_fault_of_ours_is_454(self, door, error):
        """And the session goes on in clear; nothing of the cause is told."""

        def fault(name: str) -> None:
            if name == "tls_context":
                raise error

        door.fault = fault
        client = SecureClient(door, listener=STARTTLS)
        client.say("EHLO c.test")
        assert client.say("STARTTLS") == "454 4.7.0 TLS not available now, try again later\r\n"
        assert client.say("MAIL FROM:<a@b>").startswith("250 ")
        gone(door, client)
        implicit = SecureClient(door, listener=IMPLICIT)
        assert not implicit.is_open
        assert implicit.greeting == ""
        gone(door, implicit)

    async def test_a_refused_client_of_smtps_gets_no_clear_text(self):
        """It would take it for a broken handshake; and we do no work for it."""
        door = FakeDoor(max_conn=1)
        door.context = server_context()
        first = SecureClient(door, listener=IMPLICIT)
        second = SecureClient(door, listener=IMPLICIT)
        assert second.greeting == ""
        assert not second.is_open
        first.secure()
        assert 1 == door.encrypted[True]


class TestHandshake:
    """It can fail in every way; the connection is closed, counted and forgotten."""

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x00\x05hello",
            b"GET / HTTP/1.0\r\n\r\n",
            b"\x80\x2e\x01\x03\x01" + b"x" * 43,
            b"\0" * 300,
        ],
        ids=["record", "http", "sslv2", "zeros"],
    )
    @pytest.mark.parametrize("listener", [STARTTLS, IMPLICIT], ids=["starttls", "implicit"])
    async def test_garbage(self, door, listener, garbage):
        """Not TLS."""
        client = SecureClient(door, listener=listener)
        if listener is STARTTLS:
            client.say("EHLO c.test", "STARTTLS")
        client.feed(garbage)
        client.take_bytes()
        assert FAILED in door.lines[-1]
        assert 1 == door.handshakes_failed
        gone(door, client)

    @pytest.mark.parametrize("cut", [0, 1, 100])
    async def test_the_client_leaves_half_way(self, door, cut):
        """Closed for writing, or gone altogether."""
        for leave in ("shut", "lose"):
            client = SecureClient(door, listener=IMPLICIT)
            hello = client.hello()[:cut]
            if hello:
                client.feed(hello)
            if leave == "shut":
                client.shut()
                client.take_bytes()
            else:
                client.wire.lose(ConnectionResetError(104, "reset"))
            assert FAILED in door.lines[-1]
            gone(door, client)
        assert 2 == door.handshakes_failed

    @pytest.mark.parametrize("listener", [STARTTLS, IMPLICIT], ids=["starttls", "implicit"])
    async def test_the_client_stops(self, listener):
        """A byte now and then does not keep it: `tls_handshake_s` is for all of it."""
        door = FakeDoor(tls_handshake_s=30.0)
        door.context = server_context()
        client = SecureClient(door, listener=listener)
        if listener is STARTTLS:
            client.say("EHLO c.test", "STARTTLS")
        hello = client.hello()
        for byte in hello[:29]:
            client.clock.advance(1.0)
            client.feed(bytes([byte]))
        assert client.is_open
        client.clock.advance(1.01)
        assert not client.is_open
        client.take_bytes()
        assert FAILED + '"timeout"' in door.lines[-1]
        gone(door, client)

    async def test_time_goes_on_after_it(self):
        """The idle timer is the session's again."""
        door = FakeDoor(tls_handshake_s=30.0, timeout_s=100.0)
        door.context = server_context()
        client = SecureClient(door, listener=IMPLICIT)
        client.secure()
        client.clock.advance(99.0)
        assert client.is_open
        client.clock.advance(2.0)
        client.exchange()
        assert client.heard().startswith("421 4.4.2 ")
        gone(door, client)

    async def test_a_stop_does_not_wait_for_it(self, door):
        """The server ends while a client is half-way."""
        client = SecureClient(door, listener=IMPLICIT)
        client.feed(client.hello()[:50])
        client.session.drain()
        client.take_bytes()
        gone(door, client)

    async def test_a_stop_is_told_after_it(self, door):
        """And to who is through, in so many words."""
        client = SecureClient(door, listener=IMPLICIT)
        client.secure()
        client.session.drain()
        client.exchange()
        assert client.heard().startswith("421 4.3.2 ")

    async def test_an_old_version_is_refused(self, door):
        """TLS 1.2 is the least."""
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old = client_context(ssl.TLSVersion.TLSv1_1)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        client = SecureClient(door, listener=IMPLICIT)
        with pytest.raises(ssl.SSLError, match=r"(?i)alert|unsupported|no.protocols"):
            client.secure(old)


class TestRecords:
    """Encrypted input is no other input."""

    async def test_cut_anywhere(self, door):
        """Byte by byte."""
        client = SecureClient(door, listener=STARTTLS).starttls()
        data = client.encrypted("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        for byte in data:
            client.feed(bytes([byte]))
        client.exchange()
        assert client.heard().endswith("354 End data with <CR><LF>.<CR><LF>\r\n")

    async def test_pipelining_waits_for_the_commit(self, door):
        """What is behind a message is decrypted when it is its turn."""
        door.hold = True
        client = SecureClient(door, listener=STARTTLS).starttls()
        one = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 4 LAST\r\nx\r\n\n"
        one = one.replace("x\r\n\n", "xx\r\n")
        client.feed(client.encrypted(one))
        for _ in range(3):
            client.feed(client.encrypted(one)) if client.wire.reading else None
        assert 1 == len(door.commits)
        assert not client.wire.reading
        while door.commits:
            door.commit()
            await asyncio.sleep(0)
        client.exchange()
        assert client.wire.reading
        assert len(door.accepted) >= 2
        assert client.heard().count("Message accepted for delivery") == len(door.accepted)

    async def test_a_half_close_behind_input_that_waits(self, door):
        """The end is not seen before what came before it."""
        door.hold = True
        client = SecureClient(door, listener=STARTTLS).starttls()
        one = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 4 LAST\r\nxx\r\n"
        client.feed(client.encrypted(one) + client.encrypted(one) + client.encrypted(one))
        client.shut()
        while door.commits:
            door.commit()
            await asyncio.sleep(0)
        assert 3 == len(door.accepted)
        client.take_bytes()
        gone(door, client)

    async def test_a_record_that_was_changed(self, door):
        """The connection is cut, whatever was in it."""
        client = SecureClient(door, listener=STARTTLS).starttls()
        data = bytearray(client.encrypted("MAIL FROM:<a@b>\r\n"))
        data[-1] ^= 1
        client.feed(bytes(data))
        client.take_bytes()
        assert 'reason="io-error: ' in door.lines[-1]
        gone(door, client)

    async def test_close_notify_is_the_end(self, door):
        """Also in the middle of a message, which is not taken; what follows it is not looked at."""
        client = SecureClient(door, listener=STARTTLS).starttls()
        client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
        client.send("half a mess")
        client.bye()
        assert not client.is_open
        assert [] == door.accepted
        gone(door, client)

    async def test_an_answer_that_is_due_survives_close_notify(self, door):
        """A client that only listens for the answer to its message."""
        door.hold = True
        client = SecureClient(door, listener=STARTTLS).starttls()
        client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
        client.bye()
        door.commit()
        await asyncio.sleep(0)
        client.exchange()
        assert "Message accepted" in client.heard()
        gone(door, client)

    async def test_nothing_is_decrypted_for_a_client_that_was_sent_away(self, door):
        """What it still sends is counted and thrown away, so much and no more."""
        client = SecureClient(door, listener=STARTTLS).starttls()
        assert client.send("GET / HTTP/1.0\r\n").startswith("421 ")
        assert client.ended
        for _ in range(3):
            client.feed(b"\0" * 500_000)
        assert client.wire.lost
        gone(door, client)

    async def test_keys_are_changed_when_the_client_asks(self, door):
        """Many records without a command in them do no harm."""
        client = SecureClient(door, listener=STARTTLS).starttls()
        for _ in range(200):
            client.feed(client.encrypted("x"))
        assert client.say("x").startswith("500 5.5.1 ")


async def test_tracing_shows_the_dialogue_and_not_the_records(door):
    """Decrypted, line by line."""
    door.tracing = True
    client = SecureClient(door, listener=STARTTLS).starttls()
    client.say("NOOP")
    assert door.traced[-2:] == [
        "0000000000000001 <<< NOOP",
        "0000000000000001 >>> 250 2.0.0 Ok",
    ]
    assert Reply(0, "", "") not in door.rejections
