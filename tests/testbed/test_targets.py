"""Other servers as targets: what is read out of their queues and logs, and what is said when they can't run."""

import os
import socket
import threading
from pathlib import Path

import pytest

from testbed import packages
from testbed.children import UsageError
from testbed.sampler import usage_of, usage_of_tree
from testbed.targets import apart, choice, exim, opensmtpd, postfix
from testbed.targets.apart import private_network
from testbed.targets.base import Owed
from testbed.targets.peer import Pace, pace_of

POSTFIX_LOG = """\
Nov 22 19:39:39 relay postfix/smtp[137]: 4jXfXp6JXdzKX3R: to=<u3@a.test>, relay=mx0.a.test[127.0.10.1]:25, delay=0.14, \
delays=0/0.11/0.02/0.01, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued)
Nov 22 19:39:40 relay postfix/smtp[137]: 4jXfXp6JXdzKX3S: to=<no@a.test>, relay=mx0.a.test[127.0.10.1]:25, delay=0.1, \
delays=0/0/0.1/0, dsn=5.1.1, status=bounced (host mx0.a.test[127.0.10.1] said: 550 5.1.1 status=sent (in reply to RCPT TO command))
Nov 22 19:39:41 relay postfix/smtp[138]: 4jXfXp6JXdzKX3T: to=<late@a.test>, orig_to=<alias@a.test>, relay=none, delay=9, \
delays=9/0/0/0, dsn=4.4.1, status=deferred (connect to mx0.a.test[127.0.10.1]:25: Connection refused)
Nov 22 19:39:41 relay postfix/smtp[138]: 4jXfXp6JXdzKX3T: to=<well@a.test>, relay=none, delay=9, delays=9/0/0/0, dsn=4.4.1, \
status=deferred (connect to mx0.a.test[127.0.10.1]:25: Connection refused)
Nov 22 19:39:42 relay postfix/smtp[138]: 4jXfXp6JXdzKX3T: to=<well@a.test>, relay=mx0.a.test[127.0.10.1]:25, delay=10, \
delays=9/0/0/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)
Nov 22 19:39:43 relay postfix/qmgr[132]: 4jXfXp6JXdzKX3T: from=<me@a.test>, status=expired, returned to sender
"""

POSTFIX_QUEUE = (
    '{"queue_name": "deferred", "queue_id": "4jXfXp6JXdzKX3T", "arrival_time": 1, "message_size": 1, "sender": "me@a.test",'
    ' "recipients": [{"address": "a@b.test", "delay_reason": "x"}, {"address": "c@d.test"}]}'
)

EXIM_LOG = """\
2026-11-22 19:41:00 1xVDQo-000005-1x => u0@a.test R=world T=remote_smtp H=mx1.a.test [127.0.10.2] C="250 2.0.0 Ok: queued"
2026-11-22 19:41:00 1xVDQo-000005-1y ** no@a.test R=world T=remote_smtp H=mx1.a.test [127.0.10.2]: SMTP error from \
remote mail server after RCPT TO:<no@a.test>: 550 5.1.1 No such user
2026-11-22 19:41:00 1xVDQo-000005-20 ** real@a.test <alias@a.test> R=world T=remote_smtp: retry timeout exceeded
2026-11-22 19:41:00 1xVDQo-000005-1y Completed
"""

EXIM_QUEUE = """\
 0m   341 1xVDQo-000005-1x <me@a.test>
          u0@a.test
          u1@b.test

 3m  1.2K 1xVDQo-000005-1y <>  *** frozen ***
          me@a.test

"""

SMTPD_QUEUE = """\
4a4de3140c5f1f2e|inet4|mta||me@a.test|u0@a.test|u0@a.test|1795375534|1795721134|0|2|pending|398|No MX found for domain
62f48acf1d7b3a90|inet4|mta||me@a.test|v2@b.test|v2@b.test|1795375534|1795721134|0|0|inflight|0|
"""


def test_postfix_says_what_it_gave_up() -> None:
    """Bounced, or deferred when its message expired; what was delivered in between is not."""
    assert list(postfix.given_up(POSTFIX_LOG.splitlines())) == [
        Owed("4jXfXp6JXdzKX3S", "no@a.test"),
        Owed("4jXfXp6JXdzKX3T", "alias@a.test"),
    ]


