"""The outgoing log alone tells every attempt: compared with what the server was told, and with what hosts took."""

import time
from pathlib import Path
from typing import Any

import pytest

from mta.core import records
from mta.core.ids import SessionId, show_evpid, show_session
from mta.core.reply import OUTCOME_WORDS
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    MessageSubmitted,
    TransactionDone,
)
from testbed.maillog import MailLog, read_log
from testbed.world.handle import World
from tests.support.server import RunningServer
from tests.system.test_relay import Net

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SOURCE = "127.0.0.77"
NOT_OURS = "192.0.2.77"
"""No address of any interface: nothing can be sent from there, and nothing is."""
WORLD = """
name = "log"
[load]
messages = 1
[[destinations]]
name = "accept"
domain = "accept.test"
hosts = 2
[[destinations]]
name = "sender"
domain = "sender.test"
[[destinations]]
name = "grey"
domain = "grey.test"
behaviours = [{ kind = "greylist", wait_s = 1.0 }]
[[destinations]]
name = "full"
domain = "full.test"
behaviours = [{ kind = "limit-connections", max = 1 }, { kind = "latency", delay_s = 0.2 }]
[[destinations]]
name = "banner"
domain = "banner.test"
behaviours = [{ kind = "reject", verb = "CONNECT", code = 421, enhanced = "4.3.2", text = "Not now" }]
[[destinations]]
name = "quits"
domain = "quits.test"
behaviours = [{ kind = "reject", verb = "MAIL", code = 421, enhanced = "4.3.2", text = "Bye" }]
[[destinations]]
name = "never"
domain = "never.test"
behaviours = [{ kind = "reject", code = 550, enhanced = "5.1.1", text = "No \\"such\\" user" }]
[[destinations]]
name = "dead"
domain = "dead.test"
behaviours = [{ kind = "dead" }]
[[destinations]]
name = "slow"
domain = "slow.test"
behaviours = [{ kind = "latency", delay_s = 0.5 }]
[[destinations]]
name = "nodomain"
domain = "nodomain.test"
behaviours = [{ kind = "dns", answer = "nxdomain" }]
"""
NAMES = ["accept", "grey", "full", "banner", "quits", "never", "dead", "slow", "nodomain"]


def told(trace: Path) -> tuple[list[tuple[Any, float]], dict[str, float]]:
    """Return the stimuli of a run with their instants, and when each message came."""
    with trace.open("rb") as file:
        read = records.parse(file)
        stimuli = [records.from_record(r) for r in read.records if r["k"] in records.STIMULI]
    came = {f"{s.msgid:08x}": t for s, t in stimuli if isinstance(s, MessageSubmitted)}
    return stimuli, came


def results_of(
    stimuli: list[tuple[Any, float]],
) -> dict[tuple[str, str], list[tuple[str, str, float]]]:
    """Return what transactions came to, by session and envelope: result, reply, instant."""
    found: dict[tuple[str, str], list[tuple[str, str, float]]] = {}
    for stimulus, t in stimuli:
        if isinstance(stimulus, TransactionDone):
            for result in stimulus.results:
                key = show_session(stimulus.session), show_evpid(result.evpid)
                found.setdefault(key, []).append((OUTCOME_WORDS[result.outcome], result.status, t))
    return found


def check_attempts(log: MailLog, stimuli: list[tuple[Any, float]], came: dict[str, float]) -> None:
    """Compare what the log says of transactions with what the server was told of them."""
    wanted = results_of(stimuli)
    seen: dict[tuple[str, str], list[tuple[str, str, float]]] = {}
    for evpid, attempts in log.attempts.items():
        assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
        for attempt in attempts:
            assert abs(attempt.t - attempt.delay_s - came[evpid[:8]]) <= 2.0, attempt
            if not attempt.session:
                continue
            session = log.sessions[attempt.session]
            assert (session.address, session.host) == (attempt.address, attempt.host)
            assert session.connected_at is not None
            assert session.connecting_at <= session.connected_at <= attempt.t
            key = attempt.session, evpid
            instant = wanted[key][len(seen.get(key, []))][2]
            assert abs(attempt.t - instant) <= 1.0, attempt
            seen.setdefault(key, []).append((attempt.result, attempt.status, instant))
    assert wanted == seen


