"""Recipients that tables take their time for: nobody else waits, and each session keeps its order."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mta.core import admission
from mta.core.reply import Reply
from tests.support.door import FakeDoor
from tests.support.faults import FaultyEffects
from tests.support.inprocess import serving
from tests.support.waiting import until
from tests.support.wire import Client

pytestmark = pytest.mark.usefixtures("unfrozen")


class SlowDoor(FakeDoor):
    """Recipients are futures that a test decides."""

    def __init__(self, **limits: float) -> None:
        super().__init__(**limits)
        self.asked: list[asyncio.Future[Any]] = []

    def recipient(self, *args: Any, **options: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return future


def waiting(door: SlowDoor) -> Client:
    """A client whose recipient is being looked up, and that has sent more in the same segment."""
    client = Client(door)
    client.say("EHLO c.test")
    client.send("MAIL FROM:<a@b>\r\nRCPT TO:<one@d>\r\nRCPT TO:<two@d>\r\nDATA\r\n")
    assert 1 == len(door.asked)
    return client


async def test_the_order_of_commands_is_kept():
    """The second recipient is not asked for before the first has its answer, nor is DATA obeyed."""
    door = SlowDoor()
    client = waiting(door)
    assert client.take() == ""
    door.asked[0].set_result(Reply(550, "5.1.1", "User unknown"))
    await asyncio.sleep(0)
    assert 2 == len(door.asked)
    assert client.take().startswith("550 5.1.1 User unknown")
    door.asked[1].set_result(None)
    await asyncio.sleep(0)
    assert ["250", "354"] == [line[:3] for line in client.take().splitlines()]
    client.send("x\r\n.\r\n")
    assert ["two@d"] == [rcpt.address for rcpt in door.accepted[0].recipients]


async def test_input_waits_in_the_kernel():
    """What comes meanwhile is read once and no more."""
    door = SlowDoor()
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<one@d>")
    client.send("RSET\r\nNOOP\r\n")
    assert not client.wire.reading
    door.asked[0].set_result(Reply(451, "4.3.0", "Later"))
    await asyncio.sleep(0)
    assert client.wire.reading
    assert ["451", "250", "250"] == [line[:3] for line in client.take().splitlines()]


@pytest.mark.parametrize("answer", [None, "error", "cancel"])
async def test_a_client_that_leaves(answer):
    """Its answer comes later and is nobody's."""
    door = SlowDoor()
    client = waiting(door)
    client.wire.lose(None)
    if answer == "cancel":
        door.asked[0].cancel()
    elif answer == "error":
        door.asked[0].set_exception(OSError("late"))
    else:
        door.asked[0].set_result(None)
    await asyncio.sleep(0)
    assert [] == client.wire.writes
    assert 1 == len(door.asked)


async def test_a_client_that_half_closes_gets_its_answers():
    """It has sent all it wants to say."""
    door = SlowDoor()
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<one@d>")
    client.shut()
    assert client.is_open
    door.asked[0].set_result(None)
    await asyncio.sleep(0)
    assert b"250 2.1.5 Ok\r\n" == b"".join(client.wire.writes)
    assert client.wire.closing


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda future: future.cancel(), "451 4.3.0 Temporary lookup failure"),
        (lambda future: future.set_exception(OSError("disk")), "452 4.3.1 "),
        (lambda future: future.set_exception(KeyError("bug")), "451 4.3.0 Local error"),
    ],
)
async def test_a_fault_is_temporary(end, text):
    """And says nothing of its cause."""
    door = SlowDoor()
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<one@d>")
    end(door.asked[0])
    await asyncio.sleep(0)
    assert client.take().startswith(text)
    assert client.say("NOOP").startswith("250")


async def test_one_error_too_many():
    """The limit of errors counts here too, and what was pipelined behind it is not obeyed."""
    door = SlowDoor(max_errors=1)
    client = waiting(door)
    door.asked[0].set_result(Reply(550, "5.1.1", "User unknown"))
    await asyncio.sleep(0)
    assert ["550", "421"] == [line[:3] for line in client.take().splitlines()]
    assert 1 == len(door.asked)


# ---- the server with a database


