"""AUTH at the door (RFC 4954): PLAIN and LOGIN, and everything that can be wrong with them."""

import asyncio
from base64 import b64encode

import pytest

from mta.inbound_door import Listener, Verdict
from tests.support.door import FakeDoor
from tests.support.tls import SecureClient, server_context

OPEN = Listener("x", "none", "optional", auth_requires_tls=False)
SUBMISSION = Listener("submission", "starttls", "required")
SECRET = "tr0ub4dor&3"


def b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def plain(user: str = "alice", password: str = SECRET, authority: str = "") -> str:
    return b64(f"{authority}\0{user}\0{password}")


@pytest.fixture
def door() -> FakeDoor:
    made = FakeDoor()
    made.context = server_context()
    made.users = {"alice": SECRET, "ülrich": "pässwort mit leer"}
    made.tracing = True
    return made


@pytest.fixture
def client(door) -> SecureClient:
    made = SecureClient(door, listener=OPEN)
    assert "250-AUTH PLAIN LOGIN\r\n" in made.say("EHLO c.test")
    return made


@pytest.fixture(autouse=True)
def _no_secret(door):
    """Whatever happens, no password is in the log or the trace, in clear or in base64."""
    yield
    said = "\n".join(door.lines + door.traced)
    for secret in (SECRET, b64(SECRET), plain(), plain("bob"), "pässwort", b64("hunter2")):
        assert secret not in said


class TestIn:
    """Ways in."""

    async def test_plain_at_once(self, door, client):
        """With the initial response."""
        assert client.say(f"AUTH PLAIN {plain()}") == "235 2.7.0 Authentication successful\r\n"
        assert door.lines[-1] == "0000000000000001 smtp authentication user=alice result=ok"
        assert door.traced[-2] == "0000000000000001 <<< AUTH PLAIN ****"

    async def test_plain_in_two_steps(self, door, client):
        """The empty challenge is 334 and a space."""
        assert client.say("auth plain") == "334 \r\n"
        assert client.say(plain(authority="alice")).startswith("235 ")
        assert door.traced[-2] == "0000000000000001 <<< ****"

    async def test_login(self, client):
        """Its two challenges are words in base64."""
        assert client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6\r\n"
        assert client.say(b64("alice")) == "334 UGFzc3dvcmQ6\r\n"
        assert client.say(b64(SECRET)).startswith("235 ")

    async def test_login_with_the_name_at_once(self, client):
        """No RFC says so; clients do."""
        assert client.say(f"AUTH LOGIN {b64('alice')}") == "334 UGFzc3dvcmQ6\r\n"
        assert client.say(b64(SECRET)).startswith("235 ")

    async def test_names_and_passwords_are_normalised(self, client):
        """The same letters are the same password, however they were typed (RFC 8265)."""
        decomposed = plain("u\u0308lrich", "pa\u0308sswort\u00a0mit leer")
        assert client.say(f"AUTH PLAIN {decomposed}").startswith("235 ")

    async def test_who_logged_in_may_relay(self, door, client):
        """And the transaction, Received and the queue know."""
        door.may_relay = False
        client.say("MAIL FROM:<a@b>")
        assert client.say("RCPT TO:<c@d>").startswith("550 5.7.1 ")
        client.say("RSET", f"AUTH PLAIN {plain()}", "MAIL FROM:<a@b> AUTH=<>")
        assert client.say("RCPT TO:<c@d>").startswith("250 ")
        client.say("DATA", ".")
        [message] = door.accepted
        assert message.transaction.auth_user == "alice"
        assert b" with ESMTPA id " in message.body

    async def test_under_tls(self, door):
        """ESMTPSA; and without a login there is no mail where it is required."""
        client = SecureClient(door, listener=SUBMISSION)
        assert "AUTH" not in client.say("EHLO c.test")
        assert client.say(f"AUTH PLAIN {plain()}") == (
            "538 5.7.11 Encryption required, say STARTTLS first\r\n"
        )
        assert [] == door.logins
        client.starttls()
        assert client.say("MAIL FROM:<a@b>") == "530 5.7.0 Authentication required\r\n"
        assert client.say("VRFY a@b").startswith("530 ")
        assert client.say("RSET").startswith("250 ")
        client.say(
            f"AUTH PLAIN {plain()}", "MAIL FROM:<a@b> AUTH=a+40b", "RCPT TO:<c@d>", "DATA", "."
        )
        assert b" with ESMTPSA id 00000001 (TLSv1.3:" in door.accepted[0].body

    async def test_ehlo_again_does_not_log_out(self, door, client):
        """RFC 4954 4: only TLS does."""
        client.say(f"AUTH PLAIN {plain()}", "EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>")
        client.say("DATA", ".")
        assert door.accepted[0].transaction.auth_user == "alice"


