"""Outbound transactions against real sockets: every answer at every stage, large messages, long lines."""

import asyncio
from typing import Any

import pytest

from mta.core.ids import EvpId, SessionId, evpid
from mta.core.reply import Outcome
from mta.core.stimuli import ConnectionClosed, ConnectionFailed, ConnectionReady, TransactionDone
from mta.outbound import delivery_line, show_duration
from mta.smtpclient import CHUNK_BYTES, TIMED_OUT, Timeouts
from tests.support.scriptedmx import (
    LOOPS,
    M1,
    OK,
    PATIENCE_S,
    PERMFAIL,
    S1,
    STAGES,
    TEMPFAIL,
    Recorder,
    ScriptedMx,
    one_message,
    run,
)

pytestmark = pytest.mark.usefixtures("warm_loop")

ANSWERS: dict[str, bytes | str] = {
    "2xx": b"250 ok\r\n",
    "3xx": b"354 hm\r\n",
    "4xx": b"450 4.2.1 later\r\n",
    "5xx": b"550 5.1.1 never\r\n",
    "garbage": b"\x00\xff\x1b[2J garbage\r\n",
    "empty": b"\r\n",
    "eof": "eof",
    "rst": "rst",
    "hang": "hang",
}


def expected_outcome(stage: str, kind: str) -> Outcome | None:
    """Return the verdict for the only recipient; None if the connection never was ready."""
    if stage == "banner":
        return OK if kind == "2xx" else None
    if stage == "ehlo":
        return OK if kind in ("2xx", "5xx") else None
    if stage == "rset":
        return PERMFAIL  # the recipient had been refused before
    if stage == "quit":
        return OK
    if kind == "5xx":
        return PERMFAIL
    return OK if kind == ("3xx" if stage == "data" else "2xx") else TEMPFAIL


async def one_case(stage: str, kind: str, *, pipelining: bool) -> None:
    """Play one of the 72 cases of a hostile server and check all that was told."""
    answers: dict[str, Any] = {stage: ANSWERS[kind]}
    if stage == "rset":
        answers["rcpt"] = b"550 5.1.1 never\r\n"
        answers["data"] = b"503 5.5.1 no recipients\r\n"
    wait_s = 0.25 if kind == "hang" else PATIENCE_S
    async with ScriptedMx(pipelining=pipelining, **answers).running() as mx:
        recorder = Recorder(mx.port, timeouts=Timeouts(*[wait_s] * len(Timeouts())))
        await one_message(recorder)
    case = f"{stage} {kind} {pipelining}: {recorder.told}"
    outcome = expected_outcome(stage, kind)
    stats = recorder.outbound.stats
    if outcome is None:
        assert [ConnectionFailed] == [type(stimulus) for stimulus in recorder.told], case
        assert (stats.opened, stats.failed, stats.ready, stats.closed) == (1, 1, 0, 0), case
        return
    kinds = [ConnectionReady, TransactionDone, ConnectionClosed]
    assert kinds == [type(stimulus) for stimulus in recorder.told], case
    _, done, closed = recorder.told
    assert isinstance(done, TransactionDone)
    assert isinstance(closed, ConnectionClosed)
    assert [outcome] == [result.outcome for result in done.results], case
    assert evpid(M1, 1) == done.results[0].evpid
    assert done.results[0].status.isprintable(), case
    lost = kind in ("garbage", "empty", "eof", "rst", "hang")
    assert stats.ambiguous == (stage == "dot" and lost), case
    assert len(mx.messages) == (1 if outcome is OK or stage == "dot" else 0), case
    if stage == "quit":
        assert done.usable, case
        assert (closed.reason == "quit") == (not lost), case
    elif stage == "rset":
        assert done.usable == (kind == "2xx"), case
    else:
        # Anything but a well-formed refusal, or a success, has to cost the connection.
        assert done.usable == (outcome is not TEMPFAIL or kind == "4xx"), case
    assert any("mta disconnected reason=quit" in line for line in recorder.lines) == (
        closed.reason == "quit"
    ), case


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("pipelining", [False, True])
def test_every_answer_at_every_stage(loop_factory, pipelining, fds):
    """Nine answers at eight stages: classified, told once, and no descriptor stays."""

    async def main() -> None:
        cases = [
            one_case(stage, kind, pipelining=pipelining and stage != "ehlo")
            for stage in STAGES
            for kind in ANSWERS
        ]
        assert len(cases) == 72
        await asyncio.gather(*cases)

    run(main(), loop_factory)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_messages_on_a_kept_connection(loop_factory, fds):
    """Messages arrive byte for byte, one connection for all, logged as OpenSMTPD does."""

    async def main() -> None:
        async with ScriptedMx(pipelining=True).running() as mx:
            recorder = Recorder(mx.port)
            left = 3

            def react(stimulus: object) -> None:
                nonlocal left
                if isinstance(stimulus, ConnectionReady | TransactionDone):
                    if left:
                        left -= 1
                        assert recorder.send(count=2)
                    else:
                        recorder.outbound.close(S1)

            recorder.react = react
            recorder.open()
            told = await recorder.told_count(5)
            await recorder.outbound.wait_idle()
            assert told[-1] == ConnectionClosed(S1, "quit")
            assert mx.connections == 1
            assert mx.messages == [b"Subject: hello\r\n\r\n..world\r\n.\r\n"] * 3
            assert recorder.lines == [
                f"0000000000000001 mta connecting address=smtp://127.0.0.1:{mx.port} host=mx.test",
                "0000000000000001 mta connected",
                "0000000000000001 mta disconnected reason=quit messages=3",
            ]
            assert recorder.outbound.stats.transactions == 3

    run(main(), loop_factory)


