"""Outbound TLS against real servers: every level, every failure, and what the next connection finds."""

import asyncio
import functools
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mta.config import Config
from mta.core.ids import SessionId
from mta.core.instructions import OpenConnection
from mta.core.reply import Outcome
from mta.core.settings import ConfigError, build
from mta.core.stimuli import ConnectionClosed, ConnectionFailed, ConnectionReady, TransactionDone
from mta.effects import Effects
from mta.outerrors import LOCAL_FAULT, STOPPED
from mta.outtls import OutboundTls, tls_reason
from mta.smtpclient import TOO_MUCH_DATA
from mta.smtphello import NO_STARTTLS, REFUSED_STARTTLS, Login
from mta.smtpstates import Timeouts
from mta.tlspipe import TlsPipe
from tests.support.faults import FaultyEffects, Plan
from tests.support.scriptedmx import LOOPS, LoopFactory, Recorder, one_message, run
from tests.support.tlsmx import NAME, TlsMx, authority

SHORT = Timeouts(hello=0.3, banner=5.0)
SECRET = "correct horse"


@pytest.fixture(autouse=True, scope="module")
def _warm_up() -> None:
    """Let libuv and OpenSSL open what they keep, before descriptors are counted."""
    authority()
    uvloop.run(asyncio.sleep(0))


@pytest.fixture(scope="module")
def ca_file() -> Iterator[Path]:
    with authority().file() as path:
        yield path


def tls_of(ca: Path, effects: Effects | None = None, **relay: Any) -> OutboundTls:
    """Return what the server would make of these keys of ``relay``."""
    config = build(Config, {"relay": {"ca_file": str(ca), **relay}}, source="test")
    return OutboundTls(config, effects or Effects(), rules=config.relay_rules(), source="test")


async def deliver(recorder: Recorder) -> Outcome | str:
    """Send one message over a new connection; return its outcome, or why there was no connection."""
    recorder.told.clear()
    await one_message(recorder)
    for stimulus in recorder.told:
        if isinstance(stimulus, ConnectionFailed):
            return stimulus.reason
        if isinstance(stimulus, TransactionDone):
            return stimulus.results[0].outcome
    raise AssertionError(recorder.told)


@functools.cache
def tls_of_nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


LEVELS = ["none", "may", "encrypt", "verify"]


