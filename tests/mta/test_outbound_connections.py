"""Outbound connections against real sockets: how they begin, every way to end, and what is shown of them."""

import asyncio
import contextlib
import errno
import socket
from typing import Any

import pytest
import uvloop

from mta.core.limits import MtaLimits
from mta.core.stimuli import ConnectionClosed, ConnectionFailed, ConnectionReady, TransactionDone
from mta.effects import Effects
from mta.esmtp import TOO_LARGE
from mta.outerrors import CONNECT_TIMED_OUT, LOCAL_FAULT, NOT_LOOPBACK, STOPPED, network_error
from mta.smtpclient import TIMED_OUT, Timeouts
from tests.support.scriptedmx import LOOPS, M1, OK, PERMFAIL, S1, STAGES, Recorder, ScriptedMx, run

pytestmark = pytest.mark.usefixtures("warm_loop")


class TestConnecting:
    @pytest.mark.parametrize("loop_factory", LOOPS)
    def test_refused(self, loop_factory, fds):
        """A refusal is told in the words of the network."""

        async def main() -> None:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
                recorder = Recorder(taken.getsockname()[1])
                recorder.open()
                assert await recorder.told_count(1) == [ConnectionFailed(S1, "Connection refused")]
                await recorder.outbound.wait_idle()
            assert recorder.lines[-1] == "0000000000000001 mta error reason=Connection refused"

        run(main(), loop_factory)

    @pytest.mark.parametrize("loop_factory", LOOPS)
    def test_hanging_connect_is_ended(self, loop_factory, fds):
        """A host that drops packets costs ``connect_timeout_s``, not more."""

        async def main() -> None:
            # A full backlog makes Linux drop the SYN, which is what a firewall does.
            with socket.socket() as deaf, contextlib.ExitStack() as fillers:
                deaf.bind(("127.0.0.1", 0))
                deaf.listen(0)
                for _ in range(3):
                    filler = fillers.enter_context(socket.socket())
                    filler.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        filler.connect(deaf.getsockname())
                recorder = Recorder(deaf.getsockname()[1], limits=MtaLimits(connect_timeout_s=0.2))
                recorder.open()
                assert await recorder.told_count(1) == [ConnectionFailed(S1, CONNECT_TIMED_OUT)]
                await recorder.outbound.wait_idle()

        run(main(), loop_factory)

    def test_an_address_outside_is_not_connected_to(self):
        """The loopback guard is a failure like any other, in words for the operator."""

        async def main() -> None:
            recorder = Recorder(25)
            recorder.open(address="192.0.2.1")
            assert await recorder.told_count(1) == [ConnectionFailed(S1, NOT_LOOPBACK)]

        run(main())

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
    def test_faults_of_this_machine_are_nobodys_business(self, number):
        """Running out of descriptors is no news for the sender of the mail."""

        class Full(Effects):
            async def apoint(self, op: str, site: str) -> None:
                raise OSError(number, "secret")

        async def main() -> None:
            recorder = Recorder(25, effects=Full())
            recorder.open()
            assert await recorder.told_count(1) == [ConnectionFailed(S1, LOCAL_FAULT)]

        run(main())

    @pytest.mark.parametrize("loop_factory", LOOPS)
    def test_a_connect_that_fails_after_it_worked(self, loop_factory, fds):
        """When the effect raises although the socket is there, it is closed and told once."""

        class Late(Effects):
            def done(self, op: str, site: str) -> None:
                raise OSError(errno.EIO, "late")

        async def main() -> None:
            async with ScriptedMx().running() as mx:
                recorder = Recorder(mx.port, effects=Late())
                recorder.open()
                assert len(await recorder.told_count(1)) == 1
                await recorder.outbound.wait_idle()
                assert recorder.count(ConnectionFailed) == 1

        run(main(), loop_factory)

    def test_a_connection_that_comes_too_late(self):
        """A transport that is made after the connection was given up is aborted at once."""

        class Transport(asyncio.Transport):
            aborted = False

            def write(self, data: object) -> None:
                raise AssertionError("nothing is said on it")

            def abort(self) -> None:
                self.aborted = True

        class Slow(Effects):
            factory: Any = None

            async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
                self.factory = protocol_factory
                await asyncio.Event().wait()

        async def main() -> None:
            effects = Slow()
            recorder = Recorder(25, effects=effects)
            recorder.open()
            await asyncio.sleep(0)
            recorder.outbound.abort_all()
            transport = Transport()
            protocol = effects.factory()
            protocol.connection_made(transport)
            assert transport.aborted
            protocol.data_received(b"220 hello\r\n")
            protocol.eof_received()
            protocol.connection_lost(None)
            assert recorder.told == [ConnectionFailed(S1, STOPPED)]
            await recorder.outbound.wait_idle()

        run(main())

    def test_our_own_mistake_is_told_and_reported(self):
        """A bug in connecting is no silence: the connection fails, and the loop hears of the bug."""

        class Buggy(Effects):
            async def apoint(self, op: str, site: str) -> None:
                raise ZeroDivisionError

        async def main() -> None:
            mistakes: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: mistakes.append(context.get("exception"))
            )
            recorder = Recorder(25, effects=Buggy())
            recorder.open()
            assert await recorder.told_count(1) == [ConnectionFailed(S1, LOCAL_FAULT)]
            await recorder.outbound.wait_idle()
            assert [type(mistake) for mistake in mistakes] == [ZeroDivisionError]

        run(main())

    def test_errors_in_words(self):
        """What the network says is passed on, without numbers."""
        assert (
            network_error(ConnectionRefusedError(errno.ECONNREFUSED, "x")) == "Connection refused"
        )
        assert network_error(TimeoutError()) == CONNECT_TIMED_OUT
        assert network_error(OSError("Multiple exceptions")) == LOCAL_FAULT
        assert network_error(OSError(errno.EIO, "/var/secret")) == LOCAL_FAULT


