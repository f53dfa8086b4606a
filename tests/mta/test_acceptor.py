"""Connections are taken while there are descriptors, and nobody spins when there are none."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mta import acceptor
from mta.accepteffects import AcceptEffects
from mta.acceptor import Acceptor
from mta.core.limits import SmtpLimits
from tests.support.faults import FaultyEffects, Plan, Point
from tests.support.waiting import until


class Greeter(asyncio.Protocol):
    """Says hello and waits."""

    def __init__(self, made: list["Greeter"]) -> None:
        made.append(self)
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"hello\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True


class At:
    """An acceptor, and what it said."""

    def __init__(self, effects: FaultyEffects, limits: SmtpLimits) -> None:
        self.effects = effects
        self.made: list[Greeter] = []
        self.lines: list[str] = []
        self.refused: list[object] = []
        self.paused: list[bool] = []
        self.acceptor = Acceptor(
            lambda: Greeter(self.made),
            effects,
            limits=limits,
            log=self.lines.append,
            on_refused=self.refused.append,
            on_pause=self.paused.append,
        )

    async def hear(self) -> bytes:
        """Connect, and return the first line."""
        reader, writer = await asyncio.open_connection(*self.acceptor.name)
        try:
            return await asyncio.wait_for(reader.readline(), 10)
        finally:
            writer.close()
            await writer.wait_closed()


def accepting(point: Point) -> bool:
    return point.op == "accept"


def breaking(code: int, *, number: int = 1, for_good: bool = False) -> Plan:
    return Plan(number, lambda: OSError(code, os.strerror(code)), for_good, matches=accepting)


@asynccontextmanager
async def opened(*, address: str = "127.0.0.1", **limits: float) -> AsyncIterator[At]:
    effects = FaultyEffects()
    at = At(effects, SmtpLimits(**limits))  # type: ignore[arg-type]
    at.acceptor.open(address, 0, site="smtp")
    try:
        yield at
    finally:
        at.acceptor.close()
        for greeter in at.made:
            greeter.transport.abort()
        await until(lambda: all(greeter.gone for greeter in at.made))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.acceptor.PAUSE_S", 0.01)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_clients_are_let_in(address: str) -> None:
    """Over both versions of IP, many at once, each with a protocol of its own."""
    async with opened(address=address) as at:
        heard = await asyncio.gather(*(at.hear() for _ in range(200)))
        assert {b"hello\r\n"} == set(heard)
        assert 200 == len(at.made)
    assert [] == at.lines == at.paused


async def test_a_port_that_is_taken() -> None:
    """Is an OSError, and no socket stays open."""
    async with opened() as at:
        other = At(FaultyEffects(), SmtpLimits())
        with pytest.raises(OSError, match="in use"):
            other.acceptor.open(*at.acceptor.name, site="smtp")
        other.acceptor.close()


async def test_what_is_no_address() -> None:
    """No name is looked up."""
    with pytest.raises(socket.gaierror):
        At(FaultyEffects(), SmtpLimits()).acceptor.open("localhost", 0, site="smtp")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_descriptors_it_waits(code: int) -> None:
    """Accepting fails: it stops for a moment, says so once, and the client is let in later."""
    async with opened() as at:
        at.effects.plan = breaking(code, for_good=True)
        hearing = asyncio.ensure_future(at.hear())
        await until(lambda: len(at.effects.failed) == 3)
        assert [True] == at.paused
        at.effects.heal()
        assert b"hello\r\n" == await hearing
        assert [True, False] == at.paused
        assert at.lines == [
            f"smtp disabling incoming connections reason={errno.errorcode[code]}",
            "smtp enabling incoming connections",
        ]


async def test_it_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits costs one try per pause, not one per turn of the loop."""
    monkeypatch.setattr("mta.acceptor.PAUSE_S", 60.0)
    async with opened() as at:
        at.effects.plan = breaking(errno.EMFILE, for_good=True)
        hearing = asyncio.ensure_future(at.hear())
        await until(lambda: at.paused)
        for _ in range(100):
            await asyncio.sleep(0)
        assert 1 == len(at.effects.failed)
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


async def test_a_client_that_has_left_stops_nobody() -> None:
    """ECONNABORTED is the client's: the next one is let in at once."""
    async with opened() as at:
        at.effects.plan = breaking(errno.ECONNABORTED)
        assert b"hello\r\n" == await at.hear()
        assert 1 == len(at.effects.failed)
        assert [] == at.paused


async def test_a_connection_that_is_lost_is_closed() -> None:
    """It was accepted and its result was lost: no descriptor stays behind, the next client gets in."""
    async with opened() as at:
        at.effects.plan = Plan(1, when="after", matches=accepting)
        assert b"" == await at.hear()
        assert b"hello\r\n" == await at.hear()


async def test_descriptors_are_left_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the share a client is told 421, and others wait; room that comes back is used."""
    most = 10_000
    monkeypatch.setattr(AcceptEffects, "descriptors_max", lambda self: most)
    async with opened(descriptor_share=0.5) as at:
        assert b"hello\r\n" == await at.hear()
        most = 8
        assert (await at.hear()).startswith(b"421 4.3.2 Too many connections")
        assert [True] == at.paused
        most = 10_000
        assert b"hello\r\n" == await at.hear()
        assert [True, False] == at.paused
        assert 1 == len(at.refused)
        assert at.lines[0].startswith('smtp refused reason=descriptors result="421 4.3.2 ')


async def test_a_flood_gives_others_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than so many connections are taken in one turn of the loop."""
    monkeypatch.setattr("mta.acceptor.TURN_MAX", 3)
    async with opened() as at:
        clients = []
        for _ in range(10):
            client = socket.create_connection(at.acceptor.name)
            clients.append(client)
        at.acceptor._take()
        accepted = sum(point.op == "accept" and point.when == "after" for point in at.effects.seen)
        assert 3 == accepted
        await until(lambda: len(at.made) == 10)
        for client in clients:
            client.close()


async def test_a_connection_that_no_protocol_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for it: it is closed, the log says so, the next one is let in."""
    async with opened() as at:
        good = at.acceptor._make

        def once() -> asyncio.BaseProtocol:
            at.acceptor._make = good
            raise MemoryError

        at.acceptor._make = once
        assert b"" == await at.hear()
        assert b"hello\r\n" == await at.hear()
        assert ["smtp a connection was lost: MemoryError"] == at.lines


async def test_closing_while_it_pauses() -> None:
    """Nothing happens afterwards; closing again is harmless."""
    async with opened() as at:
        at.effects.plan = breaking(errno.EMFILE, for_good=True)
        hearing = asyncio.ensure_future(at.hear())
        await until(lambda: at.paused)
        at.acceptor.close()
        at.acceptor.close()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            assert b"" != await hearing or _reset()
        await asyncio.sleep(3 * acceptor.PAUSE_S)
        assert [True] == at.paused


def _reset() -> bool:
    raise ConnectionResetError
