"""TLS and AUTH of the whole server, with real sockets, on both event loops."""

import asyncio
import contextlib
import functools
import smtplib
import socket
import ssl
import struct
import threading

import pytest
import uvloop

from mta.passwords import encrypt
from tests.support.faults import FaultyEffects
from tests.support.inprocess import serving
from tests.support.tls import authority, write_pair
from tests.support.waiting import until

uvloop.new_event_loop().close()  # the first one opens a pipe for the whole process
SECRET = "correct horse"
TEXT = "Subject: x\r\n\r\nhello\r\n"


@functools.cache
def hashed() -> str:
    return encrypt(SECRET)


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    monkeypatch.setattr("mta.inbound_connection.LINGER_S", 0.05)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on one of the loops; warn of nothing that is left."""

    def runner(coroutine):
        with asyncio.Runner(loop_factory=request.param) as made:
            return made.run(asyncio.wait_for(coroutine, 30))

    return runner


def config(tmp_path, **more):
    """A server with three listeners that relays for nobody but who logs in."""
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text(f"alice {hashed()}\n")
    return {
        "smtp": {"listen": "127.0.0.1:0", "relay_networks": []},
        "tls": write_pair(tmp_path).config,
        "auth": {"file": str(users)},
        "listeners": [
            {
                "name": "submission",
                "address": "127.0.0.1:0",
                "tls": "required",
                "auth": "required",
            },
            {"name": "smtps", "address": "127.0.0.1:0", "tls": "implicit", "auth": "optional"},
        ],
        **more,
    }


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def submit(port: int, *, implicit: bool = False, user: str = "alice") -> dict:
    """Send a message as a user's mail program does."""
    kind = functools.partial(smtplib.SMTP_SSL, context=trusting()) if implicit else smtplib.SMTP
    with kind("127.0.0.1", port, local_hostname="c.test", timeout=20) as smtp:
        if not implicit:
            smtp.starttls(context=trusting())
        smtp.login(user, SECRET)
        return smtp.sendmail("a@src.test", ["b@[127.0.0.9]"], TEXT)


def test_mail_comes_in_by_each_door(run, tmp_path, fds):
    """STARTTLS with a login, TLS from the start, and in clear, where nobody may relay."""

    async def main():
        async with serving(tmp_path, FaultyEffects(), **config(tmp_path)) as server:
            ports = {name: port for name, (_, port) in server.listeners.addresses.items()}
            assert {} == await asyncio.to_thread(submit, ports["submission"])
            assert {} == await asyncio.to_thread(submit, ports["smtps"], implicit=True)
            with pytest.raises(smtplib.SMTPAuthenticationError):
                await asyncio.to_thread(submit, ports["submission"], user="bob")
            with pytest.raises(smtplib.SMTPNotSupportedError):
                await asyncio.to_thread(submit, ports["smtp"])
            await until(lambda: not server.stats()["smtp.session"])
            stats = server.stats()
            assert (2, 2, 0) == tuple(  # smtplib tries PLAIN, then LOGIN
                stats[f"smtp.auth.{name}"] for name in ("ok", "permfail", "pending")
            )
            assert 0 == stats["smtp.tls"] == stats["smtp.smtps"] == stats["smtp.tls.failed"]
            rows = server.queue.page(after=0, limit=10)
            assert {"alice"} == {row.transaction.auth_user for row in rows}
            assert all(row.transaction.tls.startswith("TLSv1.3:") for row in rows)

    run(main())
    log = (tmp_path / "log").read_text()
    assert "smtp authentication user=alice result=ok" in log
    assert "smtp authentication user=bob result=permfail" in log
    assert "listener=submission" in log
    assert SECRET not in log


def test_a_large_message_both_ways(run, tmp_path):
    """Many records, and more than a socket holds."""

    def send(port: int) -> None:
        with smtplib.SMTP_SSL("127.0.0.1", port, context=trusting(), timeout=20) as smtp:
            smtp.login("alice", SECRET)
            smtp.sendmail("a@src.test", ["b@[127.0.0.9]"], "x" * 70 + "\r\n" + TEXT * 200_000)

    async def main():
        async with serving(tmp_path, FaultyEffects(), **config(tmp_path)) as server:
            await asyncio.to_thread(send, server.listeners.addresses["smtps"][1])
            assert server.stats()["smtp.message.bytes"] > 4_000_000
            assert 0 == server.stats()["smtp.bytes"]

    run(main())


def test_handshakes_that_come_to_nothing(run, tmp_path, fds):
    """Garbage, silence, and clients that leave; the others go on, and nothing stays open."""
    limits = {"smtp": {"tls_handshake_s": 0.3}}

    async def main():
        async with serving(tmp_path, FaultyEffects(), **config(tmp_path, limits=limits)) as server:
            port = server.listeners.addresses["smtps"][1]
            streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            streams[0][1].write(b"EHLO x\r\n" * 100)
            streams[1][1].write(b"\x16\x03\x01")  # and nothing more
            streams[2][1].write(b"\x16\x03\x01")
            streams[2][1].transport.abort()
            streams[3][1].write_eof()
            assert {} == await asyncio.to_thread(submit, port, implicit=True)
            await until(lambda: not server.stats()["smtp.session"])
            assert 4 == server.stats()["smtp.tls.failed"]
            for _, writer in streams:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    run(main())
    log = (tmp_path / "log").read_text()
    assert 4 == log.count("smtp disconnected reason=tls-accept-failed error=")
    assert 'error="timeout"' in log