class TestLevels:
    """What each level does with a host that is in order."""

    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("level", LEVELS)
    def test_a_host_with_a_good_certificate_gets_the_mail_as_the_level_says(
        self, loop: LoopFactory, level: str, ca_file: Path
    ) -> None:
        async def main() -> None:
            async with TlsMx().running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file, tls=level))
                assert await deliver(recorder) is Outcome.OK
            secure = level != "none"
            assert [under for under, _ in mx.messages] == [secure]
            hellos = [under for under, line in mx.lines if line.startswith(b"EHLO")]
            assert hellos == ([False, True] if secure else [False])
            assert mx.names == ([NAME] if secure else [])
            scheme = {"none": "smtp+notls", "may": "smtp"}.get(level, "smtp+tls")
            sid = "0000000000000001"
            assert (
                f"{sid} mta connecting address={scheme}://127.0.0.1:{mx.port} host={NAME}"
                in recorder.lines
            )
            ciphers = [line for line in recorder.lines if " mta tls ciphers=" in line]
            assert len(ciphers) == secure
            assert all(re.fullmatch(rf"{sid} mta tls ciphers=TLSv1\.3:\w+:\d+", c) for c in ciphers)
            checks = [line for line in recorder.lines if "cert-check" in line]
            word = "valid" if level == "verify" else "unverified"
            for line in checks:
                want = rf'{sid} mta cert-check result="{word}" fingerprint="SHA256:[0-9a-f]{{64}}"'
                assert re.fullmatch(want, line)
            assert len(checks) == secure

        run(main(), loop)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_implicit_tls_comes_before_the_greeting(self, loop: LoopFactory, ca_file: Path) -> None:
        async def main() -> None:
            async with TlsMx(implicit=True).running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file, tls="implicit"))
                assert await deliver(recorder) is Outcome.OK
            assert [under for under, _ in mx.messages] == [True]
            assert f"address=smtps://127.0.0.1:{mx.port} " in recorder.lines[0]

        run(main(), loop)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_a_large_message_survives_the_records(self, loop: LoopFactory, ca_file: Path) -> None:
        """Chunks, back-pressure and dot-stuffing are the same under TLS."""

        async def main() -> None:
            body = b"Subject: x\r\n\r\n" + b".0123456789\r\n" * 70_000
            async with TlsMx().running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file, tls="verify"))
                done = asyncio.Event()

                def react(stimulus: object) -> None:
                    match stimulus:
                        case ConnectionReady():
                            recorder.send(body=body)
                        case TransactionDone(session, _, _):
                            recorder.outbound.close(session)
                        case ConnectionClosed():
                            done.set()

                recorder.react = react
                recorder.open()
                await done.wait()
                await recorder.outbound.wait_idle()
            assert mx.messages[0][1] == body.replace(b"\r\n.", b"\r\n..") + b".\r\n"

        # The test server refuses what is over its reader's limit, so it gets a larger one.
        original = asyncio.start_server
        try:
            asyncio.start_server = lambda *a, **k: original(*a, **{**k, "limit": 1 << 21})  # type: ignore[assignment]
            run(main(), loop)
        finally:
            asyncio.start_server = original

    def test_the_end_is_tls_own(self, ca_file: Path) -> None:
        """After QUIT the host gets close_notify and EOF, not a reset."""

        async def main() -> None:
            async with TlsMx().running() as mx:
                assert await deliver(Recorder(mx.port, tls=tls_of(ca_file))) is Outcome.OK
            assert mx.clean_ends == 1

        run(main())


FAILURES: dict[str, dict[str, Any]] = {
    "refused": {"starttls": b"454 4.7.0 not now\r\n"},
    "refused-for-good": {"starttls": b"554 5.7.0 never\r\n"},
    "no-starttls": {"starttls": "none"},
    "hidden": {"starttls": "hidden"},
    "garbage": {"starttls": "garbage"},
    "close": {"starttls": "close"},
    "reset": {"starttls": "reset"},
    "hang": {"starttls": "hang"},
    "drips": {"starttls": "drips"},
    "expired": {"certificate": "expired"},
    "wrong-name": {"certificate": "wrong_name"},
    "stranger": {"certificate": "stranger"},
    "injects": {"starttls": "injects"},
}
BAD_CERTIFICATES = ("expired", "wrong-name", "stranger")


