"""Every subsystem of the running server says something useful when it is traced, and nothing when it is not."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mta.control import ControlServer
from mta.core.limits import Limits
from mta.operations import Operations
from mta.trace import SUBSYSTEMS, Only
from tests.support.faults import FaultyEffects
from tests.support.inprocess import send, serving
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("unfrozen")

NOBODY = "[127.0.0.7]"


def config(home: Path) -> dict[str, Any]:
    home.mkdir(exist_ok=True)
    return {
        "rules": [
            {
                "name": "ours",
                "match_domains": ["ours.test"],
                "action": "local",
                "userbase": "people",
                "aliases": "aliases",
            },
            {"name": "out", "match_domains": ["*"], "action": "relay"},
        ],
        "tables": {"aliases": {"kind": "static", "entries": {"team": f"alice, x@{NOBODY}"}}},
        "userbases": {"people": {"alice": {"home": str(home)}}},
        "retry": {"policy": "exponential", "base_s": 600.0, "min_s": 600.0, "mda_base_s": 600.0},
    }


@asynccontextmanager
async def traced(tmp_path: Path, *subsystems: str, only: str = "") -> AsyncIterator[Any]:
    """A server after one message to a team of one user and one host that refuses, and what was traced."""
    lines: list[str] = []
    async with serving(tmp_path, FaultyEffects(), **config(tmp_path / "home")) as server:
        desk = Operations(server)
        stops = [desk.follow(name, lines.append, only) for name in subsystems]
        rcpts = ["team@ours.test"]
        assert (await send(server.smtp_address[1], "a@from.test", rcpts, "x")).accepted
        await until(lambda: server.engine.scheduler.counts.tempfail == 1)
        await until(lambda: server.engine.scheduler.counts.ok == 1)
        await server.queue.flush()
        yield server, desk, lines
        for stop in stops:
            stop()


WANTED = {
    "smtp": ["<<< RCPT TO:<team@ours.test>", ">>> 354"],
    "mta": ["-> OpenConnection session=", "<- ConnectionFailed session="],
    "mda": [
        "-> DeliverLocally evpid=0000000100000001 user=alice",
        "<- LocalDeliveryDone evpid=0000000100000001",
    ],
    "scheduler": [
        "<- MessageSubmitted msgid=00000001",
        "-> DeferEnvelope evpid=0000000100000002 attempts=1",
        "-> RemoveEnvelope evpid=0000000100000001 reason=delivered",
    ],
    "queue": [
        "submit msgid=00000001 sender=<a@from.test> envelopes=2",
        "result=durable",
        "commit submissions=",
    ],
    "expand": ["rcpt to=<team@ours.test>", "2 deliveries:"],
    "rules": ['ours.test for any,local,networks: rule 1 "ours" matches domain ours.test: local'],
    "lookup": ['lookup "team" in table aliases -> "alice, x@[127.0.0.7]"'],
    "dns": ["[127.0.0.7] -> "],
    "io": ["sqlite site=commit seconds=", "fsync site=maildir seconds="],
}


@pytest.mark.parametrize("subsystem", WANTED)
async def test_each_subsystem_says_what_it_does(tmp_path, subsystem):
    """In words that can be searched for; the others are silent."""
    async with traced(tmp_path, subsystem) as (_, _, lines):
        assert all(line.startswith(f"{subsystem}: ") for line in lines)
        for wanted in WANTED[subsystem]:
            assert any(wanted in line for line in lines), (wanted, lines)


async def test_limits_say_when_one_is_reached_or_changed(tmp_path):
    """Which, and what was answered."""
    async with traced(tmp_path, "limits") as (server, desk, lines):
        desk.set_limit("limits.smtp.max_conn=1")
        desk.set_limit("limits.smtp.max_rcpt=1")
        port = server.smtp_address[1]
        rcpts = ["team@ours.test", "alice@ours.test"]
        assert not (await send(port, "a@from.test", rcpts, "x")).accepted
        assert "limits: <- LimitChanged key=limits.smtp.max_conn value=1" in lines
        assert any("smtp refused: 452" in line for line in lines), lines


async def test_control_says_who_asked_for_what(tmp_path):
    """Each request, and how its answer ended."""
    lines: list[str] = []
    server = ControlServer(tmp_path / "s", None, FaultyEffects(), trace=lines.append)  # type: ignore[arg-type]
    await server.start()
    effects = FaultyEffects()

    class Asker:
        def connection_made(self, transport: Any) -> None:
            transport.write(b'{"verb": "show message", "id": "zz"}\n')

        def data_received(self, data: bytes) -> None: ...

        def eof_received(self) -> None: ...

        def connection_lost(self, error: object) -> None: ...

    transport, _ = await effects.create_unix_connection(
        Asker,  # type: ignore[type-var]
        tmp_path / "s",
        timeout_s=5.0,
        site="test",
    )
    await until(lambda: len(lines) == 2)
    transport.close()
    await server.close()
    assert lines[0].startswith("request show message id=zz uid=")
    assert lines[1].startswith("answered expected an envelope")


def test_there_is_a_test_for_every_subsystem():
    """Whoever adds one says here what it prints."""
    assert set(SUBSYSTEMS) == {*WANTED, "limits", "control"}


async def test_a_trace_of_one_address(tmp_path):
    """All steps of its expansion, and no other recipient's; of another address nothing."""
    async with traced(tmp_path, "expand", "rules", only="TEAM@ours.test") as (server, _, lines):
        before = list(lines)
        assert any("matches domain ours.test" in line for line in before)
        assert before[0].startswith("expand: rcpt to=<team@ours.test>")
        assert any("2 deliveries" in line for line in before)
        await send(server.smtp_address[1], "a@from.test", ["alice@ours.test"], "y")
        assert before == lines