class TestEnding:
    @pytest.mark.parametrize("loop_factory", LOOPS)
    @pytest.mark.parametrize("stage", ["connect", *STAGES])
    def test_abort_at_every_stage(self, loop_factory, stage, fds):
        """Stopping at once tells each due answer once, before `abort_all` returns."""

        class Stuck(Effects):
            async def apoint(self, op: str, site: str) -> None:
                if stage == "connect":
                    await asyncio.Event().wait()

        async def main() -> None:
            answers: dict[str, Any] = {stage: "hang"} if stage != "connect" else {}
            if stage == "rset":
                answers["rcpt"] = b"550 no\r\n"
            async with ScriptedMx(**answers).running() as mx:
                recorder = Recorder(mx.port, effects=Stuck())

                def react(stimulus: object) -> None:
                    if isinstance(stimulus, ConnectionReady):
                        recorder.send()
                    elif isinstance(stimulus, TransactionDone) and stimulus.usable:
                        recorder.outbound.close(S1)

                recorder.react = react
                recorder.open()
                if stage != "connect":
                    await mx.reached(stage)
                recorder.outbound.abort_all()
                told = list(recorder.told)
                recorder.outbound.abort_all()
                assert recorder.outbound.sessions == {}
                await recorder.outbound.wait_idle()
                assert told == recorder.told, "nothing is told afterwards"
                if stage in ("connect", "banner", "ehlo"):
                    assert told == [ConnectionFailed(S1, STOPPED)]
                else:
                    kinds = [ConnectionReady, TransactionDone, ConnectionClosed]
                    assert kinds == [type(stimulus) for stimulus in told]
                    assert told[2] == ConnectionClosed(S1, STOPPED)
                    assert recorder.outbound.stats.ambiguous == (stage == "dot")

        run(main(), loop_factory)

    def test_quit_is_bounded(self):
        """A server that does not answer QUIT is left after a short while."""

        async def main() -> None:
            async with ScriptedMx(quit="hang").running() as mx:
                recorder = Recorder(mx.port, timeouts=Timeouts(quit=0.1))
                recorder.react = lambda stimulus: (
                    isinstance(stimulus, ConnectionReady) and recorder.outbound.close(S1)
                )
                recorder.open()
                assert await recorder.told_count(2) == [
                    ConnectionReady(S1),
                    ConnectionClosed(S1, TIMED_OUT),
                ]

        run(main())

    def test_close_while_connecting(self):
        """A connection that is not wanted any more fails, and is not told to be closed."""

        async def main() -> None:
            async with ScriptedMx(banner="hang").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                recorder.outbound.close(S1)
                assert recorder.told == [], "not from inside close"
                assert await recorder.told_count(1) == [ConnectionFailed(S1, STOPPED)]
                await recorder.outbound.wait_idle()

        run(main())

    def test_close_during_a_transaction_lets_it_end(self):
        """The transaction's result comes first, then the end."""

        async def main() -> None:
            async with ScriptedMx(pipelining=True).running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                await recorder.told_count(1)
                assert recorder.send()
                recorder.outbound.close(S1)
                _, done, closed = await recorder.told_count(3)
                assert isinstance(done, TransactionDone)
                assert (done.results[0].outcome, done.usable) == (OK, False)
                assert closed == ConnectionClosed(S1, "quit")

        run(main())

    def test_commands_to_a_connection_that_is_gone(self):
        """`start` says so and `close` does nothing: `on_closed` has been called."""

        async def main() -> None:
            async with ScriptedMx(ehlo=b"250 x\r\n421 bye\r\n").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                told = await recorder.told_count(2)
                assert told == [ConnectionReady(S1), ConnectionClosed(S1, "421 bye")]
                assert not recorder.send()
                recorder.outbound.close(S1)
                await recorder.outbound.wait_idle()
                assert len(recorder.told) == 2

        run(main())

    def test_commands_from_within_the_last_callbacks(self):
        """A driver that reacts to an unusable connection with `close` or `start` is told once."""

        async def main() -> None:
            async with ScriptedMx(mail=b"421 no\r\n").running() as mx:
                recorder = Recorder(mx.port)
                restarted: list[bool] = []

                def react(stimulus: object) -> None:
                    if isinstance(stimulus, ConnectionReady):
                        recorder.send()
                    else:
                        restarted.append(recorder.send())
                        recorder.outbound.close(S1)
                        recorder.outbound.abort_all()

                recorder.react = react
                recorder.open()
                await recorder.told_count(3)
                await recorder.outbound.wait_idle()
                kinds = [ConnectionReady, TransactionDone, ConnectionClosed]
                assert kinds == [type(stimulus) for stimulus in recorder.told]
                assert restarted == [False, False]

        run(main())


