"""Keys of the configuration that no other test reaches through the server."""

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from mta.config import Config
from mta.core.reply import Outcome
from mta.core.settings import build
from mta.delivery.base import DeliveryLimits
from mta.delivery.maildir import MaildirDeliverer
from mta.delivery.pipe import PipeDeliverer
from mta.effects import Effects
from mta.outtls import OutboundTls
from tests.mta.delivery.jobs import job
from tests.support.faults import FaultyEffects
from tests.support.inprocess import serving

pytestmark = pytest.mark.usefixtures("unfrozen")


@pytest.mark.parametrize(
    ("networks", "offered"), [(["127.0.0.0/8"], True), (["192.0.2.1/32"], False)]
)
async def test_xclient_is_offered_to_those_networks_only(tmp_path, networks, offered):
    """To a client of theirs in the answer to EHLO."""
    smtp = {"listen": "127.0.0.1:0", "xclient_networks": networks}
    async with serving(tmp_path, FaultyEffects(), smtp=smtp) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.smtp_address[1])
        await reader.readline()
        writer.write(b"EHLO c.test\r\n")
        text = await asyncio.wait_for(reader.readuntil(b"250 "), 10)
        text += await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert offered is (b"XCLIENT" in text)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_the_least_version_of_outbound_tls(version):
    """In whichever way the host's certificate is looked at."""
    config = build(Config, {"relay": {"tls_minimum": version}}, source="test")
    tls = OutboundTls(config, Effects(), source="test")
    wanted = ssl.TLSVersion[version.replace(".", "_")]
    assert {wanted} == {tls._verifying.minimum_version, tls._trusting.minimum_version}


async def test_a_command_has_a_length(tmp_path):
    """One byte more than the limit is not run: whoever wrote it may mend it."""
    limits = DeliveryLimits(command_max=20)
    with ThreadPoolExecutor(1) as pool:
        shell = PipeDeliverer(Effects(), limits, allow_root=True, executor=pool)
        fits = await shell.deliver(job(tmp_path, target="/bin/true 9012345678"))
        longer = await shell.deliver(job(tmp_path, target="/bin/true 90123456789"))
    assert Outcome.OK is fits.outcome
    assert Outcome.TEMPFAIL is longer.outcome
    assert "not usable" in longer.status


@pytest.mark.parametrize(("count", "outcome"), [(2, Outcome.OK), (3, Outcome.LOOP)])
async def test_received_fields_are_counted_at_delivery(tmp_path, count, outcome):
    """As many as the limit may be there, ours included."""
    body = b"Received: from a by b; 1 Jan\r\n" * count + b"Subject: x\r\n\r\nx\r\n"
    with ThreadPoolExecutor(1) as pool:
        shell = MaildirDeliverer(Effects(), DeliveryLimits(hops_max=2), executor=pool)
        result = await shell.deliver(job(tmp_path, body=body))
    assert outcome is result.outcome, result
