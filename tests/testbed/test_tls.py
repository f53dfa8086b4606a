"""Scripted hosts speak TLS, well or badly as they are told, and the zone knows their keys."""

import asyncio
import contextlib
import datetime
import random
import smtplib
import ssl
from collections.abc import AsyncIterator

import dns.message
import dns.rdatatype
import pytest
from cryptography import x509

from mta.core.settings import ConfigError, build
from sim.remote import build_host
from sim.scenario import Scenario
from testbed.world.clock import WorldClock
from testbed.world.dns import DnsServer
from testbed.world.sink import Sink
from testbed.world.tls import Authority, tls_modes, tlsa_records

HOST, NAME = "127.0.10.1", "mx0.a.test"
NOW = datetime.datetime.now(datetime.UTC).timestamp()


@contextlib.asynccontextmanager
async def a_sink(mode: str) -> AsyncIterator[Sink]:
    host = build_host([], rng=random.Random(1))
    async with Sink(
        {HOST: host},
        WorldClock(),
        names={HOST: NAME},
        tls={NAME: mode},
        authority=Authority(1, NOW),
    ) as sink:
        yield sink


def trusting() -> ssl.SSLContext:
    """Return a context that knows the authority, made again from the seed."""
    context = ssl.create_default_context(cadata=Authority(1, NOW).pem().decode())
    context.check_hostname = True
    return context


def send(sink: Sink, *, context: ssl.SSLContext | None, host: str = NAME) -> None:
    with smtplib.SMTP(HOST, sink.port, local_hostname="client.test") as smtp:
        smtp._host = host  # type: ignore[attr-defined]  # the name to be verified
        if context is not None:
            smtp.starttls(context=context)
        smtp.sendmail("a@b.test", ["c@a.test"], b"Subject: x\r\n\r\n" + b"x" * 100_000)


@pytest.mark.parametrize("mode", ["offered", "required"])
async def test_mail_arrives_under_tls_with_a_good_certificate(mode: str) -> None:
    async with a_sink(mode) as sink:
        await asyncio.to_thread(send, sink, context=trusting())
        await asyncio.to_thread(send, sink, context=trusting(), host=HOST)
        assert (sink.tally.messages, sink.tally.tls, sink.tally.tls_failed) == (2, 2, 0)


async def test_offered_is_not_required() -> None:
    async with a_sink("offered") as sink:
        await asyncio.to_thread(send, sink, context=None)
        assert (sink.tally.messages, sink.tally.tls) == (1, 0)


async def test_required_takes_nothing_in_clear() -> None:
    async with a_sink("required") as sink:
        with pytest.raises(smtplib.SMTPSenderRefused) as caught:
            await asyncio.to_thread(send, sink, context=None)
        assert caught.value.smtp_code == 530
        assert sink.tally.messages == 0


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("expired", "certificate has expired"),
        ("wrong-name", "Hostname mismatch"),
        ("self-signed", "self-signed certificate"),
    ],
)
async def test_bad_certificates_are_bad_for_those_who_look(mode: str, why: str) -> None:
    async with a_sink(mode) as sink:
        with pytest.raises(ssl.SSLCertVerificationError, match=why):
            await asyncio.to_thread(send, sink, context=trusting())
        # Whoever does not look delivers.
        careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        careless.check_hostname = False
        careless.verify_mode = ssl.CERT_NONE
        await asyncio.to_thread(send, sink, context=careless)
        assert sink.tally.messages == 1
        assert sink.tally.tls_failed == 1


async def test_broken_fails_in_the_handshake_and_delivers_in_clear() -> None:
    async with a_sink("broken") as sink:
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(send, sink, context=trusting())
        await asyncio.to_thread(send, sink, context=None)
        assert (sink.tally.messages, sink.tally.tls_failed) == (1, 1)


async def test_what_was_sent_in_clear_behind_starttls_is_forgotten() -> None:
    """CVE-2011-0411: the command must not be obeyed under TLS."""
    async with a_sink("offered") as sink:
        reader, writer = await asyncio.open_connection(HOST, sink.port)
        await reader.readline()
        writer.write(b"EHLO x.test\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
        writer.write(b"STARTTLS\r\nMAIL FROM:<evil@x.test>\r\n")
        assert (await reader.readline()).startswith(b"220 ")
        await writer.start_tls(trusting(), server_hostname=NAME)
        writer.write(b"STARTTLS\r\nNOOP\r\nSTARTTLS x\r\nQUIT\r\n")
        codes = [(await reader.readline())[:3] for _ in range(4)]
        assert codes == [b"503", b"250", b"503", b"221"]
        assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_nonsense_instead_of_a_handshake_ends_the_connection() -> None:
    async with a_sink("offered") as sink:
        reader, writer = await asyncio.open_connection(HOST, sink.port)
        writer.write(b"EHLO x.test\r\n")
        await asyncio.sleep(0)
        writer.write(b"STARTTLS x\r\nSTARTTLS\r\n")
        said = b""
        while b"220 2.0.0" not in said:
            said += await reader.readline()
        assert b"501 5.5.4" in said
        writer.write(b"MAIL FROM:<a@b.test>\r\n")
        await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        assert sink.tally.tls_failed == 1


def scenario(**destination: object) -> Scenario:
    data = {"name": "s", "destinations": [{"name": "a", "domain": "a.test", **destination}]}
    return build(Scenario, data, source="t")


def test_hosts_are_as_their_destination_says() -> None:
    assert tls_modes(scenario()) == {}
    assert tls_modes(scenario(tls="broken", hosts=2)) == {NAME: "broken", "mx1.a.test": "broken"}
    with pytest.raises(ConfigError, match="needs tls"):
        scenario(dane="valid")
    with pytest.raises(ConfigError, match="must be one of"):
        scenario(tls="maybe")


def test_records_mean_the_keys_or_others() -> None:
    authority = Authority(1, NOW)
    good = tlsa_records(scenario(tls="offered", dane="valid"), authority, 25)
    assert good == {f"_25._tcp.{NAME}": authority.tlsa(NAME)}
    bad = tlsa_records(scenario(tls="offered", dane="wrong"), authority, 25)
    assert bad.keys() == good.keys()
    assert bad != good
    assert not tlsa_records(scenario(tls="offered"), authority, 25)


def test_one_seed_has_one_authority() -> None:
    """The processes of a world make the same keys without telling each other."""
    one, two, other = (
        x509.load_pem_x509_certificate(Authority(seed, NOW).pem()) for seed in (1, 1, 2)
    )
    assert one.public_key() == two.public_key()
    assert one.public_key() != other.public_key()


@pytest.mark.parametrize(("signed", "asks", "says"), [(1, 1, 1), (1, 0, 0), (0, 1, 0)])
def test_answers_are_validated_for_those_who_ask(signed: int, asks: int, says: int) -> None:
    name = f"_25._tcp.{NAME}"
    record = Authority(1, NOW).tlsa(NAME)
    server = DnsServer(
        {name: {"TLSA": [record]}},
        WorldClock(),
        destinations={name: 0},
        signed={0} if signed else (),
    )
    query = dns.message.make_query(name, "TLSA")
    if asks:
        query.flags |= dns.flags.AD
    answered = server.answer(query.to_wire(), 512)
    assert answered is not None
    response = dns.message.from_wire(answered[1])
    assert bool(response.flags & dns.flags.AD) == bool(says)
    assert response.answer[0].rdtype == dns.rdatatype.TLSA
    assert str(response.answer[0][0]) == record