class TestRefused:
    """535 for whoever it is not; 501 for what can't be read."""

    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (f"AUTH PLAIN {plain(password='wrong')}", "535 5.7.8"),
            (f"AUTH PLAIN {plain('bob')}", "535 5.7.8"),
            (f"AUTH PLAIN {plain(authority='bob')}", "535 5.7.8"),
            (f"AUTH PLAIN {plain('', '')}", "535 5.7.8"),
            (f"AUTH PLAIN {plain(password='')}", "535 5.7.8"),
            (f"AUTH PLAIN {plain(password='x' * 1025)}", "535 5.7.8"),
            (f"AUTH PLAIN {plain('x' * 256)}", "535 5.7.8"),
            (f"AUTH PLAIN {plain('al ice')}", "535 5.7.8"),
            (f"AUTH PLAIN {plain(chr(10))}", "535 5.7.8"),
            (f"AUTH PLAIN {b64('alice')}", "501 5.5.2"),
            (f"AUTH PLAIN {b64('a' + chr(0) + 'b')}", "501 5.5.2"),
            (f"AUTH PLAIN {b64(chr(0).join('abcd'))}", "501 5.5.2"),
            ("AUTH PLAIN =", "501 5.5.2"),
            ("AUTH PLAIN AGEAYg", "501 5.5.2"),
            ("AUTH PLAIN AGEA Yg==", "501 5.5.2"),
            ("AUTH PLAIN AGEAYg==AGEAYg==", "501 5.5.2"),
            ("AUTH PLAIN !", "501 5.5.2"),
            ("AUTH PLAIN /w==", "501 5.5.2"),
            ("AUTH", "501 5.5.4"),
            ("AUTH CRAM-MD5", "504 5.5.4"),
            (f"AUTH {b64(SECRET)}", "504 5.5.4"),
        ],
    )
    async def test_commands(self, client, command, code):
        """The session goes on as it was."""
        assert client.say(command).startswith(code)
        assert client.say(f"AUTH PLAIN {plain()}").startswith("235 ")

    async def test_cancelled(self, door, client):
        """A star instead of an answer; it is no failed login."""
        for _ in range(door.limits.max_auth_failures + 1):
            client.say("AUTH LOGIN", b64("alice"))
            assert client.say("*") == "501 5.7.0 Authentication cancelled\r\n"
        assert client.say("MAIL FROM:<a@b>").startswith("250 ")

    @pytest.mark.parametrize("before", [["MAIL FROM:<a@b>"], [f"AUTH PLAIN {plain()}"]])
    async def test_out_of_place(self, client, before):
        """Not inside a transaction, not twice."""
        client.say(*before)
        assert client.say(f"AUTH PLAIN {plain()}").startswith("503 5.5.1 ")

    async def test_before_ehlo(self, door):
        """Nobody offered it."""
        client = SecureClient(door, listener=OPEN)
        assert client.say(f"AUTH PLAIN {plain()}").startswith("503 ")
        client.say("HELO c.test")
        assert client.say(f"AUTH PLAIN {plain()}").startswith("503 ")

    async def test_not_offered(self, door):
        """Where the operator did not say so."""
        client = SecureClient(door)
        assert "AUTH" not in client.say("EHLO c.test")
        assert client.say(f"AUTH PLAIN {plain()}").startswith("502 ")

    async def test_a_client_that_does_not_listen(self, door):
        """Who was refused AUTH and sends name and password all the same has not told them to the log."""
        client = SecureClient(door)
        client.say("EHLO c.test", "AUTH LOGIN")
        assert client.say(b64("hunter2")).startswith("500 ")
        assert client.say(b64(SECRET)).startswith("500 ")
        assert 'failed-command command="****"' in door.lines[-1]
        client.say("NOOP", "XYZZY")
        assert 'failed-command command="XYZZY"' in door.lines[-1]

    @pytest.mark.parametrize(
        "line", [f" AUTH PLAIN {plain()}", f"AUTH\tPLAIN {plain()}", f"AUTHPLAIN {plain()}"]
    )
    async def test_what_only_looks_like_auth(self, client, line):
        """Is kept out of the log as well."""
        assert client.say(line).startswith("50")


