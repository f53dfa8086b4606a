"""The server's own users in a run: homes, rules and commands, and what arrived.

A group with ``delivery = "command"`` gets its mail through a program that waits as long as the schedule says, fails as
often as it says, and at last appends one line to a record, in one write: so that what the bench measures is a fork
and a wait, not the start of an interpreter. Perl is used because every Debian has it and it starts in 2 ms. The others
get a Maildir each. The bench reads the record and the Maildirs as it reads the world's records: the server is not
asked what it delivered.
"""

import json
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim.groups import LocalGroup
from sim.scenario import Scenario
from sim.workload import Schedule, digest, identify, message_bytes
from testbed.children import RunError, UsageError

USERBASE: Final = "bench"

FAILURES_MAX: Final = 255
"""Failed attempts of one message: one byte of the plan."""

_PLAN = np.dtype([("seconds", "<f4"), ("failures", "u1"), ("fatal", "u1"), ("pad", "u2")])
"""One record for each message."""

_CLOCK_GETTIME: Final = {"x86_64": 228, "aarch64": 113}
"""Numbers of the system call: without a module Perl has whole seconds only, and the module takes longer than all
the rest."""

_SCRIPT: Final = r"""# One local delivery of a test-bed's run: waits, fails or records, as the plan says.
my ($plan, $record, $run, $clock) = @ARGV;
binmode STDIN;
my $mail = do { local $/; <STDIN> };
# Without what servers put in front.
my $own = substr($mail, index("\n$mail", "\nDate: "));
my ($its) = $own =~ /^X-Testbed-Run: (\S+)$/m;
my ($seq) = $own =~ /^X-Testbed-Seq: (\d+)$/m;
if ($its eq $run) {
    open(my $file, '+<:raw', $plan) or exit 71;
    sysseek($file, $seq * 8, 0);
    sysread($file, my $line, 8) == 8 or exit 71;
    my ($seconds, $failures, $fatal) = unpack('f<CC', $line);
    select(undef, undef, undef, $seconds) if $seconds > 0;
    if ($failures) {
        sysseek($file, $seq * 8 + 4, 0);
        syswrite($file, pack('C', $failures - 1)) == 1 or exit 71;
        exit 75;
    }
    exit 69 if $fatal;
}
my $now;
if ($clock) {
    my $time = pack('qq', 0, 0);
    syscall($clock, 0, $time) == 0 or exit 71;
    $now = sprintf('%d.%09d', unpack('qq', $time));
} else {
    require Time::HiRes;
    $now = sprintf('%.6f', Time::HiRes::time());
}
my $said = join(' ', $its, $seq, $now, length($own), unpack('%32C*', $own), $ENV{ORIGINAL_RECIPIENT});
open(my $file, '>>:raw', $record) or exit 71;
syswrite($file, "$said\n") == length($said) + 1 or exit 71;
"""


