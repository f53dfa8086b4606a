"""Reports of success and delay, gathered reports, and what becomes of them when things go wrong."""

import email
from email.message import Message
from typing import Any

import pytest

from mta.core.envelopes.base import WARNED_SHIFT, Flag
from mta.core.reply import Outcome
from mta.core.stimuli import ScheduleRequested, Selector
from tests.support.driver import LATER, NEVER, OK, Rig, Sent, rig
from tests.support.faults import FaultyEffects, Plan, disk_full

HOUR = 3600.0
ASKED: dict[str, Any] = {
    "notify": "SUCCESS,FAILURE,DELAY",
    "orcpt": "rfc822;Bob@two.test",
    "envid": "QQ+2B1",
    "ret": "FULL",
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch) -> None:
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)


def failing_commits() -> Plan:
    return Plan(1, error=disk_full, for_good=True, matches=lambda point: point.site == "commit")


def blocks(sent: Sent) -> list[Message]:
    """Return the fields of the message and of each recipient."""
    message = email.message_from_bytes(sent.body)
    assert "multipart/report" == message.get_content_type()
    _, status, returned = message.get_payload()  # type: ignore[misc]
    assert "text/rfc822-headers" == returned.get_content_type()  # type: ignore[union-attr]
    return status.get_payload()  # type: ignore[union-attr, return-value]


async def failing(it: Rig, attempts: int, step_s: float = HOUR) -> None:
    """Let as many attempts fail."""
    counts = it.engine.scheduler.counts
    for _ in range(attempts):
        before = counts.tempfail
        it.driver.tell(ScheduleRequested(Selector()))
        await it.until(lambda before=before: counts.tempfail > before)
        await it.advance(step_s)


