"""What a message costs at the door, beside aiosmtpd as it comes."""

import asyncio
import logging
import resource
import shutil
from typing import TYPE_CHECKING

import pytest
import uvloop
from aiosmtpd.smtp import SMTP

from mta.inbound import Inbound
from tests.support.door import FakeDoor

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGES = 2000
SMTP_SOURCE = shutil.which("smtp-source") or shutil.which("smtp-source", path="/usr/sbin")


class _Drop:
    """A handler of aiosmtpd that takes a message and forgets it."""

    accepted = 0

    async def handle_DATA(self, *_: object) -> str:  # noqa: N802 - the hook's name
        self.accepted += 1
        return "250 2.0.0 Ok"


async def _cpu_per_message(factory: "Callable[[], asyncio.BaseProtocol]", *options: str) -> float:
    """Return microseconds of CPU of this process per message of 4 KiB from 20 sessions."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, backlog=512)
    port = server.sockets[0].getsockname()[1]
    before = after = resource.getrusage(resource.RUSAGE_SELF)
    for count in (200, MESSAGES):  # the first run warms up
        assert SMTP_SOURCE is not None
        before = resource.getrusage(resource.RUSAGE_SELF)
        command = [SMTP_SOURCE, "-s", "20", "-l", "4096", "-m", str(count), *options]
        process = await asyncio.create_subprocess_exec(*command, f"127.0.0.1:{port}")
        assert await process.wait() == 0
        after = resource.getrusage(resource.RUSAGE_SELF)
    server.close()
    await server.wait_closed()
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds / MESSAGES * 1e6


@pytest.mark.benchmark
@pytest.mark.skipif(SMTP_SOURCE is None, reason="needs smtp-source, of Postfix")
@pytest.mark.parametrize(
    ("options", "budget", "ratio"),
    [((), 350.0, 2.0), (("-d",), 180.0, 1.5)],
    ids=["a connection each", "kept"],
)
def test_a_message_costs_a_fraction_of_what_aiosmtpd_takes(options, budget, ratio, capsys):
    """Accept and drop on uvloop, in one run: within the budget, and well below the baseline."""
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    door, handler = FakeDoor(), _Drop()

    async def measure() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        ours = await _cpu_per_message(lambda: Inbound(door), *options)
        theirs = await _cpu_per_message(
            lambda: SMTP(handler, hostname="mx.test", enable_SMTPUTF8=True, loop=loop), *options
        )
        return ours, theirs

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ours, theirs = runner.run(measure())
    assert len(door.accepted) == handler.accepted == MESSAGES + 200
    assert all(len(message.text) > 4000 for message in door.accepted)
    with capsys.disabled():
        print(  # noqa: T201 - a benchmark reports
            f"\ndoor, {' '.join(options) or 'a connection each'}: {ours:.0f} us of CPU per message,"
            f" aiosmtpd {theirs:.0f}, ratio {theirs / ours:.1f}"
        )
    assert ours < budget
    assert ours * ratio < theirs