class TestLimits:
    """Each is reached."""

    async def test_failed_logins(self, door, client):
        """The third is the last; who it was is in the log."""
        for _ in range(2):
            assert client.say(f"AUTH PLAIN {plain('bob')}").startswith("535 ")
        answer = client.say("AUTH PLAIN !")
        assert answer.splitlines()[1] == "421 4.7.0 Too many authentication failures"
        assert not client.is_open
        assert 2 == sum("user=bob result=permfail" in line for line in door.lines)

    async def test_a_login_makes_up_for_failures(self, client):
        """Also with TLS in between, they count from the last success."""
        client.say(f"AUTH PLAIN {plain('bob')}", f"AUTH PLAIN {plain('bob')}")
        assert client.say(f"AUTH PLAIN {plain()}").startswith("235 ")

    async def test_the_length_of_an_answer(self, client, door):
        """12,288 bytes are taken, one more is not, finished or not."""
        client.say("AUTH PLAIN")
        assert client.say("A" * 12_288).startswith("501 ")
        client.say("AUTH PLAIN")
        assert client.send("A" * 12_289) == ""
        assert client.send("A") == ("500 5.5.6 Authentication exchange line is too long\r\n")
        assert not client.is_open
        assert [] == door.logins

    async def test_the_length_of_the_command(self, client):
        """AUTH itself is as long as any command."""
        assert client.say("AUTH PLAIN " + "A" * 2100).startswith("500 5.5.2 Line too long")
        assert not client.is_open

    async def test_time(self, client, door):
        """A challenge is not waited for longer than anything else."""
        client.say("AUTH LOGIN")
        client.clock.advance(door.limits.timeout_s + 1)
        assert client.take().startswith("421 4.4.2 ")

    @pytest.mark.parametrize(
        "line", [f"AUTH PLAIN {plain()}\r\nNOOP\r\n", "AUTH LOGIN\r\nYQ==\r\n"]
    )
    async def test_pipelining(self, client, door, line):
        """AUTH is the last of its group."""
        assert client.send(line).startswith("554 5.5.0 ")
        assert [] == door.logins

    async def test_pipelined_answers(self, client, door):
        """So is an answer."""
        client.say("AUTH LOGIN")
        assert client.send("YQ==\r\nYQ==\r\n").startswith("554 5.5.0 ")

    @pytest.mark.parametrize("line", ["abc\n", "ab\0c=\r\n", "\r\n", "ab\rc\r\n"])
    async def test_lines_that_are_none(self, client, line):
        """Answers obey the rules of commands."""
        client.say("AUTH PLAIN")
        assert client.send(line)[:3] in ("501", "550")


class TestChecking:
    """While a password is being checked nothing else is done for the client."""

    @pytest.fixture
    async def held(self, door, client) -> SecureClient:
        door.hold_logins = True
        assert client.say(f"AUTH PLAIN {plain()}") == ""
        return client

    async def decide(self, door, verdict=Verdict.OK) -> None:
        door.logins[0][2].set_result(verdict)
        await asyncio.sleep(0)

    async def test_input_waits(self, door, held):
        """And is obeyed afterwards."""
        held.feed(b"NOOP\r\n")
        assert not held.wire.reading
        await self.decide(door)
        assert held.take() == "235 2.7.0 Authentication successful\r\n250 2.0.0 Ok\r\n"
        assert held.wire.reading

    async def test_the_client_leaves(self, door, held):
        """The answer comes, and nobody is there."""
        held.wire.lose(None)
        await self.decide(door)
        assert "user=alice result=ok" in door.lines[-1]
        assert 0 == held.clock.pending()
        assert door.connections == {"127.0.0.1": 0}

    async def test_the_client_half_closes(self, door, held):
        """It is not waited for."""
        held.shut()
        assert held.wire.closing
        held.take()
        await self.decide(door)

    async def test_the_client_is_sent_away(self, door, held):
        """Its time is over; what is decided then is not said."""
        held.clock.advance(door.limits.timeout_s + 1)
        assert held.take().startswith("421 4.4.2 ")
        await self.decide(door)
        assert held.take() == ""

    async def test_the_server_stops(self, door, held):
        """421 instead of what comes next."""
        held.session.drain()
        assert held.take() == ""
        await self.decide(door)
        answer = held.take()
        assert answer.startswith("235 ")
        assert "421 4.3.2 " in answer

    async def test_the_server_stops_at_a_challenge(self, client):
        """421 is an answer to that, too."""
        client.say("AUTH LOGIN")
        client.session.drain()
        assert client.take().startswith("421 4.3.2 ")

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda future: future.set_result(Verdict.TEMPFAIL),
            lambda future: future.set_exception(RuntimeError("can't start new thread")),
            lambda future: future.cancel(),
        ],
        ids=["tempfail", "error", "cancelled"],
    )
    async def test_it_can_not_be_said(self, door, held, spoil):
        """454, and the session goes on; it is no failed login."""
        spoil(door.logins[0][2])
        await asyncio.sleep(0)
        assert held.take() == "454 4.7.0 Temporary authentication failure, try again later\r\n"
        assert "user=alice result=tempfail" in "\n".join(door.lines)
        assert held.say("MAIL FROM:<a@b>").startswith("250 ")

    async def test_it_can_not_be_asked(self, door, client):
        """The same."""

        def fault(name: str) -> None:
            if name == "authenticate":
                raise OSError(24, "Too many open files")

        door.fault = fault
        assert client.say(f"AUTH PLAIN {plain()}").startswith("454 4.7.0 ")
        door.fault = None
        assert client.say(f"AUTH PLAIN {plain()}").startswith("235 ")