class LocalUsers:
    """The local users of one server's run."""

    def __init__(
        self, directory: Path, scenario: Scenario, schedule: Schedule, *, run_id: str
    ) -> None:
        """Make homes, plan and program in a run's directory.

        Raises:
            UsageError: a group wants what the bench does not have.
            OSError: they can't be made.
        """
        self._scenario = scenario
        self._schedule = schedule
        self._run_id = run_id
        directory = directory.resolve()
        self._homes = directory / "homes"
        self._record = directory / "local.record"
        self._plan = directory / "local.plan"
        for i, group in enumerate(scenario.local):
            if group.delivery not in ("command", "maildir"):
                problem = (
                    f"local.{i}.delivery = {group.delivery}: the bench has command and maildir"
                )
                raise UsageError(problem)
        if scenario.local:
            self._homes.mkdir(mode=0o700)
        for group in scenario.local:
            for name in group.user_names():
                (self._homes / name).mkdir(mode=0o700)
        self._settings = self._made(directory)

    @property
    def settings(self) -> dict[str, Any]:
        """What the server is configured with for them."""
        return self._settings

    def _made(self, directory: Path) -> dict[str, Any]:
        """Write plan and program if they are needed; return the settings."""
        groups = self._scenario.local
        command: list[str] = []
        if any(group.delivery == "command" for group in groups):
            perl = shutil.which("perl")
            if perl is None:
                raise UsageError("local: delivery by command needs perl, which is not there")
            plan, script = self._plan, directory / "deliver.pl"
            script.write_text(_SCRIPT, encoding="ascii")
            _plan_of(self._schedule).tofile(plan)
            clock = _CLOCK_GETTIME.get(platform.machine(), 0)
            command = [perl, str(script), str(plan), str(self._record), self._run_id, str(clock)]
        rules: list[dict[str, Any]] = []
        domains: dict[str, list[LocalGroup]] = {}
        for group in groups:
            domains.setdefault(group.domain, []).append(group)
        for domain, own in domains.items():
            rule: dict[str, Any] = {
                "name": f"local-{domain}",
                "match_domains": [domain],
                "action": "local",
                "userbase": USERBASE,
                "forward": False,
            }
            kinds = {group.delivery for group in own}
            if kinds == {"command"}:
                rule |= {"delivery": "pipe", "command": command}
            else:
                rule["delivery"] = "maildir"
            if len(kinds) > 1:
                # Two ways under one domain: those with a command say so themselves, as users do.
                rule |= {"forward": True, "commands_from": ["forward"]}
                for group in own:
                    if group.delivery == "command":
                        self._forward(group, command)
            rules.append(rule)
        rules.append({"name": "outside", "match_domains": ["*"], "action": "relay"})
        users = {
            name: {"home": str(self._homes / name)}
            for group in groups
            for name in group.user_names()
        }
        # Whoever runs the bench runs the commands: they are ours.
        return {"rules": rules, "userbases": {USERBASE: users}, "local": {"allow_root": True}}

    def _forward(self, group: LocalGroup, command: list[str]) -> None:
        line = " ".join(f"'{word}'" for word in command)
        for name in group.user_names():
            path = self._homes / name / ".forward"
            path.write_text(f'"|{line}"\n', encoding="utf-8")
            path.chmod(0o600)

    def group_of(self, recipient: str) -> str | None:
        """Return the name of the group that an address belongs to; None for one outside."""
        local, _, domain = recipient.rpartition("@")
        name = local.rstrip("0123456789")
        for group in self._scenario.local:
            if group.name == name and group.domain == domain:
                return group.name
        return None

    def keep(self, path: Path) -> None:
        """Write what arrived as JSON Lines, in the form of the world's records (`testbed.world.records`).

        Only after the server's end.

        Raises:
            RunError: the record is damaged.
            OSError: something can't be read or written.
        """
        with path.open("w", encoding="utf-8") as file:
            for arrival in self.arrivals():
                file.write(json.dumps(arrival) + "\n")

    def arrivals(self) -> Iterator[dict[str, Any]]:
        """Yield what arrived; see `keep`."""
        yield from self._from_record()
        for group in self._scenario.local:
            for name in group.user_names():
                for folder in ("new", "cur"):
                    yield from self._from_maildir(group, name, folder)

    def _from_record(self) -> Iterator[dict[str, Any]]:
        if not self._record.is_file():
            return
        with self._record.open(encoding="ascii", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                words = line.split()
                if len(words) != 6 or not line.endswith("\n"):
                    raise RunError(f"{self._record}: line {number}: not what a delivery writes")
                run, seq, t, size, total, recipient = words
                yield _arrival(
                    run,
                    int(seq),
                    float(t),
                    recipient,
                    self._digest(run, int(seq), int(size), int(total)),
                )

    def _digest(self, run: str, seq: int, size: int, total: int) -> str:
        """Return the digest of a message of ours if size and sum of its bytes are right."""
        if run != self._run_id or seq >= len(self._schedule):
            return ""
        message = message_bytes(self._schedule, seq, run)
        kept = message.replace(b"\r\n", b"\n")
        is_right = size == len(kept) and total == int(np.frombuffer(kept, np.uint8).sum())
        return digest(message) if is_right else "altered"

    def _from_maildir(self, group: LocalGroup, name: str, folder: str) -> Iterator[dict[str, Any]]:
        directory = self._homes / name / "Maildir" / folder
        if not directory.is_dir():
            return
        for path in directory.iterdir():
            found = identify(path.read_bytes().replace(b"\n", b"\r\n"))
            # The move to `new` is the last thing that happens to a message.
            moved = path.stat().st_ctime_ns / 1e9
            yield _arrival(found.run, found.seq, moved, f"{name}@{group.domain}", found.digest)

    def discard(self) -> None:
        """Remove mailboxes, plan and record. Only after `keep`."""
        shutil.rmtree(self._homes, ignore_errors=True)
        for path in (self._plan, self._record):
            path.unlink(missing_ok=True)


def _plan_of(schedule: Schedule) -> "np.ndarray[Any, np.dtype[np.void]]":
    plan = np.zeros(len(schedule), dtype=_PLAN)
    plan["seconds"] = schedule.service_s
    plan["failures"] = np.minimum(schedule.failures, FAILURES_MAX)
    plan["fatal"] = schedule.fatal
    return plan


def _arrival(run: str, seq: int, t: float, recipient: str, found: str) -> dict[str, Any]:
    return {
        "run": run,
        "seq": seq,
        "t": t,
        "mail_from": "local",
        "rcpts": [recipient],
        "digest": found,
        "address": recipient.rpartition("@")[0],
    }