def test_resets_in_the_middle_of_handshakes(run, tmp_path, fds):
    """A thousand, wherever they cut: no descriptor, session or task is left of them."""
    hello = client_hello()

    def reset(port: int, sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.sendall(sent)

    def attack(port: int) -> None:
        for number in range(1000):
            reset(port, hello[: number % (len(hello) + 1)])

    async def main():
        async with serving(tmp_path, FaultyEffects(), **config(tmp_path)) as server:
            tasks = len(asyncio.all_tasks())
            await asyncio.to_thread(attack, server.listeners.addresses["smtps"][1])
            await until(lambda: 1000 == server.stats()["smtp.tls.failed"])
            assert 0 == server.stats()["smtp.session"] == server.door.connections
            assert len(asyncio.all_tasks()) <= tasks

    run(main())


def client_hello() -> bytes:
    """Return what a client says first."""
    outgoing = ssl.MemoryBIO()
    client = trusting().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mx.test")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_injection_with_real_sockets(run, tmp_path):
    """What came in clear behind STARTTLS is never answered under TLS, however it is cut (CVE-2011-0411)."""

    def attack(port: int, *, together: bool) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            raw.recv(1000)
            raw.sendall(b"EHLO evil\r\n")
            while b"250 " not in raw.recv(4000):
                pass
            if together:
                raw.sendall(b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
                return raw.recv(1000)
            raw.sendall(b"STARTTLS\r\n")
            assert raw.recv(1000).startswith(b"220 ")
            raw.sendall(b"MAIL FROM:<evil@x>\r\n")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                trusting().wrap_socket(raw, server_hostname="127.0.0.1")
            return b""

    async def main():
        async with serving(tmp_path, FaultyEffects(), **config(tmp_path)) as server:
            port = server.listeners.addresses["submission"][1]
            answer = await asyncio.to_thread(attack, port, together=True)
            assert answer.startswith(b"554 5.5.0 ")
            await asyncio.to_thread(attack, port, together=False)
            await until(lambda: not server.stats()["smtp.session"])

    run(main())


def test_a_client_leaves_while_its_password_is_checked(run, tmp_path, fds):
    """The check ends by itself; the next login works."""
    effects = FaultyEffects()

    def leave(port: int) -> None:
        with smtplib.SMTP_SSL("127.0.0.1", port, context=trusting(), timeout=20) as smtp:
            smtp.ehlo()
            assert smtp.sock is not None
            smtp.sock.sendall(b"AUTH PLAIN AGFsaWNlAHg=\r\n")
            smtp.close()

    async def main():
        async with serving(tmp_path, effects, **config(tmp_path)) as server:
            port = server.listeners.addresses["smtps"][1]
            held = effects.gates["argon2", "auth"] = threading.Event()
            await asyncio.to_thread(leave, port)
            await until(lambda: not server.stats()["smtp.session"])
            assert 1 == server.stats()["smtp.auth.pending"]
            held.set()
            await until(lambda: not server.stats()["smtp.auth.pending"])
            assert {} == await asyncio.to_thread(submit, port, implicit=True)

    run(main())


def test_a_new_certificate_needs_no_restart(run, tmp_path):
    """`mtactl update tls`: new connections get it; one that can't be used changes nothing."""

    def serial(port: int) -> str:
        with smtplib.SMTP_SSL("127.0.0.1", port, context=trusting(), timeout=20) as smtp:
            return smtp.sock.getpeercert()["serialNumber"]

    async def main():
        async with serving(tmp_path, FaultyEffects(), **config(tmp_path)) as server:
            port = server.listeners.addresses["smtps"][1]
            first = await asyncio.to_thread(serial, port)
            write_pair(tmp_path)
            assert first == await asyncio.to_thread(serial, port)
            server.update_security("tls")
            assert server.update_security("relay") == "passwords for other hosts: 0"
            second = await asyncio.to_thread(serial, port)
            assert first != second
            (tmp_path / "tls.key").chmod(0o666)
            server._reload()  # what SIGHUP does
            assert second == await asyncio.to_thread(serial, port)

    run(main())
    assert "the certificate that was read before is kept" in (tmp_path / "log").read_text()


def _behind_a_proxy(port: int, header: bytes) -> str:
    """Send a PROXY header and the ClientHello in one segment; return what the server says to EHLO."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        pending = header

        def step(call, *args):
            nonlocal pending
            while True:
                try:
                    return call(*args)
                except ssl.SSLWantReadError:
                    wire.sendall(pending + outgoing.read())
                    pending = b""
                    data = wire.recv(65_536)
                    assert data, "closed"
                    incoming.write(data)

        step(tls.do_handshake)
        said = step(tls.read, 4096).decode()
        tls.write(b"EHLO c.test\r\n")
        return said + step(tls.read, 4096).decode()


def test_a_proxy_speaks_before_tls(run, tmp_path, fds):
    """PROXY, then TLS from the start, in one segment: no octet of either is lost (mta/preface.py)."""

    async def main():
        more = config(tmp_path)
        more["smtp"]["proxy_networks"] = ["127.0.0.0/8"]
        async with serving(tmp_path, FaultyEffects(), **more) as server:
            ports = {name: port for name, (_, port) in server.listeners.addresses.items()}
            header = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 465\r\n"
            said = await asyncio.to_thread(_behind_a_proxy, ports["smtps"], header)
            assert said.startswith("220 ")
            assert "250-CHUNKING" in said
            await until(lambda: not server.door.connections)
        return (tmp_path / "log").read_text()

    log = run(main())
    assert "smtp connected address=192.0.2.1 host=unknown" in log
    assert "smtp proxied port=56324 proxy=127.0.0.1" in log