class TestFailures:
    """What goes wrong with TLS costs the host its connection, never anybody's mail or a descriptor."""

    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("level", ["may", "encrypt", "verify"])
    def test_each_failure_has_its_outcome_and_leaves_nothing(
        self, loop: LoopFactory, level: str, ca_file: Path, fds: Any
    ) -> None:
        async def main(failure: str) -> None:
            tls = tls_of(ca_file, tls=level)
            async with TlsMx(**FAILURES[failure]).running() as mx:
                recorder = Recorder(mx.port, tls=tls, timeouts=SHORT)
                outcome = await deliver(recorder)
            secure = [under for under, _ in mx.messages]
            if failure == "injects":
                assert outcome == TOO_MUCH_DATA
                assert mx.connections == 1, "what somebody injects does not buy a clear connection"
            elif failure in BAD_CERTIFICATES:
                if level == "verify":
                    assert str(outcome).startswith("454 4.7.5 Server certificate not trusted: ")
                else:
                    assert (outcome, secure) == (Outcome.OK, [True])
            elif level == "may":
                assert (outcome, secure) == (Outcome.OK, [False])
                again = failure not in ("refused", "refused-for-good", "no-starttls", "hidden")
                assert mx.connections == 1 + again
                downgrade = (
                    "smtp-out: Error on session 0000000000000001:"
                    " opportunistic TLS failed, downgrading to plain"
                )
                assert recorder.lines.count(downgrade) == again == tls.stats.downgraded
            else:
                text = str(outcome)
                if failure in ("no-starttls", "hidden"):
                    assert text == NO_STARTTLS
                elif failure.startswith("refused"):
                    assert text.startswith(f"{REFUSED_STARTTLS}: ")
                else:
                    assert text.startswith("454 4.7.5 Cannot start TLS: ")
                assert not mx.messages
                assert mx.connections == 1
            if not isinstance(outcome, Outcome):
                assert not mx.messages, "nothing goes out in clear that must not"
            # The next one is not burdened by it.
            async with TlsMx().running(mx.port) as mx:
                assert await deliver(recorder) is Outcome.OK
                assert [under for under, _ in mx.messages] == [True]

        for failure in FAILURES:
            run(main(failure), loop)

    @pytest.mark.parametrize("failure", ["garbage", "close", "hang", "expired", "wrong-name"])
    def test_implicit_tls_that_fails_is_temporary(self, failure: str, ca_file: Path) -> None:
        async def main() -> None:
            if failure in ("expired", "wrong-name"):
                kind = failure.replace("-", "_")
                async with TlsMx(implicit=True, certificate=kind).running() as mx:
                    recorder = Recorder(mx.port, tls=tls_of(ca_file, tls="implicit"))
                    reason = str(await deliver(recorder))
                    assert reason.startswith("454 4.7.5 Server certificate not trusted: ")
                return

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if failure == "garbage":
                    writer.write(b"220 mx.test ESMTP\r\n")
                if failure != "close":
                    await reader.read()
                    await reader.read()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                timeouts = Timeouts(banner=0.3)
                recorder = Recorder(port, tls=tls_of(ca_file, tls="implicit"), timeouts=timeouts)
                reason = str(await deliver(recorder))
            assert reason.startswith("454 4.7.5 Cannot start TLS: ")
            assert recorder.outbound.tls is not None
            assert recorder.outbound.tls.stats.downgraded == 0

        run(main())

    @pytest.mark.parametrize("level", ["may", "verify"])
    def test_the_server_can_stop_in_the_middle_of_a_handshake(
        self, level: str, ca_file: Path
    ) -> None:
        """Stopping is not a failure of TLS: nothing is tried again in clear."""

        async def main() -> None:
            async with TlsMx(starttls="hang").running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file, tls=level))
                recorder.open()
                await mx.asked.wait()
                recorder.outbound.abort_all()
                assert recorder.told == [ConnectionFailed(recorder.told[0].session, STOPPED)]  # type: ignore[attr-defined]
                await recorder.outbound.wait_idle()
            assert mx.connections == 1

        run(main())

    def test_a_fault_of_ours_is_local_and_not_a_reason_for_clear_text(self, ca_file: Path) -> None:
        async def main() -> None:
            effects = FaultyEffects(Plan(1, matches=lambda point: point.op == "tls"))
            async with TlsMx().running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file), effects=effects)
                assert await deliver(recorder) == LOCAL_FAULT
                assert not mx.messages
                assert await deliver(recorder) is Outcome.OK
            assert [under for under, _ in mx.messages] == [True]

        run(main())

    def test_an_answer_in_clear_is_none(self, ca_file: Path) -> None:
        """After the final dot nobody knows then; and what goes on in clear is not believed."""

        async def main() -> None:
            mx = TlsMx()
            mx.breaks = True
            async with mx.running():
                recorder = Recorder(mx.port, tls=tls_of(ca_file, tls="verify"))
                assert await deliver(recorder) is Outcome.TEMPFAIL
                done = next(each for each in recorder.told if isinstance(each, TransactionDone))
                status = done.results[0].status
                assert status.startswith("TLS connection is broken: ")
                assert status.endswith(" after the final dot")
                assert recorder.outbound.stats.ambiguous == 1
                assert mx.connections == 1

        run(main(), asyncio.new_event_loop)

    @given(st.lists(st.binary(max_size=600), max_size=5))
    def test_no_bytes_are_a_handshake_or_a_surprise(self, pieces: list[bytes]) -> None:
        pipe = TlsPipe(tls_of_nobody(), NAME)
        assert pipe.take().startswith(b"\x16\x03")
        reasons = []
        for piece in pieces:
            try:
                assert pipe.feed(piece) == b""
            except ssl.SSLError as error:
                reasons.append(tls_reason(error))
        assert all(reason.isprintable() for reason in reasons)
        assert not pipe.established

    @pytest.mark.parametrize("loop", LOOPS)
    def test_the_second_connection_can_fail_too(self, loop: LoopFactory, ca_file: Path) -> None:
        """Once each: the driver is told once, and nothing is left."""

        async def main() -> None:
            second = Plan(2, matches=lambda point: point.op == "connect")
            effects = FaultyEffects(second)
            async with TlsMx(starttls="close").running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file), effects=effects)
                assert await deliver(recorder) == LOCAL_FAULT
                stats = recorder.outbound.stats
                assert len(recorder.told) == 1
                assert (stats.opened, stats.failed, stats.ready) == (1, 1, 0)

        run(main(), loop)

    def test_the_server_can_stop_while_the_second_connection_is_made(self, ca_file: Path) -> None:
        async def main() -> None:
            effects = FaultyEffects()
            async with TlsMx(starttls="close").running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file), effects=effects)
                recorder.open()
                await mx.asked.wait()
                effects.hangs.add(("connect", "outbound"))
                again = asyncio.Event()
                recorder.outbound.log = lambda line: again.set() if "downgr" in line else None
                await again.wait()
                recorder.outbound.abort_all()
                assert [type(each) for each in recorder.told] == [ConnectionFailed]
                await recorder.outbound.wait_idle()
            assert mx.connections == 1

        run(main())

    def test_a_client_certificate_that_is_demanded_too_late_costs_tls_not_the_mail(
        self, ca_file: Path
    ) -> None:
        """With TLS 1.3 such a host fails after our side of the handshake is done."""

        async def main() -> None:
            context = authority().context()
            context.verify_mode = ssl.CERT_REQUIRED
            async with TlsMx(context=context).running() as mx:
                recorder = Recorder(mx.port, tls=tls_of(ca_file))
                assert await deliver(recorder) is Outcome.OK
            assert [under for under, _ in mx.messages] == [False]

        run(main())