class TestSuccess:
    async def test_it_is_reported_to_who_asks_for_it(self, tmp_path):
        """RFC 3461 6.3: relayed, with ENVID and ORCPT, and the header only whatever RET says (4.3)."""
        async with rig(tmp_path) as it:
            await it.submit(**ASKED)
            await it.until(lambda: it.bounces)
            await it.emptied()
            (bounce,) = it.bounces
            assert ["a@one.test"] == bounce.rcpts
            per_message, fields = blocks(bounce)
            assert "QQ+1" == per_message["Original-Envelope-Id"]
            assert "Tue, 14 Nov 2023 22:13:20 +0000" == per_message["Arrival-Date"]
            assert "rfc822; Bob@two.test" == fields["Original-Recipient"]
            assert ("relayed", "2.0.0") == (fields["Action"], fields["Status"])
            assert "smtp; 250 2.0.0 Ok" == fields["Diagnostic-Code"]
            assert [] == it.log.about("warn:")
            assert 1 == len(it.log.about("mta delivery", 'result="Ok"', "to=<b@two.test>"))
            assert 1 == len(it.log.about("bounce message=00000001", "kind=relayed"))

    async def test_a_host_that_knows_dsn_is_left_to_it(self, tmp_path):
        """It was told NOTIFY: no report from here."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: (*OK, True)  # type: ignore[return-value]
            await it.submit(**ASKED)
            await it.emptied()
            assert [] == it.bounces
            options = it.out.sent[0].envelopes[0][1].options
            assert ("RET=FULL", "ENVID=QQ+2B1", f"RCPT:NOTIFY={ASKED['notify']}") == options[:3]

    async def test_it_is_not_delivered_again_for_want_of_a_report(self, tmp_path):
        """The queue can't write the report: that is lost, the mail is not repeated."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: None
            await it.submit(notify="SUCCESS")
            await it.until(lambda: it.out.waiting)
            effects.plan = failing_commits()
            it.out.answer = lambda rcpt: OK
            it.out.finish(next(iter(it.out.waiting)))
            await it.until(lambda: it.log.about("injecting relayed report on message 00000001"))
            effects.heal()
            await it.until(lambda: it.queue.healthy)
            await it.advance(120.0)
            await it.emptied()
            assert 1 == len(it.out.sent)
            assert not len(it.driver.restorer)

    async def test_a_stop_in_the_middle_repeats_nothing(self, tmp_path):
        """The report waits for others of its message when the server is stopped at once."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "b@two.test" else None
            await it.submit("b@two.test", "c@three.test", notify="SUCCESS")
            await it.until(lambda: it.driver.bouncer.messages)
            await it.driver.stop()
            await it.queue.flush()
            assert ["c@three.test"] == [e.recipient.address for e in it.queue.page()] or (
                1 == it.driver.bouncer.submitted
            )


class TestGathering:
    async def test_failures_within_a_second_are_one_report(self, tmp_path):
        """Of different hosts, in different transactions; the third comes too late."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else None
            await it.submit("b@two.test", "c@three.test", "d@four.test")
            await it.until(lambda: len(it.out.waiting) == 3)
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else NEVER
            first, second, third = list(it.out.waiting)
            it.out.finish(first)
            await it.settle()
            await it.advance(0.5)
            it.out.finish(second)
            await it.settle()
            assert 1 == it.driver.bouncer.messages
            assert 2 == it.driver.bouncer.envelopes
            assert not it.driver.is_quiet()
            await it.advance(0.5)
            await it.until(lambda: it.bounces)
            it.out.finish(third)
            await it.until(lambda: len(it.bounces) == 2)
            await it.emptied()
            assert [3, 2] == [len(blocks(bounce)) for bounce in it.bounces]

    async def test_the_last_recipient_is_not_waited_for(self, tmp_path):
        """When nothing else of the message is left its report goes at once."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else NEVER
            await it.submit("b@two.test", "c@three.test")
            await it.emptied()
            (bounce,) = it.bounces
            assert 3 == len(blocks(bounce))

    async def test_a_report_has_a_largest_size(self, tmp_path):
        """bounce.max_recipients in one; what is left makes another."""
        async with rig(tmp_path, bounce={"max_recipients": 2}) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else NEVER
            await it.submit(*[f"no{n}@two.test" for n in range(5)])
            await it.emptied()
            assert [3, 3, 2] == sorted((len(blocks(b)) for b in it.bounces), reverse=True)

    async def test_the_header_in_it_is_bounded(self, tmp_path):
        """bounce.max_header; and bounce.max_size bounds what RET=FULL returns."""
        body = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 70) for n in range(100)) + b"\r\nhello\r\n"
        bounce_settings = {"max_header": 500, "max_size": 5000}
        async with rig(tmp_path, bounce=bounce_settings) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else NEVER
            await it.submit(body=body, ret="FULL")
            await it.emptied()
            (bounce,) = it.bounces
            assert len(bounce.body) < 2500
            assert b"X-5:" in bounce.body
            assert b"X-6:" not in bounce.body

    async def test_a_drain_does_not_wait_for_more(self, tmp_path):
        """What was gathered goes when the server stops; nothing is lost."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER if rcpt == "b@two.test" else None
            await it.submit("b@two.test", "c@three.test")
            await it.until(lambda: it.driver.bouncer.messages)
            it.driver.drain()
            await it.until(lambda: it.driver.bouncer.submitted)
            assert {"a@one.test", "c@three.test"} == {e.recipient.address for e in it.queue.page()}

    async def test_what_waits_comes_back_if_it_can_not_be_written(self, tmp_path):
        """All of the gathered failures, and each is reported once in the end."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else None
            await it.submit("b@two.test", "c@three.test")
            await it.until(lambda: len(it.out.waiting) == 2)
            effects.plan = failing_commits()
            it.out.answer = lambda rcpt: OK if rcpt == "a@one.test" else NEVER
            for session in list(it.out.waiting):
                it.out.finish(session)
            await it.until(lambda: it.log.about("injecting failure report", "for 2 envelopes"))
            await it.until(lambda: len(it.engine.store) == 2)
            effects.heal()
            await it.until(lambda: it.queue.healthy)
            await it.advance(120.0)
            await it.emptied()
            assert [3] == [len(blocks(bounce)) for bounce in it.bounces]


class TestDelay:
    async def test_a_sender_is_warned_once(self, tmp_path):
        """RFC 3464 2.3.3: delayed, class 4, and until when it is tried. The envelope stays."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER if rcpt == "b@two.test" else OK
            await it.submit(envid="QQ1")
            await failing(it, 7)
            (bounce,) = it.bounces
            per_message, fields = blocks(bounce)
            assert "QQ1" == per_message["Original-Envelope-Id"]
            assert ("delayed", "4.3.0") == (fields["Action"], fields["Status"])
            assert "Sat, 18 Nov 2023 22:13:20 +0000" == fields["Will-Retry-Until"]
            assert b"need not do anything" in bounce.body
            assert 1 == len(it.engine.store)
            it.out.answer = lambda rcpt: OK
            it.driver.tell(ScheduleRequested(Selector()))
            await it.emptied()
            assert 1 == len(it.bounces)

    async def test_it_stays_once_over_a_restart(self, tmp_path):
        """The flags are in the queue."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER if rcpt == "b@two.test" else OK
            await it.submit()
            await failing(it, 5)
            await it.until(lambda: it.bounces)
            await it.queue.flush()
            (stored,) = [e for e in it.queue.page() if e.transaction.sender]
            assert 1 << WARNED_SHIFT == stored.flags
        async with rig(tmp_path) as it:
            it.clock.wall += 6 * HOUR
            it.out.answer = lambda rcpt: LATER
            await it.driver.restore()
            await failing(it, 3)
            assert [] == it.bounces
            it.out.answer = lambda rcpt: OK
            it.driver.tell(ScheduleRequested(Selector()))
            await it.emptied()

    async def test_several_times_if_the_operator_says_so(self, tmp_path):
        """bounce.warn_interval_s has up to four values; without any nobody is warned."""
        for values, expected in (([HOUR, 3 * HOUR], 2), ([], 0)):
            directory = tmp_path / str(expected)
            directory.mkdir()
            async with rig(directory, bounce={"warn_interval_s": values}) as it:
                it.out.answer = lambda rcpt: LATER if rcpt == "b@two.test" else OK
                await it.submit()
                await failing(it, 6)
                assert expected == len(it.bounces)
                it.out.answer = lambda rcpt: OK
                it.driver.tell(ScheduleRequested(Selector()))
                await it.emptied()

    async def test_a_warning_that_can_not_be_written_is_none(self, tmp_path):
        """It is logged; the envelope is where it was, and is not tried for that."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit()
            await failing(it, 4)
            effects.plan = failing_commits()
            await failing(it, 1)
            await it.until(lambda: it.log.about("injecting delayed report on message 00000001"))
            assert 1 == len(it.engine.store)
            assert 0 == it.driver.bouncer.messages
            effects.heal()
            await it.until(lambda: it.queue.healthy)
            it.out.answer = lambda rcpt: OK
            it.driver.tell(ScheduleRequested(Selector()))
            await it.emptied()
            assert [] == it.bounces

    async def test_never_of_a_report(self, tmp_path):
        """A DSN that can't be delivered warns nobody, even if an older server wrote its flags."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit(sender="")
            (handle,) = it.engine.store
            assert it.engine.store.flags_of(handle) & Flag.NO_WARNING
            it.engine.store.set_flags(handle, int(Flag.NO_BOUNCE))
            await failing(it, 6)
            assert 0 == it.driver.bouncer.submitted
            it.out.answer = lambda rcpt: (Outcome.PERMFAIL, "550 5.1.1 no")
            it.driver.tell(ScheduleRequested(Selector()))
            await it.emptied()
            assert 0 == it.driver.bouncer.submitted


class TestHostile:
    async def test_a_thousand_unknown_recipients_are_one_report(self, tmp_path):
        """With a forged sender: what comes back is one message, and not worth the trouble (reports are bounded)."""
        body = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" * 5000
        async with rig(tmp_path, limits={"mta": {"max_rcpt_per_task": 1000}}) as it:
            it.out.answer = lambda rcpt: OK if rcpt == "victim@one.test" else NEVER
            rcpts = [f"no{n}@two.test" for n in range(1000)]
            await it.submit(*rcpts, sender="victim@one.test", body=body, ret="FULL")
            await it.emptied()
            (bounce,) = it.bounces
            assert 1001 == len(email.message_from_bytes(bounce.body).get_payload()[1].get_payload())  # type: ignore[union-attr, index]
            commands = sum(len(f"RCPT TO:<{rcpt}>\r\n") for rcpt in rcpts)
            assert len(bounce.body) < 10 * (commands + len(body))

    async def test_a_hosts_words_stay_in_their_field(self, tmp_path):
        """Line ends, other fields and other parts in a reply, in every kind of report (CVE-2020-8794)."""
        evil = (
            "2.0.0 ok\r\nBcc: all@one.test\r\n\r\n--=_x\r\nContent-Type: text/html\x1b[2J\x00"
            + "x" * 9999
        )
        for code, outcome in (("250", Outcome.OK), ("550", Outcome.PERMFAIL)):
            directory = tmp_path / code
            directory.mkdir()
            async with rig(directory) as it:
                verdict = (outcome, f"{code} {evil}")
                it.out.answer = lambda rcpt, verdict=verdict: (
                    OK if rcpt == "a@one.test" else verdict
                )
                await it.submit(notify="SUCCESS,FAILURE", orcpt="rfc822;a+0Db")
                await it.emptied()
                (bounce,) = it.bounces
                assert bounce.body.isascii()
                assert len(bounce.body) < 5000
                message = email.message_from_bytes(bounce.body)
                assert "Bcc" not in message
                assert 3 == len(message.get_payload())
                _, fields = blocks(bounce)
                assert {"Action", "Status", "Final-Recipient", "Original-Recipient"} < set(
                    fields.keys()
                )
                assert "Bcc" not in fields
