"""The server's own users in a run: what is made for them, what their command does, and what is counted."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mta.config import Config
from mta.core.settings import build
from sim.scenario import Scenario, parse
from sim.workload import Schedule, digest, draw, message_bytes
from testbed.children import RunError, UsageError
from testbed.ledger import read_lines
from testbed.localusers import LocalUsers

needs_perl = pytest.mark.skipif(shutil.which("perl") is None, reason="no perl")

SCENARIO = """
name = "local"
[load]
messages = 0
[load.sizes]
law = "fixed"
bytes = 2048
[[local]]
name = "flood"
users = 1
messages = 20
[[local]]
name = "others"
users = 2
messages = 3
delivery = "maildir"
domain = "DOMAIN"
[[destinations]]
name = "outside"
domain = "outside.test"
"""
RUN = "local-slim-1"
TRACE = b"Return-Path: <a@b.test>\nDelivered-To: %b\nReceived: from x; Sat, 26 Jan 2013 09:37:23 +0000\n"


def scenario(*overrides: str, domain: str = "local.test") -> Scenario:
    text = SCENARIO.replace("DOMAIN", domain)
    return parse(text.encode(), source="local.toml", overrides=overrides)


def made(directory: Path, of: Scenario) -> tuple[LocalUsers, Schedule]:
    schedule = draw(of)
    return LocalUsers(directory, of, schedule, run_id=RUN), schedule


def first_of(schedule: Schedule, name: str) -> tuple[int, str]:
    """Return the number of the first message for a group, and its recipient."""
    for i in range(len(schedule)):
        address = schedule.recipients(i)[0].address
        if address.startswith(name):
            return i, address
    raise AssertionError(name)


def deliver(users: LocalUsers, mail: bytes, recipient: str) -> int:
    """Run the command of the rule as the server does; return its exit status."""
    commands = [rule["command"] for rule in users.settings["rules"] if "command" in rule]
    environment = {"ORIGINAL_RECIPIENT": recipient}
    return subprocess.run(
        commands[0], input=mail, env=environment, timeout=20, check=False
    ).returncode


def mail_of(schedule: Schedule, i: int, recipient: str, *, run: str = RUN) -> bytes:
    return TRACE % recipient.encode() + message_bytes(schedule, i, run).replace(b"\r\n", b"\n")


@needs_perl
def test_rules_are_such_that_the_server_can_use(tmp_path: Path) -> None:
    """Two domains: one by command, one to Maildirs; the rest is relayed, as bounces are."""
    users, _ = made(tmp_path, scenario(domain="other.test"))
    config = build(Config, users.settings, source="bench")

    kinds = [(rule.match_domains, rule.delivery, rule.action) for rule in config.rules]
    assert kinds == [
        (["local.test"], "pipe", "local"),
        (["other.test"], "maildir", "local"),
        (["*"], "maildir", "relay"),
    ]
    assert list(config.userbases["bench"]) == ["flood0", "others0", "others1"]
    assert all(user.home.is_dir() for user in config.userbases["bench"].values())


@needs_perl
def test_users_of_one_domain_say_for_themselves_that_they_have_a_command(tmp_path: Path) -> None:
    """A rule has one way to deliver; a .forward names another."""
    users, _ = made(tmp_path, scenario())
    (rule, _) = build(Config, users.settings, source="bench").rules

    assert (rule.delivery, rule.forward, rule.commands_from) == ("maildir", True, ["forward"])
    forward = (tmp_path / "homes" / "flood0" / ".forward").read_text()
    assert forward.startswith("\"|'")
    assert "deliver.pl" in forward
    assert not (tmp_path / "homes" / "others0" / ".forward").exists()


@needs_perl
def test_a_command_records_what_arrived(tmp_path: Path) -> None:
    """Whole, at its instant, for whom; the digest is that of what was sent."""
    users, schedule = made(tmp_path, scenario(domain="other.test"))
    i, recipient = first_of(schedule, "flood")

    assert deliver(users, mail_of(schedule, i, recipient), recipient) == 0
    (arrival,) = users.arrivals()
    users.keep(tmp_path / "local.jsonl")
    assert list(read_lines(tmp_path / "local.jsonl")) == [arrival]

    assert (arrival["run"], arrival["seq"], arrival["rcpts"]) == (RUN, i, [recipient])
    assert arrival["digest"] == digest(message_bytes(schedule, i, RUN))
    assert arrival["t"] == pytest.approx((tmp_path / "local.record").stat().st_mtime, abs=1.0)
    assert (users.group_of(recipient), users.group_of("flood0@outside.test")) == ("flood", None)


@needs_perl
def test_a_command_tells_what_was_altered(tmp_path: Path) -> None:
    """One byte is enough; so is one that is missing."""
    users, schedule = made(tmp_path, scenario(domain="other.test"))
    i, recipient = first_of(schedule, "flood")
    mail = mail_of(schedule, i, recipient)

    deliver(users, mail[:-2] + b"!\n", recipient)
    deliver(users, mail[:-1], recipient)

    assert [arrival["digest"] for arrival in users.arrivals()] == ["altered", "altered"]


@needs_perl
def test_a_command_fails_as_often_as_the_schedule_says(tmp_path: Path) -> None:
    """For now, then for good; a message of the warm-up never."""
    users, schedule = made(
        tmp_path, scenario("local.0.tempfail=0.8", "local.0.permfail=0.5", domain="other.test")
    )
    chosen = [i for i in range(len(schedule)) if schedule.group[i] == 0]
    i = next(i for i in chosen if schedule.failures[i] >= 1 and not schedule.fatal[i])
    j = next(j for j in chosen if schedule.failures[j] >= 1 and schedule.fatal[j])
    for number, end in ((i, 0), (j, 69)):
        mail = mail_of(schedule, number, "flood0@local.test")
        statuses = [
            deliver(users, mail, "flood0@local.test") for _ in range(schedule.failures[number] + 1)
        ]
        assert statuses == [75] * schedule.failures[number] + [end]
    warm_up = mail_of(schedule, j, "flood0@local.test", run="warm-up")
    assert deliver(users, warm_up, "flood0@local.test") == 0

    assert [(a["run"], a["seq"]) for a in users.arrivals()] == [(RUN, i), ("warm-up", j)]


def test_maildirs_are_read(tmp_path: Path) -> None:
    """New and seen mail; a damaged message is altered; other people's mail is of no run."""
    users, schedule = made(tmp_path, scenario("local.0.delivery=maildir"))
    i, recipient = first_of(schedule, "others0")
    box = tmp_path / "homes" / "others0" / "Maildir"
    for folder in ("new", "cur", "tmp"):
        (box / folder).mkdir(parents=True)
    mail = mail_of(schedule, i, recipient)
    (box / "new" / "1").write_bytes(mail)
    (box / "cur" / "2").write_bytes(mail[:-2] + b"!\n")
    (box / "tmp" / "3").write_bytes(mail)
    (box / "new" / "4").write_bytes(b"Subject: x\n\nhello\n")

    found = sorted((a["run"], a["seq"], a["digest"] == digest(message_bytes(schedule, i, RUN)))
                   for a in users.arrivals())  # fmt: skip
    assert found == [("", -1, False), (RUN, i, False), (RUN, i, True)]
    assert {tuple(a["rcpts"]) for a in users.arrivals()} == {("others0@local.test",)}
    users.discard()
    assert list(tmp_path.iterdir()) == []


@needs_perl
def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    """A bench that guesses would call mail lost."""
    users, _ = made(tmp_path, scenario())
    (tmp_path / "local.record").write_text("local-slim-1 3 17")
    with pytest.raises(RunError, match="line 1"):
        list(users.arrivals())


def test_what_the_bench_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the key, or the program that is missing."""
    with pytest.raises(UsageError, match=r"local\.1\.delivery = lmtp"):
        made(tmp_path / "a", scenario("local.1.delivery=lmtp"))

    def nowhere(name: str) -> Any:
        del name

    monkeypatch.setattr(shutil, "which", nowhere)
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="perl"):
        made(tmp_path / "b", scenario())


def test_a_scenario_without_local_users_has_none(tmp_path: Path) -> None:
    """Nothing is made and nothing arrives."""
    users, _ = made(tmp_path, scenario("local=[]", "load.messages=5"))
    assert (list(tmp_path.iterdir()), list(users.arrivals())) == ([], [])
