"""What the operator sees and does, against the whole server in this process."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from mta.core.ids import EvpId, MsgId, evpid
from mta.core.settings import ConfigError
from mta.core.stimuli import RemoveRequested, ScheduleRequested, Selector, SuspendRequested
from mta.operations import PAUSED_MAX, Operations
from mta.queue.base import Submission
from tests.support.faults import FaultyEffects
from tests.support.inprocess import send, serving
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("unfrozen")

NOBODY = "[127.0.0.7]"


@pytest.fixture
async def shown(tmp_path: Path):
    """A server with one message of two recipients for a host that refuses, in its long rest."""
    async with serving(
        tmp_path, FaultyEffects(), retry={"policy": "exponential", "base_s": 600.0, "min_s": 600.0}
    ) as server:
        rcpts = [f"b@{NOBODY}", f"c@{NOBODY}"]
        assert (await send(server.smtp_address[1], "a@one.test", rcpts, "x")).accepted
        await until(lambda: server.engine.scheduler.counts.tempfail == 2)
        await server.queue.flush()
        yield Operations(server)


ONE, TWO = evpid(MsgId(1), 1), evpid(MsgId(1), 2)


async def test_pages_of_envelopes(shown):
    """In the order of their ids, after the one that was shown last, as many as asked for."""
    rows = shown.queue_rows(None, None, 10)
    assert [f"{ONE:016x}", f"{TWO:016x}"] == [row["evpid"] for row in rows]
    assert rows[1:] == shown.queue_rows(None, ONE, 10) == shown.queue_rows(MsgId(1), ONE, 10)
    assert rows[:1] == shown.queue_rows(None, None, 1) == shown.queue_rows(MsgId(1), None, 1)
    assert [] == shown.queue_rows(None, TWO, 10) == shown.queue_rows(MsgId(2), None, 10)
    assert [1, 1] == [row["attempts"] for row in rows]
    assert all("refused" in row["last_status"] for row in rows)


async def test_a_destination_at_rest(shown):
    """Relay, route and host say why, and until when."""
    now = shown._server.effects.now()
    (relay,) = shown.relays()
    assert "dead" in relay["state"].split(",")
    assert relay["dead_until"] > now
    assert (0, 0, 0) == (relay["connections"], relay["tasks"], relay["envelopes"])
    (route,) = shown.routes()
    assert ("127.0.0.7", "disabled", 1) == (route["address"], route["state"], route["penalty"])
    assert now < route["enabled_at"] <= now + 20
    assert route["last_connect_at"] <= now
    (host,) = shown.hosts()
    assert ("127.0.0.7", 0, 1) == (host["address"], host["connections"], host["relays"])


async def test_a_route_is_let_back_in(shown):
    """What rested with it is due when the operator says so, and tried again."""
    assert shown.enable_route("127.0.0.7")
    assert 2 == shown.request(ScheduleRequested(Selector()))
    await until(lambda: shown._server.engine.scheduler.counts.tempfail == 4)
    assert not shown.enable_route("127.0.0.8")


async def test_selections(shown):
    """One, a message, all, none: the answer is how many; the rows say what became of them."""
    assert 1 == shown.request(SuspendRequested(Selector(evpid=ONE)))
    one, two = shown.queue_rows(None, None, 10)
    assert ("suspended", None, ["suspended"]) == (one["state"], one["due_at"], one["flags"])
    assert ("pending", []) == (two["state"], two["flags"])
    assert 0 == shown.request(RemoveRequested(Selector(evpid=EvpId(99))))
    assert 0 == shown.request(RemoveRequested(Selector(msgid=MsgId(99))))
    assert 2 == shown.request(RemoveRequested(Selector(msgid=MsgId(1))))
    assert [] == shown.queue_rows(None, None, 10)
    assert shown.envelope(ONE) is None
    assert shown.message(MsgId(1)) is None
    await until(lambda: shown._server.queue.envelopes == 0)


async def test_one_envelope_in_full(shown):
    """Nothing that the door learnt is left out."""
    row = shown.envelope(TWO)
    assert row is not None
    assert ("00000001", f"c@{NOBODY}", "client.test", "127.0.0.1") == (
        row["msgid"],
        row["rcpt"],
        row["helo"],
        row["peer_address"],
    )
    assert 16 == len(row["session"])
    body = shown.message(MsgId(1))
    assert body is not None
    assert len(body) == row["size"]


async def test_pauses(shown):
    """Each alone, and the status says which; saying it twice changes nothing."""
    for what in ("mta", "smtp"):
        for _ in range(2):
            shown.pause(what)
            assert "paused" == shown.status()[what]
        for _ in range(2):
            shown.resume(what)
            assert "running" == shown.status()[what]
    assert "healthy" == shown.status()["queue"]


async def test_tracing_and_verbosity(shown):
    """Into the log, or to whoever follows, until they stop."""
    server = shown._server
    shown.trace("smtp", True)
    assert server.tracer.smtp
    shown.trace("smtp", False)
    lines: list[str] = []
    stop = shown.follow("smtp", lines.append)
    await send(server.smtp_address[1], "a@one.test", [f"d@{NOBODY}"], "y")
    assert any("MAIL FROM:<a@one.test>" in line for line in lines)
    stop()
    count = len(lines)
    await send(server.smtp_address[1], "a@one.test", [f"d@{NOBODY}"], "y")
    assert count == len(lines)
    for on in (True, False):
        shown.verbose(on)
        assert server.log.verbose is on
    with pytest.raises(ValueError, match="nothing"):
        shown.trace("nothing", True)


async def test_removed_while_it_is_being_delivered(tmp_path):
    """It is gone if the attempt fails; what was delivered all the same stays delivered, once."""
    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 slow.test\r\n")
        while line := await reader.readline():
            if line.startswith(b"RCPT"):
                asked.set()
                await go_on.wait()
                writer.write(b"451 4.3.0 later\r\n")
            else:
                writer.write(b"250 ok\r\n" if line[:4] != b"QUIT" else b"221 bye\r\n")
        writer.close()

    remote = await asyncio.start_server(host, "127.0.0.8", 0)
    port = remote.sockets[0].getsockname()[1]
    async with serving(tmp_path, FaultyEffects(), relay={"port": port}) as server:
        await send(server.smtp_address[1], "a@one.test", ["b@[127.0.0.8]"], "x")
        await asyncio.wait_for(asked.wait(), 10)
        assert 1 == Operations(server).request(RemoveRequested(Selector()))
        assert 1 == server.queue.envelopes
        go_on.set()
        await until(lambda: not len(server.engine.store) and not server.queue.envelopes)
        assert 1 == server.stats()["scheduler.envelope.removed"]
    remote.close()
    await remote.wait_closed()


async def test_what_was_put_into_the_queue_by_hand(tmp_path):
    """It is taken over once, and tried at once; what is known already is left alone."""
    async with serving(
        tmp_path, FaultyEffects(), retry={"policy": "exponential", "base_s": 600.0, "min_s": 600.0}
    ) as server:
        desk = Operations(server)
        await send(server.smtp_address[1], "a@one.test", [f"b@{NOBODY}"], "x")
        await until(lambda: server.engine.scheduler.counts.tempfail == 1)
        await server.queue.flush()
        stored = server.queue.envelope(ONE)
        assert stored is not None
        body = server.queue.body(MsgId(1))
        hidden = Submission(
            server.queue.next_msgid(),
            stored.transaction,
            (stored.recipient,) * 2,
            body,
            stored.created_at,
            stored.expires_at,
            (0, 0),
        )
        await server.queue.submit(hidden)
        assert 3 == server.queue.envelopes
        assert 1 == len(server.engine.store)
        assert 0 == desk.discover(Selector(evpid=ONE))
        assert 0 == desk.discover(Selector(msgid=MsgId(99)))
        assert 1 == desk.discover(Selector(evpid=evpid(hidden.msgid, 2)))
        assert 1 == desk.discover(Selector(msgid=hidden.msgid))
        assert 0 == desk.discover(Selector(msgid=hidden.msgid))
        assert 3 == len(server.engine.store)


async def test_a_paused_destination_and_a_paused_user(shown):
    """Seen in the relay's state and in the list; bounded."""
    shown.pause("mta", "[127.0.0.7]")
    shown.pause("mda", "Alice")
    assert [("mta", "[127.0.0.7]"), ("mda", "alice")] == [
        (row["agent"], row["only"]) for row in shown.paused()
    ]
    (row,) = shown.users()
    assert ("alice", "paused", 0) == (row["user"], row["state"], row["held"])
    (relay,) = shown.relays()
    assert "paused" in relay["state"].split(",")
    (connector,) = relay["connectors"]
    assert (["ERROR_BLOCKED"], 0) == (connector["flags"], connector["connections"])
    for number in range(PAUSED_MAX):
        with contextlib.suppress(ValueError):
            shown.pause("mta", f"d{number}.test")
    assert PAUSED_MAX == len(shown.paused())
    with pytest.raises(ValueError, match="1000 are paused one by one"):
        shown.pause("mta", "one.too.many.test")
    shown.resume("mta", "[127.0.0.7]")
    shown.resume("mda", "alice")
    assert PAUSED_MAX - 2 == len(shown.paused())