class TestSessions:
    """Handshakes are continued where that is safe, and the memory for it has an end."""

    @pytest.mark.parametrize("loop", LOOPS)
    def test_the_second_connection_resumes(self, loop: LoopFactory, ca_file: Path) -> None:
        async def main() -> None:
            tls = tls_of(ca_file, tls="verify")
            async with TlsMx().running() as mx:
                recorder = Recorder(mx.port, tls=tls)
                for _ in range(2):
                    assert await deliver(recorder) is Outcome.OK
            assert mx.resumed == [False, True]
            assert (tls.stats.established, tls.stats.resumed, len(tls)) == (2, 1, 1)

        run(main(), loop)

    def test_at_most_tls_sessions_max_are_kept(self, ca_file: Path) -> None:
        async def main() -> None:
            config = build(
                Config,
                {"relay": {"ca_file": str(ca_file)}, "limits": {"mta": {"tls_sessions_max": 2}}},
                source="test",
            )
            tls = OutboundTls(config, Effects(), rules=config.relay_rules(), source="test")
            async with TlsMx().running() as mx:
                recorder = Recorder(mx.port, tls=tls)
                finished = asyncio.Event()

                def react(stimulus: object) -> None:
                    if isinstance(stimulus, ConnectionReady):
                        recorder.outbound.close(stimulus.session)
                    else:
                        finished.set()

                recorder.react = react
                for number in range(4):
                    finished.clear()
                    recorder.open(host=f"mx{number}.test")
                    await finished.wait()
                    assert len(tls) == min(number + 1, 2)
                await recorder.outbound.wait_idle()

        run(main())