def test_postfix_says_what_it_still_has() -> None:
    assert list(postfix.listed([POSTFIX_QUEUE])) == [
        Owed("4jXfXp6JXdzKX3T", "a@b.test"),
        Owed("4jXfXp6JXdzKX3T", "c@d.test"),
    ]


def test_exim_says_what_it_gave_up() -> None:
    """By the address that it was asked to deliver to."""
    assert list(exim.given_up(EXIM_LOG.splitlines())) == [
        Owed("1xVDQo-000005-1y", "no@a.test"),
        Owed("1xVDQo-000005-20", "alias@a.test"),
    ]


def test_exim_says_what_it_still_has() -> None:
    assert list(exim.listed(EXIM_QUEUE.splitlines())) == [
        Owed("1xVDQo-000005-1x", "u0@a.test"),
        Owed("1xVDQo-000005-1x", "u1@b.test"),
        Owed("1xVDQo-000005-1y", "me@a.test"),
    ]


def test_opensmtpd_says_what_it_still_has() -> None:
    assert list(opensmtpd.listed(SMTPD_QUEUE.splitlines())) == [
        Owed("4a4de314", "u0@a.test"),
        Owed("62f48acf", "v2@b.test"),
    ]


def test_counters_are_numbers() -> None:
    lines = ["scheduler.envelope=12", "uptime=3", "uptime.human=3s", "nonsense"]
    assert dict(opensmtpd.counters(lines)) == {"scheduler.envelope": 12.0, "uptime": 3.0}


@pytest.mark.parametrize(
    ("retry", "pace"),
    [
        (None, None),
        ({"policy": "quadratic", "base_s": 2.0}, Pace(2, 10)),
        ({"base_s": 0.2}, Pace(1, 1)),
        ({"policy": "exponential", "base_s": 1.5, "max_s": 20.0}, Pace(2, 20)),
        ({"policy": "age-clamped", "min_s": 5.0, "max_s": 60.0}, Pace(5, 60)),
    ],
)
def test_the_pace_of_a_scenario_is_in_whole_seconds(retry: dict | None, pace: Pace | None) -> None:
    assert pace_of({"retry": retry} if retry else {}) == pace


def test_a_target_that_is_not_here_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_PEERS", str(tmp_path))
    monkeypatch.setattr(packages, "PROGRAM_OF", {"exim": "nowhere/exim"})
    assert choice.why_not("exim") == "exim is not here: testbed peers install exim"
    with pytest.raises(UsageError, match="testbed peers install exim"):
        choice.make_peer("exim", tmp_path / "run", overrides={}, nameserver="127.0.0.1")
    with pytest.raises(UsageError, match="there is no qmail; there are ours, postfix"):
        choice.why_not("qmail")
    assert choice.why_not("ours") == ""


def test_processes_that_end_meanwhile_do_not_matter() -> None:
    """One that is gone is nothing; if all are, there is nobody to measure."""
    gone = 2**22 - 1
    alone = usage_of([os.getpid()])
    both = usage_of_tree([gone, os.getpid()], reaped_s=100.0)
    assert both.memory.rss == pytest.approx(alone.memory.rss, rel=0.2)
    assert both.cpu_s >= alone.cpu_s + 100.0
    with pytest.raises(OSError, match="no process"):
        usage_of_tree([gone])


@pytest.mark.skipif(bool(apart.why_not()), reason=apart.why_not())
def test_a_private_network_has_its_own_ports_and_is_left_again() -> None:
    """Port 25 of its loopback is free, whoever has it outside; threads from before stay where they were."""
    before = Path("/proc/thread-self/ns/net").stat().st_ino
    try:
        with private_network():
            inside = Path("/proc/thread-self/ns/net").stat().st_ino
            with socket.create_server(("127.0.10.1", 25)) as server:
                accepted = threading.Thread(target=lambda: server.accept()[0].close())
                accepted.start()
                with socket.create_connection(("127.0.10.1", 25), timeout=5) as client:
                    assert client.recv(1) == b""
                accepted.join()
            devices = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
            assert [line.partition(":")[0].strip() for line in devices] == ["lo"]
    except UsageError as error:
        pytest.skip(str(error))
    assert inside != before
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before
