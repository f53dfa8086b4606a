"""Every effect fails once while a client says STARTTLS, logs in and sends a message.

After each fault: replies were 4xx and said nothing of the cause, what was accepted is in the queue, no gauge and
no descriptor is left, and the next client gets through.
"""

import asyncio
import errno
import ssl
from base64 import b64encode
from contextlib import suppress

import argon2
import pytest

from tests.support.faults import FaultyEffects
from tests.support.inprocess import Dialogue, breaking, is_counted, serving
from tests.support.tls import client_context, write_pair
from tests.support.waiting import until

HASH = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")
LOGIN = b64encode(b"\0alice\0secret").decode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    monkeypatch.setattr("mta.inbound_connection.LINGER_S", 0.05)
    monkeypatch.setattr("mta.passwords.CHECK_S", 0.0)
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)
    monkeypatch.setattr("mta.acceptor.PAUSE_S", 0.02)


async def submit(port: int) -> Dialogue:
    """Do as a user's mail program does, as far as it gets."""
    said = Dialogue()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def hear() -> str:
        while (line := (await asyncio.wait_for(reader.readline(), 20)).decode())[3:4] == "-":
            pass
        if line:
            said.replies.append(line.rstrip())
        return line

    async def say(line: str, code: str) -> bool:
        writer.write(line.encode() + b"\r\n")
        return (await hear()).startswith(code)

    try:
        if not (await hear()).startswith("220"):
            return said
        if await say("EHLO c.test", "250") and await say("STARTTLS", "220"):
            await writer.start_tls(client_context(), server_hostname="mx.test")
            if await say("EHLO c.test", "250") and await say(f"AUTH PLAIN {LOGIN}", "235"):
                lines = ("MAIL FROM:<a@src.test>", "RCPT TO:<b@[127.0.0.9]>")
                if all([await say(line, "250") for line in lines]) and await say("DATA", "354"):
                    said.accepted = await say("Subject: x\r\n\r\nhello\r\n.", "250")
        await say("QUIT", "221")
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
    return said


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENOMEM], ids=errno.errorcode.get)
async def test_a_login_with_a_fault(tmp_path, fds, code):
    """In each effect between accept and 250, one after the other, on one server."""
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text(f"alice {HASH}\n")
    effects = FaultyEffects()
    config = {
        "tls": write_pair(tmp_path).config,
        "auth": {"file": str(users)},
        "smtp": {"listen": "", "relay_networks": []},
        "listeners": [
            {"name": "s", "address": "127.0.0.1:0", "tls": "required", "auth": "required"}
        ],
    }
    failed: set[tuple[str, str]] = set()
    accepted = 0
    async with serving(tmp_path, effects, **config) as server:
        server.engine.agent.paused = True  # who sends on is not asked here
        port = server.smtp_address[1]
        for number in range(1, 60):
            effects.failed.clear()
            effects._count = 0
            effects.plan = breaking(number, code, effects, matches=is_counted)
            said = await submit(port)
            effects.heal()
            said.check()
            accepted += said.accepted
            await until(lambda: server.queue.healthy and not server.door.connections)
            if not effects.failed:
                break
            failed |= {(point.op, point.site) for point in effects.failed}
            healthy = await submit(port)
            assert healthy.accepted, (number, failed, healthy.replies)
            accepted += 1
            gauges = ("smtp.tls", "smtp.smtps", "smtp.auth.pending", "smtp.bytes", "smtp.session")
            stats = server.stats()
            assert dict.fromkeys(gauges, 0) == {name: stats[name] for name in gauges}
        assert accepted <= server.queue.messages
    assert {("tls", "smtp"), ("thread", "auth"), ("argon2", "auth"), ("stat", "auth")} <= failed