class Speaker:
    """A client of a real server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, line: str) -> str:
        self.writer.write(line.encode() + b"\r\n")
        while True:
            answer = (await asyncio.wait_for(self.reader.readline(), 10)).decode()
            if answer[3:4] != "-":
                return answer

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def ready(port: int) -> Speaker:
    speaker = Speaker(*await asyncio.open_connection("127.0.0.1", port))
    await speaker.reader.readline()
    await speaker.say("EHLO c.test")
    assert (await speaker.say("MAIL FROM:<a@one.test>")).startswith("250")
    return speaker


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "aliases.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE aliases (key TEXT PRIMARY KEY, value TEXT)")
        connection.execute("INSERT INTO aliases VALUES ('info', 'b@[127.0.0.7]')")
    return path


def config(tmp_path: Path, database: Path, **smtp: float) -> dict[str, Any]:
    return {
        "tables": {"aliases": {"kind": "sqlite", "path": str(database)}},
        "userbases": {"people": {"alice": {"home": str(tmp_path)}}},
        "rules": [
            {
                "name": "here",
                "match_domains": ["here.test"],
                "action": "local",
                "aliases": "aliases",
                "userbase": "people",
            },
            {"name": "away", "match_domains": ["*"], "action": "relay"},
        ],
        "limits": {"smtp": {"max_junk": 100_000, **smtp}},
    }


async def test_a_locked_database_holds_up_nobody_else(tmp_path, database):
    """Its recipient gets a 4xx after a while; meanwhile others are answered; unlocked, it works at once."""
    async with serving(tmp_path, FaultyEffects(), **config(tmp_path, database)) as server:
        port = server.smtp_address[1]
        one, other = await ready(port), await ready(port)
        assert (await one.say("RCPT TO:<info@here.test>")).startswith("250")
        with closing(sqlite3.connect(database, isolation_level=None)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            asked = asyncio.ensure_future(one.say("RCPT TO:<nobody@here.test>"))
            await until(lambda: server.stats()["smtp.lookup"])
            answered = 0
            while not asked.done():
                assert (await other.say("EHLO c.test")).startswith("250")
                answered += 1
            lock.execute("ROLLBACK")
        assert (await asked).startswith("424 4.2.4 "), await asked
        assert answered > 5, "the event loop stood still"
        assert (await one.say("RCPT TO:<nobody@here.test>")).startswith("550 5.1.1")
        assert (await one.say("RCPT TO:<info@here.test>")).startswith("250")
        await one.close()
        await other.close()
        await until(lambda: not server.door.connections)
        assert 0 == server.stats()["smtp.lookup"]
    assert "database is locked" in (tmp_path / "log").read_text()


async def test_waiting_has_limits(tmp_path, database):
    """In time and in number: 451 4.3.0, counted; the session goes on."""
    limits = config(tmp_path, database, lookup_timeout_s=0.02, max_lookups=1)
    async with serving(tmp_path, FaultyEffects(), **limits) as server:
        port = server.smtp_address[1]
        one, other = await ready(port), await ready(port)
        with closing(sqlite3.connect(database, isolation_level=None)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            server.door.limits.lookup_timeout_s = 5.0
            asked = asyncio.ensure_future(one.say("RCPT TO:<info@here.test>"))
            await until(lambda: server.stats()["smtp.lookup"])
            failed = f"{admission.LOOKUP_FAILED}\r\n"
            assert failed == await other.say("RCPT TO:<info@here.test>")
            assert (await asked).startswith("424 4.2.4 ")
            server.door.limits.lookup_timeout_s = 0.02
            assert failed == await one.say("RCPT TO:<info@here.test>")
            lock.execute("ROLLBACK")
        assert 2 == server.stats()["smtp.lookup.failed"]
        server.door.limits.lookup_timeout_s = 5.0
        assert (await one.say("RCPT TO:<info@here.test>")).startswith("250")
        await one.close()
        await other.close()


async def test_what_is_traced_is_traced(tmp_path, database):
    """With the trace on, the answer is the same and the lines are there."""
    async with serving(tmp_path, FaultyEffects(), **config(tmp_path, database)) as server:
        server.tracer.set("lookup", True)
        one = await ready(server.smtp_address[1])
        assert (await one.say("RCPT TO:<info@here.test>")).startswith("250")
        await one.close()
    assert 'lookup "info' in (tmp_path / "log").read_text()
