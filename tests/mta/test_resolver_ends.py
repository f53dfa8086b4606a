"""Look-ups that are given up or wait for their turn; and all that touches sockets, on the loop of the server."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import dns.flags
import dns.message
import pytest
import uvloop

from mta.nameserver import QUERIES_MAX
from mta.resolver import QUERIES_PER_LOOKUP_MAX
from tests.mta import test_resolver as answers
from tests.mta import test_resolver_servers as servers
from tests.support.nameserver import HOSTS, RETRY, ZONE, Bench, bench


@pytest.fixture(autouse=True, scope="module")
def _warm_up() -> None:
    """Let libuv and dnspython open what they keep, before descriptors are counted."""
    uvloop.run(answers.TestAnswers().test_exchangers_with_their_addresses())


class TestCancelling:
    async def test_one_of_two_who_wait(self):
        """The other gets the answer."""
        async with bench(ZONE) as b:
            b.server.hold = True
            first = asyncio.ensure_future(b.resolver.resolve("example.org"))
            second = asyncio.ensure_future(b.resolver.resolve("example.org"))
            await held(b, 1)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            b.server.hold = False
            b.server.release()
            assert first.cancelled()
            assert (await second).hosts == HOSTS

    async def test_all_who_wait(self):
        """What is found is kept for the next who asks."""
        async with bench(ZONE) as b:
            b.server.hold = True
            only = asyncio.ensure_future(b.resolver.resolve("example.org"))
            await held(b, 1)
            only.cancel()
            await asyncio.gather(only, return_exceptions=True)
            b.server.hold = False
            b.server.release()
            assert (await b.resolver.resolve("example.org")).hosts == HOSTS
            assert b.server.asked.count("example.org MX") == 1

    @pytest.mark.parametrize("over_tcp", [False, True])
    async def test_close(self, over_tcp, fds):
        """Closing ends look-ups at any point; who waits is told to try later; no socket stays."""
        async with bench(ZONE) as b:
            asking = asyncio.Event()

            def answer(query: dns.message.Message, tcp: bool) -> bytes | None:
                if over_tcp and not tcp:
                    response = dns.message.make_response(query)
                    response.flags |= dns.flags.TC
                    return response.to_wire()
                asking.set()
                return None

            b.server.override = answer
            waiting = asyncio.ensure_future(b.resolver.resolve("example.org"))
            await asking.wait()
            await b.resolver.close()
            await b.resolver.close()
            resolution = await waiting
            assert resolution.status is RETRY
            assert len(b.resolver) == 0
        await asyncio.sleep(0)


async def held(b: Bench, count: int) -> None:
    """Wait until the server holds so many answers."""
    for _ in range(10_000):
        if len(b.server.held) >= count:
            return
        await asyncio.sleep(0.001)
    pytest.fail(f"only {len(b.server.held)} questions came")


class TestLimits:
    async def test_questions_of_one_look_up(self):
        """A domain with many exchangers has a few questions open, not all."""
        zone: dict[tuple[str, str], list[str] | str] = {
            ("a.test", "MX"): [f"10 h{number}.test." for number in range(20)]
        }
        for number in range(20):
            zone[f"h{number}.test", "A"] = ["127.0.0.1"]
        async with bench(zone) as b:
            resolving = asyncio.ensure_future(b.resolver.resolve("a.test"))
            b.server.hold = True
            await held(b, 1)
            b.server.release()
            while not resolving.done():
                await asyncio.sleep(0.001)
                if len(b.server.held) == QUERIES_PER_LOOKUP_MAX or b.resolver.stats.misses == 1:
                    b.server.release(1)
            assert len((await resolving).hosts) == 20
            assert b.server.open_max <= QUERIES_PER_LOOKUP_MAX

    async def test_a_dead_name_server_and_thousands_of_domains(self, fds):
        """All fail temporarily within a bounded time, with a bounded number of sockets."""
        async with bench(timeout_s=0.2, lifetime_s=0.5) as b:
            b.server.override = lambda query, tcp: None
            loop = asyncio.get_running_loop()
            others = len(fds())
            started = loop.time()
            lookups = [b.resolver.resolve(f"d{number}.test") for number in range(3000)]
            answers = asyncio.gather(*lookups)
            await asyncio.sleep(0.1)
            assert 0 < len(fds()) - others <= QUERIES_MAX + 10
            assert {answer.status for answer in await answers} == {RETRY}
            assert loop.time() - started < 15.0
            assert b.resolver._tasks == set()
        await asyncio.sleep(0)


UVLOOP_CASES: list[tuple[Callable[..., Coroutine[Any, Any, None]], tuple[Any, ...]]] = [
    (answers.TestAnswers().test_exchangers_with_their_addresses, ()),
    (servers.TestBadServers().test_silence_is_temporary_and_bounded, ()),
    (servers.TestBadServers().test_nobody_at_the_port, ()),
    (servers.TestBadServers().test_lies_are_not_answers, ("garbage",)),
    *[
        (servers.TestBadServers().test_truncated, (over_tcp,))
        for over_tcp in ("right", "hang", "close", "garbage", "truncated", "short")
    ],
    (servers.TestBadServers().test_huge_sets, ()),
    (TestCancelling().test_one_of_two_who_wait, ()),
]


@pytest.mark.parametrize(("test", "arguments"), UVLOOP_CASES)
def test_on_the_loop_of_the_server(test, arguments, fds):
    """What touches sockets holds on uvloop, too."""
    uvloop.run(test(*arguments))


@pytest.mark.parametrize("over_tcp", [False, True])
def test_close_on_the_loop_of_the_server(over_tcp, fds):
    """Closing leaves no socket on uvloop either."""
    uvloop.run(TestCancelling().test_close(over_tcp, fds))