def check_sessions(log: MailLog, stimuli: list[tuple[Any, float]]) -> None:
    """Compare connections: those that failed with their reason, those that worked with their end."""
    ready: set[SessionId] = set()
    sessions: set[str] = set()
    for stimulus, t in stimuli:
        if isinstance(stimulus, ConnectionReady):
            ready.add(stimulus.session)
        elif isinstance(stimulus, ConnectionFailed | ConnectionClosed):
            session = log.sessions[show_session(stimulus.session)]
            sessions.add(session.session)
            assert session.ended_at is not None
            assert abs(session.ended_at - t) <= 1.0
            if isinstance(stimulus, ConnectionFailed):
                assert stimulus.session not in ready
                assert [stimulus.reason] == session.errors
            else:
                assert ([] if stimulus.reason == "quit" else [stimulus.reason]) == session.errors
    assert sessions == set(log.sessions)


def test_every_attempt_is_in_the_log(tmp_path):
    """Host, reply, delay, result and source of each attempt; greylisted, 421, rejected, dead and slow."""
    world_file = tmp_path / "world.toml"
    world_file.write_text(WORLD)
    trace = tmp_path / "stimuli.jsonl"
    with World(world_file, record_dir=tmp_path / "world") as world:
        config: dict[str, Any] = {
            "relay": {"port": world.smtp_port, "tls": "none"},
            "relays": [
                {"domains": ["slow.test"], "sources": [SOURCE]},
                {"domains": ["accept.test"], "sources": [NOT_OURS, SOURCE]},
            ],
            "dns": {"nameserver": world.dns, "negative_ttl_s": 0.5, "ttl_min_s": 0.1},
            "retry": {"policy": "exponential", "base_s": 1.0, "min_s": 0.5, "max_s": 1.5},
            "limits": {
                "mta": {
                    "session_keepalive_s": 0.5,
                    "route_delay_base_s": 0.5,
                    "route_delay_max_s": 1.0,
                }
            },
            "log": {"stimuli": str(trace)},
        }
        with RunningServer(tmp_path / "server", config) as server:
            at = Net(world, server)
            world.set_start()
            for number in range(4):
                for name in NAMES:
                    at.send(
                        f"me{number}@sender.test",
                        f"a{number}@{name}.test",
                        f"b{number}@{name}.test",
                    )
            # What can arrive has arrived, and what can't was tried at least three times.
            server.until(
                lambda s: s["scheduler.delivery.ok"] >= 8 * 4 + 8,
                60.0,
            )
            deadline = time.monotonic() + 30
            while any(row["attempts"] < 3 for row in server.ask("show", "queue")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            routes = server.ask("show", "routes")
            server.ask("remove", "all")
            counts = at.drained()
            assert 0 == server.stop()
            assert "" == server.errors
            text = server.log.read_text()
        world.stop()
        taken = at.records()
    log = read_log(text.splitlines(), year=time.localtime().tm_year)
    assert [] == log.unread
    stimuli, came = told(trace)
    check_attempts(log, stimuli, came)
    check_sessions(log, stimuli)

    # Nothing was tried without a line, and nothing has a line that was not tried.
    attempts = [attempt for each in log.attempts.values() for attempt in each]
    for result, counter in (("Ok", "ok"), ("TempFail", "tempfail"), ("PermFail", "permfail")):
        assert counts[f"scheduler.delivery.{counter}"] == sum(a.result == result for a in attempts)
    assert counts["scheduler.envelope.removed"] == len(log.ends)

    # What hosts took is what the log says that they took.
    ok = sorted((a.address, a.to) for a in attempts if a.result == "Ok")
    assert ok == sorted((record["address"], rcpt) for record in taken for rcpt in record["rcpts"])

    # Each destination's own story.
    by_domain = {name: [a for a in attempts if a.to.endswith(f"@{name}.test")] for name in NAMES}
    assert {"Ok"} == {a.result for a in by_domain["accept"]}
    assert {"TempFail", "Ok"} == {a.result for a in by_domain["grey"]}
    assert {'550 5.1.1 No "such" user'} == {a.status for a in by_domain["never"]}
    assert {"", SOURCE} == {a.source for a in attempts}
    assert {SOURCE} == {a.source for name in ("slow", "accept") for a in by_domain[name]}
    assert SOURCE in {row["source"] for row in routes}
    for name, reply in (("banner", "421 4.3.2 Not now"), ("dead", "Connection refused")):
        assert {("TempFail", reply, "", f"{name}.test")} == {
            (a.result, a.status, a.session, a.relay) for a in by_domain[name]
        }
    assert {"421 4.3.2 Bye"} == {a.status for a in by_domain["quits"]}
    assert {"550 5.1.2 Domain does not exist"} == {a.status for a in by_domain["nodomain"]}
    assert log.routes
    assert {("Failed to resolve MX for", "nodomain.test"), ("Error on", NOT_OURS)} == {
        (trouble.what, trouble.name.partition(" ")[0]) for trouble in log.troubles
    }