def test_a_driver_that_raises_is_still_told_of_the_end():
    """A mistake of the driver's cannot leave a connection in its books for ever."""

    async def main() -> None:
        async with ScriptedMx(mail=b"421 no\r\n").running() as mx:
            recorder = Recorder(mx.port)
            mistakes: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: mistakes.append(context.get("exception"))
            )

            def react(stimulus: object) -> None:
                if isinstance(stimulus, ConnectionReady):
                    recorder.send()
                elif isinstance(stimulus, TransactionDone):
                    raise ZeroDivisionError

            recorder.react = react
            recorder.open()
            await recorder.told_count(3)
            await recorder.outbound.wait_idle()
            assert recorder.outbound.sessions == {}
            assert [type(mistake) for mistake in mistakes] == [ZeroDivisionError]

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        run(main(), loop_factory)


class TestLocalRefusal:
    def test_is_told_later_and_the_connection_stays(self):
        """A message that the peer cannot take is refused without a byte, but not from `start`."""

        async def main() -> None:
            async with ScriptedMx(ehlo=b"250-x\r\n250 SIZE 10\r\n").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                await recorder.told_count(1)
                assert recorder.send()
                assert len(recorder.told) == 1
                assert not recorder.send(), "one at a time"
                recorder.outbound.close(S1)
                _, done, closed = await recorder.told_count(3)
                assert isinstance(done, TransactionDone)
                assert [(PERMFAIL, TOO_LARGE)] == [(r.outcome, r.status) for r in done.results]
                assert closed == ConnectionClosed(S1, "quit")
                assert not any(line.startswith(b"MAIL") for line in mx.lines)

        run(main())

    def test_that_was_not_told_when_the_connection_ends(self):
        """The transaction is still answered once."""

        async def main() -> None:
            async with ScriptedMx(ehlo=b"250-x\r\n250 SIZE 10\r\n").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                await recorder.told_count(1)
                assert recorder.send(count=2)
                recorder.outbound.abort_all()
                await recorder.outbound.wait_idle()
                _, done, closed = recorder.told
                assert isinstance(done, TransactionDone)
                assert len(done.results) == 2
                assert closed == ConnectionClosed(S1, STOPPED)

        run(main())


def test_rows_show_what_each_connection_does():
    """The table has address, state and message of each connection, connecting ones too."""

    async def main() -> None:
        async with ScriptedMx(dot="hang").running() as mx:
            recorder = Recorder(mx.port)
            recorder.open()
            (row,) = recorder.outbound.rows()
            assert (row.session, row.state, row.host) == (S1, "connecting", "mx.test")
            await recorder.told_count(1)
            assert recorder.outbound.rows()[0].state == "ready"
            recorder.send()
            await mx.reached("dot")
            (row,) = recorder.outbound.rows()
            assert (row.state, row.msgid, row.messages) == ("dot", M1, 0)
            assert (row.domain, row.address, row.source) == ("example.org", "127.0.0.1", "")
            recorder.outbound.abort_all()
            assert recorder.outbound.rows() == []
            await recorder.outbound.wait_idle()

    run(main())


def test_no_delay():
    """Small writes leave at once: Nagle's algorithm would cost 40 ms per command."""

    async def main() -> None:
        async with ScriptedMx().running() as mx:
            recorder = Recorder(mx.port)
            recorder.open()
            await recorder.told_count(1)
            transport = recorder.outbound.sessions[S1]._transport
            assert transport is not None
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            recorder.outbound.abort_all()
            await recorder.outbound.wait_idle()

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        run(main(), loop_factory)


def test_one_timer_per_connection():
    """A hundred messages arm the deadline a few times, not for each command."""

    async def main() -> None:
        async with ScriptedMx(pipelining=True).running() as mx:
            recorder = Recorder(mx.port)
            armed = 0
            loop = asyncio.get_running_loop()
            call_at = loop.call_at

            def counted(*args: Any, **options: Any) -> asyncio.TimerHandle:
                nonlocal armed
                armed += 1
                return call_at(*args, **options)

            loop.call_at = counted  # type: ignore[method-assign]
            left = 100

            def react(stimulus: object) -> None:
                nonlocal left
                left -= 1
                if left:
                    recorder.send()
                else:
                    recorder.outbound.close(S1)

            recorder.react = react
            recorder.open()
            await recorder.told_count(101)
            await recorder.outbound.wait_idle()
            assert armed <= 10

    run(main(), asyncio.new_event_loop)