def test_errors_are_logged_in_both_dialects():
    """Before and after the first message the lines differ, as in OpenSMTPD's mta_error."""

    async def main() -> None:
        async with ScriptedMx(quit=b"junk\r\n").running() as mx:
            recorder = Recorder(mx.port)
            await one_message(recorder)
            assert recorder.lines[-1] == (
                "smtp-out: Error on session 0000000000000001 after 1 message sent:"
                " Bad response: no reply code in 'junk'"
            )
        async with ScriptedMx(banner=b"554 no\r\n").running() as mx:
            recorder = Recorder(mx.port)
            await one_message(recorder)
            assert recorder.lines[-1] == "0000000000000001 mta error reason=554 no"

    run(main())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_large_messages_go_out_under_back_pressure(loop_factory):
    """A body of many chunks arrives whole, and the transport never holds much of it."""

    async def main() -> None:
        body = b"".join(b"%070d\r\n" % number for number in range(3 * CHUNK_BYTES // 72))
        received = bytearray()
        held: list[int] = []
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 x\r\n")
            for reply in (b"250 x\r\n", b"250 x\r\n", b"250 x\r\n", b"354 x\r\n"):
                await reader.readline()
                writer.write(reply)
            while not received.endswith(b"\r\n.\r\n"):
                received.extend(await reader.read(10_000))
                transport = recorder.outbound.sessions[S1]._transport
                held.append(transport.get_write_buffer_size())
            writer.write(b"250 x\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
            done.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        recorder = Recorder(server.sockets[0].getsockname()[1])
        recorder.react = lambda stimulus: (
            isinstance(stimulus, ConnectionReady) and recorder.send(body=body)
        )
        recorder.open()
        await recorder.told_count(2)
        assert recorder.told[1].results[0].outcome is OK  # type: ignore[attr-defined]
        assert bytes(received) == body + b".\r\n"
        assert max(held) <= 2 * CHUNK_BYTES
        recorder.outbound.abort_all()
        await recorder.outbound.wait_idle()
        await done.wait()
        server.close()
        await server.wait_closed()

    run(main(), loop_factory)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_peer_that_does_not_read_cannot_hold_a_connection(loop_factory, fds):
    """The deadline ends a body that nobody takes, and its memory is released at once."""

    async def main() -> None:
        async with ScriptedMx(deaf=True).running() as mx:
            recorder = Recorder(mx.port, timeouts=Timeouts(block=0.3, dot=PATIENCE_S))
            recorder.react = lambda stimulus: (
                isinstance(stimulus, ConnectionReady)
                and recorder.send(body=b"x" * 30_000_000 + b"\r\n")
            )
            recorder.open()
            _, done, closed = await recorder.told_count(3)
            assert isinstance(done, TransactionDone)
            assert [(TEMPFAIL, TIMED_OUT)] == [(r.outcome, r.status) for r in done.results]
            assert closed == ConnectionClosed(S1, TIMED_OUT)
            assert recorder.outbound.stats.ambiguous == 0
            await recorder.outbound.wait_idle()

    run(main(), loop_factory)


class TestLines:
    def test_delivery(self):
        """The line of OpenSMTPD's mta_delivery_log, with and without a connection."""
        line = delivery_line(
            SessionId(0xAB),
            EvpId(0x0000000100000002),
            sender="a@b",
            rcpt="c@d",
            source="",
            relay="127.0.0.1 (mx.d)",
            delay_s=93784.9,
            outcome=OK,
            status="250 2.0.0 ok",
        )
        assert line == (
            "00000000000000ab mta delivery evpid=0000000100000002 from=<a@b> to=<c@d> rcpt=<->"
            ' source="-" relay="127.0.0.1 (mx.d)" delay=1d2h3m4s result="Ok" stat="250 2.0.0 ok"'
        )

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0s"),
            (0.9, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3601, "1h1s"),
            (86400, "1d"),
            (-61, "-1m1s"),
        ],
    )
    def test_durations(self, seconds, text):
        """Parts that are 0 are left out."""
        assert show_duration(seconds) == text