async def test_a_trace_of_one_envelope(tmp_path):
    """Its own steps and its message's, not its sister's."""
    async with traced(tmp_path, "all", only="0000000100000001") as (_, _, lines):
        assert any("DeliverLocally" in line for line in lines)
        assert any("MessageSubmitted msgid=00000001" in line for line in lines)
        assert not any("DeferEnvelope" in line for line in lines)


@pytest.mark.parametrize(
    ("only", "line", "wanted"),
    [
        ("0000002a00000001", "evpid=0000002a00000001", True),
        ("0000002A00000001", "evpid=0000002a00000001", True),
        ("0000002a00000001", "msgid=0000002a size=1", True),
        ("0000002a00000001", "evpid=0000002a00000002", False),
        ("0000002a00000001", "session=0000002a0000000100", False),
        ("0000002a", "evpid=0000002a00000002", True),
        ("0000002a", "msgid=0000002a", True),
        ("0000002a", "msgid=0000002ab", False),
        ("a+b@c.test", "to=<A+B@C.test>", True),
        ("a+b@c.test", "to=<aab@c.test>", False),
    ],
)
def test_what_a_line_is_about(only, line, wanted):
    """An id is a whole word; an address is looked for as it is."""
    assert wanted is Only(only).matches(line, "")
    assert wanted is Only(only).matches("", line)


async def test_untraced_nothing_is_watched(tmp_path):
    """Neither steps nor effects: they cost what they did before."""
    async with traced(tmp_path, "all") as (server, _, _):
        assert server.driver._watch is not None
        assert "point" in vars(server.effects)
    assert server.driver._watch is None
    assert "point" not in vars(server.effects)


async def test_a_profile_of_mail(tmp_path):
    """Stimuli, instructions and effects, each as often as it happened."""
    async with serving(tmp_path, FaultyEffects(), **config(tmp_path / "home")) as server:
        desk = Operations(server)
        desk.profile(True)
        await send(server.smtp_address[1], "a@from.test", ["alice@ours.test"], "x")
        await until(lambda: server.engine.scheduler.counts.ok == 1)
        desk.profile(False)
        counts = {(row["group"], row["name"]): row["count"] for row in desk.profile_rows()}
        assert 1 == counts["stimulus", "MessageSubmitted"]
        assert 1 == counts["instruction", "DeliverLocally"]
        assert 1 == counts["stimulus", "LocalDeliveryDone"]
        assert counts["effect", "sqlite commit"] >= 1
        assert all(row["p50_s"] <= row["p99_s"] <= row["max_s"] for row in desk.profile_rows())
        assert server.driver._watch is None


def holders(root: object, wanted: Callable[[object], bool]) -> int:
    """Return how many attributes below an object satisfy something; for a look around."""
    seen: set[int] = set()
    found = 0
    stack = [root]
    while stack:
        one = stack.pop()
        if id(one) in seen or not type(one).__module__.startswith(("mta", "tests")):
            continue
        seen.add(id(one))
        names = set(getattr(one, "__dict__", ()))
        for kind in type(one).__mro__:
            names |= set(getattr(kind, "__slots__", ()))
        for name in names:
            with suppress(AttributeError):
                value = getattr(one, name)
                found += wanted(value)
                stack.append(value)
    return found


async def test_all_parts_of_the_server_share_its_limits(tmp_path):
    """So that a limit set at run time counts for whoever reads it: nobody has a copy."""
    async with serving(tmp_path, FaultyEffects(), **config(tmp_path / "home")) as server:
        for name in ("smtp", "mta", "mda", "scheduler", "queue", "memory"):
            ours = getattr(server.config.limits, name)
            kind = type(ours)
            assert holders(server, lambda it, ours=ours: it is ours) >= 2
            assert not holders(
                server, lambda it, kind=kind, ours=ours: type(it) is kind and it is not ours
            )
        assert not holders(server, lambda it: type(it) is Limits and it is not server.config.limits)
