"""The whole server inside the test's process, so that its effects can be made to fail."""

import asyncio
import errno
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from mta.config import Config
from mta.core.settings import build
from mta.core.stimuli import ScheduleRequested, Selector
from mta.server import MtaServer
from tests.support.faults import FaultyEffects, Plan, Point

FORBIDDEN = re.compile(
    r"errno|traceback|exception|\w+error\b|sqlite|no space|input/output|open files|/|reset by",
    re.IGNORECASE,
)
"""What no client may read in a reply: our inside. (``Local error`` is two words.)"""


def breaking(number: int, code: int, effects: FaultyEffects, **options: Any) -> Plan:
    """Return a plan that fails as the world would: the database in SQLite's words, the rest with an errno."""

    def error() -> BaseException:
        if effects.failed[-1].op == "sqlite":
            words = {
                errno.ENOSPC: "database or disk is full",
                errno.EMFILE: "unable to open database file",
            }
            return sqlite3.OperationalError(words.get(code, "disk I/O error"))
        return OSError(code, os.strerror(code))

    return Plan(number, error, **options)


def is_counted(point: Point) -> bool:
    """Say whether a point is in the sweep: the log's and the sampler's are as many as time passes, and have tests."""
    return point.site not in ("log", "memory")


class Dialogue:
    """What one client said and heard."""

    def __init__(self) -> None:
        self.replies: list[str] = []
        self.accepted = False
        """250 after the dot."""

    def check(self) -> None:
        """A local fault is a 4xx, and says nothing of its cause."""
        for reply in self.replies:
            assert reply[:1] in "234", self.replies
            assert not FORBIDDEN.search(reply), reply


async def send(
    port: int, sender: str, rcpts: Sequence[str], subject: str, *, size: int = 100
) -> Dialogue:
    """Send one message the way a polite client does: each command after the reply to the last."""
    said = Dialogue()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def reply() -> str:
        while True:
            line = (await asyncio.wait_for(reader.readline(), 20)).decode()
            if line[3:4] != "-":
                if line:
                    said.replies.append(line.rstrip())
                return line

    async def command(line: str) -> str:
        writer.write(line.encode() + b"\r\n")
        return await reply()

    try:
        if not (await reply()).startswith("220"):
            return said
        heard = [await command(line) for line in ("EHLO client.test", f"MAIL FROM:<{sender}>")]
        if heard[-1].startswith("250"):
            taken = [(await command(f"RCPT TO:<{rcpt}>"))[:3] == "250" for rcpt in rcpts]
            if all(taken) and (await command("DATA")).startswith("354"):
                text = "x" * 70 + "\r\n"
                said.accepted = (
                    await command(f"Subject: {subject}\r\n\r\n{text * (size // 72 + 1)}.")
                ).startswith("250")
        await command("QUIT")
    except ConnectionError:
        pass
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return said


@asynccontextmanager
async def serving(
    directory: Path, effects: FaultyEffects, **config: Any
) -> AsyncIterator[MtaServer]:
    """Run a server; stop it in the end, as SIGTERM does.

    Raises:
        ConfigError: it did not start.
    """
    settings = build(
        Config,
        {
            "hostname": "mx.test",
            "seed": 1,
            "drain_s": 5.0,
            "smtp": {"listen": "127.0.0.1:0"},
            "queue": {"directory": str(directory / "queue")},
            "control": {"socket": str(directory / "control")},
            "log": {"file": str(directory / "log")},
            "retry": {"policy": "exponential", "base_s": 0.05, "min_s": 0.02, "max_s": 0.05},
            **config,
        },
        source="test",
    )
    server = MtaServer(settings, source="test")
    server.effects = effects
    running = asyncio.ensure_future(server.run())
    try:
        while not server.smtp_address[1] and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if running.done():
            running.result()
        yield server
    finally:
        server.stop()
        await running


async def drained(server: MtaServer, timeout_s: float = 20.0) -> None:
    """Wait until the queue is empty; nothing waits for its time."""

    def empty() -> bool:
        return not (
            len(server.engine.store) or server.queue.envelopes or server.driver.bouncer.messages
        )

    try:
        async with asyncio.timeout(timeout_s):
            while server.restoring or not empty():
                server.driver.tell(ScheduleRequested(Selector()))
                await asyncio.sleep(0.01)
    except TimeoutError:
        store, queue = server.engine.store, server.queue
        left = [(f"{store.evpid_of(each):016x}", store.state_of(each)) for each in store]
        raise AssertionError(
            f"left: {left}, in the queue {queue.envelopes}, restoring {server.restoring},"
            f" reports {server.driver.bouncer.messages}, local {server.driver.local}; {server.stats()}"
        ) from None
