"""DANE and MTA-STS from the question to the delivery: real name server, real HTTPS, real mail exchanger."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mta.config import Config
from mta.core.ids import SessionId
from mta.core.instructions import OpenConnection
from mta.core.reply import Outcome
from mta.core.settings import build
from mta.mtasts import POLICY_BYTES_MAX
from mta.outtls import OutboundTls
from mta.smtphello import NO_STARTTLS
from mta.stspolicies import AGAIN_S
from mta.tlsplan import NOT_ALLOWED, TESTED
from tests.mta.test_outtls import SHORT, deliver
from tests.support.nameserver import Bench, bench
from tests.support.scriptedmx import LOOPS, LoopFactory, Recorder, run
from tests.support.tlsmx import NAME, TlsMx, authority

DOMAIN = "example.org"
ZONE: dict[tuple[str, str], list[str] | str] = {
    (DOMAIN, "MX"): [f"10 {NAME}."],
    (NAME, "A"): ["127.0.0.1"],
}


@pytest.fixture(autouse=True, scope="module")
def _warm_up() -> None:
    """Let libraries open what they keep, before descriptors are counted."""
    authority()

    async def main() -> None:
        async with bench(dict(ZONE)) as b:
            await b.resolver.resolve(DOMAIN)

    uvloop.run(main())


@pytest.fixture(scope="module")
def ca_file() -> Iterator[Path]:
    with authority().file() as path:
        yield path


def ee_record(kind: str = "good", usage: int = 3, mtype: int = 1) -> str:
    """Return a TLSA record that means one of the test certificates, or the CA."""
    pem = getattr(authority(), kind).cert_chain_pems[0] if usage == 3 else authority().ca.cert_pem
    der = ssl.PEM_cert_to_DER_cert(pem.bytes().decode())
    data = {0: der, 1: hashlib.sha256(der).digest(), 2: hashlib.sha512(der).digest()}[mtype]
    return f"{usage} 0 {mtype} {data.hex()}"


def tls_of(
    b: Bench, port: int, ca: Path, lines: list[str] | None = None, **relay: Any
) -> OutboundTls:
    keys = {"ca_file": str(ca), "port": port, **relay}
    config = build(
        Config, {"relay": keys, "dns": {"lifetime_s": 2.0, "timeout_s": 0.5}}, source="t"
    )
    log = (lines if lines is not None else []).append
    return OutboundTls(config, b.effects, source="t", resolver=b.resolver, log=log)


GOOD, BAD = "good", "stranger"
Case = tuple[dict[str, Any], str, str | None, set[str] | None, Outcome | str, bool]

DANE: dict[str, Case] = {
    # name: (server, TLSA record, rcode instead, unsigned names, outcome, under TLS)
    "matches": ({}, ee_record(), None, set(), Outcome.OK, True),
    "sha-512": ({}, ee_record(mtype=2), None, set(), Outcome.OK, True),
    "anchor": ({}, ee_record(usage=2, mtype=0), None, set(), Outcome.OK, True),
    "self-signed": ({"certificate": BAD}, ee_record(BAD), None, set(), Outcome.OK, True),
    "expired-ee": ({"certificate": "expired"}, ee_record("expired"), None, set(), Outcome.OK, True),
    "mismatch": (
        {"certificate": BAD}, ee_record(), None, set(),
        "454 4.7.5 Server certificate not trusted: certificate does not match TLSA records", False,
    ),
    "anchor-name": (
        {"certificate": "wrong_name"}, ee_record(usage=2, mtype=0), None, set(),
        "454 4.7.5 Server certificate not trusted: certificate is for another name", False,
    ),
    "no-starttls": ({"starttls": "none"}, ee_record(), None, set(), NO_STARTTLS, False),
    "broken": (
        {"starttls": "close"}, ee_record(), None, set(),
        "454 4.7.5 Cannot start TLS: ", False,
    ),
    "unusable": ({"certificate": BAD}, "0 0 1 " + "ab" * 32, None, set(), Outcome.OK, True),
    "unusable-no-starttls": (
        {"starttls": "none"}, "1 0 1 " + "ab" * 32, None, set(), NO_STARTTLS, False,
    ),
    "servfail": (
        {}, "", "SERVFAIL", set(),
        "454 4.7.5 TLSA lookup error for mx.test:PORT: Name server said SERVFAIL", False,
    ),
    "none": ({"starttls": "none"}, "", None, set(), Outcome.OK, False),
    "unsigned-tlsa": ({"certificate": BAD}, ee_record(), None, {"TLSA"}, Outcome.OK, True),
    "unsigned-mx": ({"certificate": BAD}, ee_record(), None, {DOMAIN}, Outcome.OK, True),
    "unsigned-host": ({"certificate": BAD}, ee_record(), None, {NAME}, Outcome.OK, True),
    "unsigned-host-servfail": ({}, "", "SERVFAIL", {NAME}, Outcome.OK, True),
    "nothing-signed": ({"starttls": "none"}, ee_record(), None, None, Outcome.OK, False),
}  # fmt: skip


class TestDane:
    @pytest.mark.parametrize("case", DANE)
    def test_each_case_has_its_outcome(self, case: str, ca_file: Path) -> None:
        server, record, rcode, unsigned, outcome, secure = DANE[case]

        async def main() -> None:
            async with bench(dict(ZONE)) as b, TlsMx(**server).running() as mx:
                name = f"_{mx.port}._tcp.{NAME}"
                if record or rcode:
                    b.server.zone[name, "TLSA"] = rcode or [record]
                b.server.unsigned = (
                    None if unsigned is None else {name if n == "TLSA" else n for n in unsigned}
                )
                recorder = Recorder(mx.port, tls=tls_of(b, mx.port, ca_file, tls="dane"))
                recorder.outbound.timeouts = SHORT
                found = await deliver(recorder)
                asked = [each for each in b.server.asked if "TLSA" in each]
            if isinstance(outcome, str):
                assert str(found).startswith(outcome.replace("PORT", str(mx.port)))
                assert not mx.messages
            else:
                assert found is outcome
                assert [under for under, _ in mx.messages] == [secure]
            if case.startswith(("unsigned-mx", "unsigned-host", "nothing")):
                assert asked == [], "who can't be secure is not asked: RFC 7672 2.2.2"
            checks = [line for line in recorder.lines if "cert-check" in line]
            if case in ("matches", "sha-512", "anchor", "self-signed", "expired-ee"):
                assert 'result="valid"' in checks[0]
                assert any(" tls-policy=dane" in line for line in recorder.lines)
            elif checks:
                assert 'result="unverified"' in checks[0]

        run(main())

    def test_answers_are_kept_and_used_for_each_connection(self, ca_file: Path) -> None:
        async def main() -> None:
            async with bench(dict(ZONE), ttl_s=600) as b, TlsMx().running() as mx:
                name = f"_{mx.port}._tcp.{NAME}"
                b.server.zone[name, "TLSA"] = [ee_record()]
                b.server.unsigned = set()
                tls = tls_of(b, mx.port, ca_file, tls="dane")
                recorder = Recorder(mx.port, tls=tls)
                for _ in range(2):
                    assert await deliver(recorder) is Outcome.OK
                assert b.server.asked.count(f"{name} TLSA") == 1
                assert tls.policy_stats()["mta.dane.cache.size"] == 1
                # The key was changed, and the DNS too: the next one sees it when the answer is too old.
                b.server.zone[name, "TLSA"] = [ee_record(BAD)]
                assert await deliver(recorder) is Outcome.OK
                b.effects.time += 601
                assert str(await deliver(recorder)).startswith("454 4.7.5 ")
                assert tls.stats.resumed == 0, "certificates are looked at each time"

        run(main())

    def test_a_name_server_elsewhere_is_not_believed(self, ca_file: Path) -> None:
        """Whoever is between us and it could set the bit."""

        async def main() -> None:
            async with bench(dict(ZONE)) as b:
                b.server.unsigned = set()
                assert await b.resolver.is_secure(DOMAIN, NAME)
                assert not await b.resolver.is_secure(DOMAIN, "other.test")
                assert not await b.resolver.is_secure("[127.0.0.1]", "[127.0.0.1]")
                servers = b.resolver.servers
                assert servers.trusted
                servers._configured = [("192.0.2.1", 53)]
                assert not servers.trusted
                servers._config.trust_ad = True
                assert servers.trusted

        run(main())

    def test_the_way_to_a_smart_host_is_the_operators_word(self, ca_file: Path) -> None:
        """``[host]`` is asked for addresses only, so an unsigned MX record does not matter."""

        async def main() -> None:
            async with bench(dict(ZONE)) as b, TlsMx(certificate=BAD).running() as mx:
                b.server.unsigned = {DOMAIN}
                b.server.zone[f"_{mx.port}._tcp.{NAME}", "TLSA"] = [ee_record()]
                for hosts, refused in [([DOMAIN], False), ([f"[{NAME}]"], True), (None, False)]:
                    rule = {"domains": ["*"], "port": mx.port, "tls": "dane"}
                    if hosts is not None:
                        rule["smart_host"] = ["[other.test]", *hosts]
                    keys = {"relay": {"ca_file": str(ca_file)}, "relays": [rule]}
                    config = build(Config, keys, source="t")
                    tls = OutboundTls(config, b.effects, source="t", resolver=b.resolver)
                    plan = await tls.plan(
                        OpenConnection(
                            SessionId(1),
                            config.relay_rules().key_of(DOMAIN),
                            "",
                            "127.0.0.1",
                            NAME,
                        )
                    )
                    assert bool(plan.tlsa) == refused, hosts

        run(main())

    def test_a_level_that_can_not_work_is_said_at_the_start(self, ca_file: Path) -> None:
        async def main() -> None:
            async with bench(dict(ZONE)) as b:
                lines: list[str] = []
                tls_of(b, 25, ca_file, lines, tls="dane")
                assert not lines
                b.resolver.servers._configured = [("192.0.2.1", 53)]
                tls_of(b, 25, ca_file, lines, tls="dane")
                assert "dns.trust_ad" in lines[0]

        run(main())

    def test_answers_kept_are_bounded(self, ca_file: Path) -> None:
        async def main() -> None:
            async with bench(dict(ZONE)) as b:
                tls = tls_of(b, 25, ca_file, tls="dane")
                lookups = tls._tlsa
                assert lookups is not None
                lookups._config.cache_max = 3
                for number in range(5):
                    assert not (await lookups.look_up(f"mx{number}.test", 25)).records
                assert len(lookups) == 3
                lookups.flush()
                assert len(lookups) == 0

        run(main())


def policy_text(mode: str = "enforce", mx: str = NAME, max_age: int = 86400) -> bytes:
    return f"version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {max_age}\r\n".encode()


class PolicyHost:
    """An HTTPS server with one file."""

    def __init__(self, **answer: Any) -> None:
        self.status = "200 OK"
        self.headers = "Content-Type: text/plain\r\n"
        self.body = policy_text()
        self.raw = b""
        """Said instead of all that."""
        self.how = ""
        """``hang``, ``close``, ``cut``: what happens in the middle."""
        self.certificate = f"mta-sts.{DOMAIN}"
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.port = 0
        self.__dict__.update(answer)
        self._stop = asyncio.Event()
        self._tasks: set[Any] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["PolicyHost"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().ca.issue_cert(self.certificate).configure_cert(context)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._stop.set()
            server.close()
            await asyncio.gather(*self._tasks)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.asked.set()
            if self.how == "hang":
                await self._stop.wait()
            if self.how in ("hang", "close"):
                return
            length = f"Content-Length: {len(self.body)}\r\n"
            head = f"HTTP/1.1 {self.status}\r\n{self.headers}{length}\r\n".encode()
            body = self.body[:-5] if self.how == "cut" else self.body
            writer.write(self.raw or head + body)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def sts_bench(host: PolicyHost, ca: Path, **server: Any) -> AsyncIterator[Any]:
    """Give (bench, mail exchanger, recorder, log lines) with a policy announced for the domain."""
    zone = dict(ZONE)
    zone[f"_mta-sts.{DOMAIN}", "TXT"] = ['"v=STSv1; id=1;"']
    zone[f"mta-sts.{DOMAIN}", "A"] = ["127.0.0.1"]
    lines: list[str] = []
    async with bench(zone) as b, host.running(), TlsMx(**server).running() as mx:
        tls = tls_of(b, mx.port, ca, lines, mta_sts=True, mta_sts_port=host.port)
        recorder = Recorder(mx.port, tls=tls, timeouts=SHORT)
        yield b, mx, recorder, lines


STS: dict[str, tuple[dict[str, Any], bytes, Outcome | str, bool]] = {
    # name: (server, policy, outcome, under TLS)
    "enforce": ({}, policy_text(), Outcome.OK, True),
    "wildcard": ({}, policy_text(mx="*.test"), Outcome.OK, True),
    "enforce-stranger": (
        {"certificate": BAD}, policy_text(), "454 4.7.5 Server certificate not trusted: ", False,
    ),
    "enforce-expired": (
        {"certificate": "expired"}, policy_text(), "454 4.7.5 Server certificate not trusted: ", False,
    ),
    "enforce-clear": ({"starttls": "none"}, policy_text(), NO_STARTTLS, False),
    "enforce-other-mx": ({}, policy_text(mx="mx.other.test"), NOT_ALLOWED, False),
    "testing": ({}, policy_text("testing"), Outcome.OK, True),
    "testing-stranger": ({"certificate": BAD}, policy_text("testing"), Outcome.OK, True),
    "testing-broken": ({"starttls": "close"}, policy_text("testing"), Outcome.OK, False),
    "testing-clear": ({"starttls": "none"}, policy_text("testing"), Outcome.OK, False),
    "testing-other-mx": ({}, policy_text("testing", "mx.other.test"), Outcome.OK, True),
    "none": ({"starttls": "none"}, policy_text("none"), Outcome.OK, False),
}  # fmt: skip


class TestSts:
    @pytest.mark.parametrize("case", STS)
    def test_each_policy_has_its_outcome(self, case: str, ca_file: Path) -> None:
        server, policy, outcome, secure = STS[case]

        async def main() -> None:
            host = PolicyHost(body=policy)
            async with sts_bench(host, ca_file, **server) as (_, mx, recorder, lines):
                found = await deliver(recorder)
                if isinstance(outcome, str):
                    assert str(found).startswith(outcome)
                    assert not mx.messages
                else:
                    assert found is outcome
                    assert [under for under, _ in mx.messages] == [secure]
                lines += recorder.lines
                told = any(TESTED in line for line in lines)
                bad = ("testing-stranger", "testing-broken", "testing-clear", "testing-other-mx")
                assert told == (case in bad), lines
                request = host.requests[0].split(b"\r\n")
                assert request[0] == b"GET /.well-known/mta-sts.txt HTTP/1.1"
                assert f"Host: mta-sts.{DOMAIN}:{host.port}".encode() in request

        run(main())

    @pytest.mark.parametrize("loop", LOOPS)
    def test_a_policy_is_fetched_once_and_kept(self, loop: LoopFactory, ca_file: Path) -> None:
        async def main() -> None:
            async with sts_bench(host := PolicyHost(), ca_file) as (b, _, recorder, _lines):
                policies = recorder.outbound.tls._sts
                found = await asyncio.gather(*[policies.policy(DOMAIN) for _ in range(10)])
                assert len(set(found)) == 1
                assert len(host.requests) == 1
                # The DNS is asked again when its answer is too old; the same id means the same policy.
                b.effects.time += 601
                assert await policies.policy(DOMAIN) == found[0]
                assert b.server.asked.count(f"_mta-sts.{DOMAIN} TXT") == 2
                assert len(host.requests) == 1
                # Another id, another policy.
                b.server.zone[f"_mta-sts.{DOMAIN}", "TXT"] = ['"v=STSv1; id=2;"']
                host.body = policy_text("none")
                b.effects.time += 601
                assert await policies.policy(DOMAIN) is None
                assert len(host.requests) == 2

        run(main(), loop)

    def test_who_breaks_dns_and_https_does_not_break_a_policy(self, ca_file: Path) -> None:
        """It holds to the end of its max_age."""

        async def main() -> None:
            async with sts_bench(host := PolicyHost(), ca_file) as (b, _, recorder, lines):
                policies = recorder.outbound.tls._sts
                found = await policies.policy(DOMAIN)
                assert found is not None
                b.server.zone[f"_mta-sts.{DOMAIN}", "TXT"] = ['"v=STSv1; id=2;"']
                host.body = b"nonsense"
                b.effects.time += 601
                assert await policies.policy(DOMAIN) == found
                assert lines[-1].endswith("has a line that is not key: value")
                assert policies.stats.failed == 1
                # Not asked again at once.
                assert await policies.policy(DOMAIN) == found
                assert len(host.requests) == 2
                b.effects.time += AGAIN_S
                b.server.zone[f"_mta-sts.{DOMAIN}", "TXT"] = "SERVFAIL"
                assert await policies.policy(DOMAIN) == found
                del b.server.zone[f"_mta-sts.{DOMAIN}", "TXT"]
                b.effects.time += 601
                assert await policies.policy(DOMAIN) == found
                b.effects.time += 86400
                assert await policies.policy(DOMAIN) is None

        run(main())

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            ({"status": "404 Not Found"}, "status is 404"),
            ({"status": "301 Moved", "headers": "Location: https://x.test/\r\n"}, "status is 301"),
            ({"headers": "Content-Type: text/html\r\n"}, "content type is not text/plain"),
            ({"headers": ""}, "content type is not text/plain"),
            ({"body": b"x" * (POLICY_BYTES_MAX + 1)}, "policy is longer than 65536 bytes"),
            ({"body": b""}, "is not version STSv1"),
            ({"raw": b"220 mx.test ESMTP\r\n"}, "answer is not HTTP"),
            ({"raw": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000}, "answer is not HTTP"),
            ({"how": "close"}, "answer is not HTTP"),
            ({"how": "cut"}, "answer is not HTTP"),
            ({"certificate": "other.test"}, "certificate is not trusted: Hostname mismatch"),
        ],
    )
    def test_a_policy_that_can_not_be_had_is_none(
        self, answer: dict[str, Any], why: str, ca_file: Path
    ) -> None:
        """Nobody is kept from sending mail by it, as without a policy."""

        async def main() -> None:
            host = PolicyHost(**answer)
            async with sts_bench(host, ca_file, starttls="none") as (_, mx, recorder, lines):
                assert await deliver(recorder) is Outcome.OK
                assert [under for under, _ in mx.messages] == [False]
                assert f"mta-sts: no policy fetched for {DOMAIN}: {why}" in lines[-1]
                assert recorder.outbound.tls.policy_stats()["mta.sts.failed"] == 1

        run(main())

    def test_a_policy_host_that_hangs(
        self, ca_file: Path, monkeypatch: pytest.MonkeyPatch, fds: Any
    ) -> None:
        async def main() -> None:
            monkeypatch.setattr("mta.stspolicies.FETCH_S", 0.3)
            async with sts_bench(PolicyHost(how="hang"), ca_file) as (_, _mx, recorder, lines):
                assert await deliver(recorder) is Outcome.OK
                assert lines[-1] == f"mta-sts: no policy fetched for {DOMAIN}: time-out"

        run(main())

    def test_who_waits_for_a_policy_can_be_stopped(self, ca_file: Path, fds: Any) -> None:
        """And who comes next asks anew."""

        async def main() -> None:
            host = PolicyHost(how="hang")
            async with sts_bench(host, ca_file) as (_, mx, recorder, _lines):
                recorder.open()
                await host.asked.wait()
                recorder.outbound.abort_all()
                assert len(recorder.told) == 1
                await recorder.outbound.wait_idle()
                host.how = ""
                assert await deliver(recorder) is Outcome.OK
                assert len(host.requests) == 2
                assert [under for under, _ in mx.messages] == [True]

        run(main())

    def test_policy_hosts_that_can_not_be_reached(self, ca_file: Path) -> None:
        async def main() -> None:
            async with sts_bench(host := PolicyHost(), ca_file) as (b, _, recorder, lines):
                policies = recorder.outbound.tls._sts
                name = f"mta-sts.{DOMAIN}"
                for addresses, why in [
                    (["192.0.2.1"], "host can't be reached"),  # relay.allow is loopback
                    (["127.0.0.9"], "host can't be reached"),
                    ([], "policy host has no address"),
                ]:
                    b.server.zone[name, "A"] = addresses
                    assert await policies.policy(DOMAIN) is None
                    assert lines[-1] == f"mta-sts: no policy fetched for {DOMAIN}: {why}"
                    b.effects.time += AGAIN_S
                b.server.zone[name, "A"] = ["127.0.0.9", "127.0.0.1"]
                assert await policies.policy(DOMAIN) is not None
                assert len(host.requests) == 1

        run(main())

    def test_domains_known_are_bounded(self, ca_file: Path) -> None:
        async def main() -> None:
            async with sts_bench(PolicyHost(), ca_file) as (_, _mx, recorder, _lines):
                policies = recorder.outbound.tls._sts
                policies._limits.sts_policies_max = 3
                for number in range(5):
                    assert await policies.policy(f"d{number}.test") is None
                assert len(policies) == 3
                assert recorder.outbound.tls.policy_stats()["mta.sts.cache.size"] == 3

        run(main())

    def test_dane_goes_before(self, ca_file: Path) -> None:
        """A policy does not override records that do not match, nor is it asked for (RFC 8461 2)."""

        async def main() -> None:
            host = PolicyHost()
            async with sts_bench(host, ca_file) as (b, mx, recorder, _lines):
                b.server.zone[f"_{mx.port}._tcp.{NAME}", "TLSA"] = [ee_record(BAD)]
                b.server.unsigned = set()
                tls = tls_of(b, mx.port, ca_file, tls="dane", mta_sts=True, mta_sts_port=host.port)
                recorder.outbound.tls = tls
                assert str(await deliver(recorder)).startswith("454 4.7.5 ")
                assert not host.requests
                del b.server.zone[f"_{mx.port}._tcp.{NAME}", "TLSA"]
                b.effects.time += 601
                assert await deliver(recorder) is Outcome.OK
                assert len(host.requests) == 1

        run(main())