async def test_a_limit_that_changed_counts_for_the_next_command(shown):
    """And for the parts that keep a copy of it."""
    server = shown._server
    assert "limits.smtp.max_rcpt 1000 -> 1" == shown.set_limit("limits.smtp.max_rcpt=1")
    said = await send(server.smtp_address[1], "a@one.test", [f"b@{NOBODY}", f"c@{NOBODY}"], "x")
    assert "452" == said.replies[4][:3]
    shown.set_limit("limits.queue.cache_envelopes=0")
    shown.set_limit("limits.mta.max_mx=3")
    shown.set_limit("limits.mta.session_timeout_s=3")
    assert 0 == server.driver.recent.envelopes
    assert 3 == server.resolver._max_mx
    assert server.driver.outbound.timeouts.banner == 3.0
    with pytest.raises(ConfigError):
        shown.set_limit("limits.smtp.max_rcpt=0")
    shown.set_limit("limits.mta.max_conn_per_relay=1")
    shown.set_limit("limits.mta.max_conn=1")
    (relay,) = shown.relays()
    assert [] == relay["wait"]
    (row,) = shown.limit_rows("smtp.max_rcpt")
    assert (1, 1000) == (row["value"], row["default"])


async def test_a_queue_has_a_shape(shown):
    """Read while mail goes on."""
    ages = list(shown.ages())
    assert [NOBODY, NOBODY] == [domain for domain, _ in ages]
    assert all(abs(shown.now() - created_at) < 60 for _, created_at in ages)


async def test_the_latest_news_and_the_slowest(shown):
    """Of the host that refuses; memory by who has it."""
    (news,) = shown.hoststats()
    assert (NOBODY, None, 0) == (news["domain"], news["seconds"], news["transactions"])
    assert "refused" in news["last_status"]
    row = shown.top()
    (slow,) = row["slowest"]
    assert (NOBODY, True, None) == (slow["domain"], slow["dead"], slow["seconds"])
    assert ["scheduler", "queue", "smtp"] == [part["agent"] for part in row["memory"]]
    assert 2 == row["memory"][0]["count"]
    assert 500 < row["memory"][0]["bytes"] < 50_000