class TestAuth:
    """Passwords go to the host they are for, under TLS, and nowhere else."""

    @staticmethod
    def file(tmp_path: Path, text: str, mode: int = 0o600) -> str:
        path = tmp_path / "credentials"
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "LOGIN PLAIN CRAM-MD5", "login plain"])
    def test_we_log_in_by_the_hosts_name(
        self, mechanism: str, ca_file: Path, tmp_path: Path
    ) -> None:
        async def main() -> None:
            file = self.file(tmp_path, f"# ours\n\n{NAME} us {SECRET}\n")
            tls = tls_of(ca_file, tls="verify", credentials=file)
            async with TlsMx(auth=mechanism, logins={"us": SECRET}).running() as mx:
                recorder = Recorder(mx.port, tls=tls)
                assert await deliver(recorder) is Outcome.OK
            assert all(under for under, line in mx.lines if line.startswith(b"AUTH"))
            assert SECRET not in "\n".join(recorder.lines)

        run(main())

    def test_a_name_of_its_own_for_the_smart_host(self, ca_file: Path, tmp_path: Path) -> None:
        async def main() -> None:
            file = self.file(tmp_path, f"Provider us {SECRET}\n")
            tls = tls_of(ca_file, credentials=file, auth="provider", smart_host=f"[{NAME}]")
            async with TlsMx(auth="PLAIN", logins={"us": SECRET}).running() as mx:
                assert await deliver(Recorder(mx.port, tls=tls)) is Outcome.OK
            assert sum(line.startswith(b"AUTH") for _, line in mx.lines) == 1

        run(main())

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"auth": "PLAIN"}, "454 4.7.0 Authentication failed; host said 535 5.7.8"),
            (
                {"auth": "PLAIN", "auth_answer": b"454 4.7.0 busy\r\n"},
                "454 4.7.0 Authentication failed; host said 454 4.7.0",
            ),
            (
                {"auth": "PLAIN", "auth_answer": b"535 correct horse? no\r\n"},
                "454 4.7.0 Authentication failed; host said 535",
            ),
            (
                {"auth": "PLAIN", "auth_answer": b"334 more?\r\n"},
                "454 4.7.0 Authentication failed; host said 334",
            ),
            ({"auth": "CRAM-MD5"}, "454 4.7.0 Host offers neither AUTH PLAIN nor LOGIN"),
            ({}, "454 4.7.0 Host offers neither AUTH PLAIN nor LOGIN"),
            (
                {"auth": "PLAIN", "starttls": "none"},
                "454 4.7.0 Authentication needs TLS, and host has none",
            ),
        ],
    )
    def test_what_goes_wrong_is_temporary_and_tells_no_secret(
        self, options: dict[str, Any], reason: str, ca_file: Path, tmp_path: Path
    ) -> None:
        async def main() -> None:
            tls = tls_of(ca_file, credentials=self.file(tmp_path, f"{NAME} us {SECRET}"))
            async with TlsMx(**options).running() as mx:
                recorder = Recorder(mx.port, tls=tls)
                assert await deliver(recorder) == reason
                assert not mx.messages
            assert not [line for under, line in mx.lines if not under and line.startswith(b"AUTH")]
            assert SECRET not in "\n".join(recorder.lines) + repr(recorder.told)

        run(main())

    def test_in_clear_only_if_the_operator_says_so(self, ca_file: Path, tmp_path: Path) -> None:
        async def main() -> None:
            file = self.file(tmp_path, f"{NAME} us {SECRET}")
            tls = tls_of(ca_file, tls="none", credentials=file, auth_without_tls=True)
            async with TlsMx(auth="LOGIN", logins={"us": SECRET}).running() as mx:
                assert await deliver(Recorder(mx.port, tls=tls)) is Outcome.OK

        run(main())

    def test_other_hosts_are_not_told(self, ca_file: Path, tmp_path: Path) -> None:
        async def main() -> None:
            tls = tls_of(ca_file, credentials=self.file(tmp_path, f"elsewhere.test us {SECRET}"))
            async with TlsMx(auth="PLAIN").running() as mx:
                assert await deliver(Recorder(mx.port, tls=tls)) is Outcome.OK
            assert not [line for _, line in mx.lines if line.startswith(b"AUTH")]

        run(main())

    @pytest.mark.parametrize(
        ("text", "mode", "problem"),
        [
            (f"a b {SECRET}", 0o604, "is open to everybody: chmod 600"),
            (f"a b {SECRET}", 0o660, "can be written by its group: chmod 600"),
            (f"# fine\na {SECRET.split()[0]}", 0o600, "line 2: must be: host user password"),
            (f"a b c\nA b {SECRET}", 0o600, "line 2: the host was given before"),
            ("a b c\0d", 0o600, "line 1: a word holds NUL or more than 255 bytes"),
            ("x" * (1024 * 1024 + 1), 0o600, "is longer than 1048576 bytes"),
        ],
    )
    def test_a_file_that_can_not_be_used_is_one_line_without_secrets(
        self, text: str, mode: int, problem: str, ca_file: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            tls_of(ca_file, credentials=self.file(tmp_path, text, mode))
        assert str(caught.value).startswith("test: relay.credentials = ")
        assert str(caught.value).endswith(f": {problem}")
        assert SECRET not in str(caught.value)

    def test_a_file_that_is_not_there_or_not_text(self, ca_file: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such file or directory"):
            tls_of(ca_file, credentials=str(tmp_path / "none"))
        path = tmp_path / "latin"
        path.write_bytes(b"a b \xff")
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="is not UTF-8"):
            tls_of(ca_file, credentials=str(path))


class TestRules:
    """``[[relays]]`` says for some destinations what ``[relay]`` says for all."""

    def test_level_and_login_of_a_destination(self, ca_file: Path, tmp_path: Path) -> None:
        async def main() -> None:
            file = TestAuth.file(tmp_path, f"provider us {SECRET}\n")
            rules = [
                {
                    "domains": [".partner.test"],
                    "smart_host": [f"[{NAME}]"],
                    "tls": "verify",
                    "auth": "provider",
                },
                {"domains": ["old.test"], "tls": "none"},
            ]
            keys = {"relay": {"ca_file": str(ca_file), "credentials": file}, "relays": rules}
            config = build(Config, keys, source="test")
            tls = OutboundTls(config, Effects(), source="test")
            key_of = config.relay_rules().key_of
            found = {}
            for domain in ("a.partner.test", "old.test", "other.test"):
                plan = await tls.plan(
                    OpenConnection(SessionId(1), key_of(domain), "", "127.0.0.1", NAME)
                )
                found[domain] = (plan.scheme, plan.verify, plan.hello.login)
            assert found == {
                "a.partner.test": ("smtp+tls", True, Login("us", SECRET)),
                "old.test": ("smtp+notls", False, None),
                "other.test": ("smtp", False, None),
            }
            assert SECRET not in repr(found)

        run(main())

    def test_a_login_that_is_not_there(self, ca_file: Path) -> None:
        keys = {
            "relay": {"ca_file": str(ca_file)},
            "relays": [{"domains": ["*"], "smart_host": ["h.test"], "auth": "x"}],
        }
        with pytest.raises(ConfigError, match=r"relays\.0\.auth.*is not in relay\.credentials"):
            OutboundTls(build(Config, keys, source="test"), Effects(), source="test")


class TestUpdate:
    """SIGHUP reads files again; a mistake in one changes nothing."""

    def test_new_passwords_and_authorities(self, tmp_path: Path) -> None:
        async def main() -> None:
            ca, lines = tmp_path / "ca.pem", []
            ca.write_bytes(authority().ca.cert_pem.bytes())
            file = TestAuth.file(tmp_path, f"{NAME} us old-password")
            keys = {"ca_file": str(ca), "credentials": file, "tls": "verify"}
            config = build(Config, {"relay": keys}, source="test")
            tls = OutboundTls(config, Effects(), source="test", log=lines.append)
            async with TlsMx(auth="PLAIN", logins={"us": SECRET}).running() as mx:
                recorder = Recorder(mx.port, tls=tls)
                assert "454 4.7.0 Authentication failed" in str(await deliver(recorder))
                TestAuth.file(tmp_path, f"{NAME} us {SECRET}")
                assert tls.update() == "passwords for other hosts: 1"
                assert await deliver(recorder) is Outcome.OK
                # One mistake, and both files stay as they were.
                TestAuth.file(tmp_path, f"{NAME} us")
                ca.write_bytes(trustme.CA().cert_pem.bytes())
                with pytest.raises(ValueError, match="line 1: must be: host user password"):
                    tls.update()
                assert lines[-1].endswith("; what was read before is kept")
                assert await deliver(recorder) is Outcome.OK
                TestAuth.file(tmp_path, f"{NAME} us {SECRET}")
                tls.update()
                assert "certificate not trusted" in str(await deliver(recorder))
            assert SECRET not in "\n".join(lines)

        run(main())


class TestConfiguration:
    """What the operator gets wrong is one line."""

    @pytest.mark.parametrize(
        ("relay", "problem"),
        [
            ({"auth": "x"}, 'relay.auth = "x": needs relay.credentials'),
            ({"auth": "x", "credentials": "/c"}, 'relay.auth = "x": needs relay.smart_host'),
            ({"tls": "maybe"}, 'relay.tls = "maybe": must be one of'),
        ],
    )
    def test_contradictions(self, relay: dict[str, str], problem: str, ca_file: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            tls_of(ca_file, **relay)
        assert problem in str(caught.value)

    def test_a_name_that_the_file_does_not_have(self, ca_file: Path, tmp_path: Path) -> None:
        file = TestAuth.file(tmp_path, "a b c")
        with pytest.raises(ConfigError, match=r"is not in relay\.credentials"):
            tls_of(ca_file, credentials=file, auth="other", smart_host="h.test")

    @pytest.mark.parametrize(
        ("keys", "wanted"),
        [
            ({}, False),
            ({"relay": {"tls": "dane"}}, False),
            ({"relay": {"tls": "verify"}}, True),
            ({"relay": {"mta_sts": True}}, True),
            ({"relays": [{"domains": ["*"], "tls": "implicit"}]}, True),
        ],
    )
    def test_the_systems_authorities_are_read_if_somebody_is_verified(
        self, keys: dict[str, Any], wanted: bool
    ) -> None:
        """They take memory and time, which a test-bed's numbers would show."""
        tls = OutboundTls(build(Config, keys, source="test"), Effects(), source="test")
        system = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        system.load_default_certs()
        expected = len(system.get_ca_certs()) if wanted else 0
        assert len(tls._verifying.get_ca_certs()) == expected

    @pytest.mark.parametrize("content", [None, b"", b"no PEM", b"\xff\xfe"])
    def test_authorities_that_are_none(self, content: bytes | None, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        if content is not None:
            path.write_bytes(content)
        problem = "no such file" if content is None else "holds no certificates"
        with pytest.raises(ConfigError, match=problem):
            tls_of(path)
