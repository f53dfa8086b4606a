"""OpenSMTPD as a target, with its defaults: one new connection for a route in 5 s, ten sessions for a relay.

Its schedule can't be told to be faster (a second attempt comes after 400 s, always), so scenarios whose time is
compressed leave their deferred mail in its queue; the account says so. Debian has version 6.8.0p2 of 2020, which
does not sync what it accepts. The scheduler is a process of its own, whose memory is watched apart: it has what a
queued envelope costs while it waits, and nothing else that grows.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from testbed.sampler import memory_of
from testbed.targets.base import Owed
from testbed.targets.ours import given_up
from testbed.targets.peer import PORT, PeerServer

CONFIG: Final = """\
listen on 127.0.0.1 port {port}
# 452 for the 101st message of a connection: nobody else ends kept connections so early, and the load does not come again.
smtp limit max-mails 1000000
action "out" relay
match from any for any action "out"
"""

COUNTERS: Final = (
    "scheduler.envelope",
    "scheduler.envelope.incoming",
    "scheduler.envelope.inflight",
    "scheduler.envelope.expired",
    "scheduler.delivery.ok",
    "scheduler.delivery.tempfail",
    "scheduler.delivery.permfail",
    "scheduler.delivery.loop",
    "scheduler.ramqueue.hold",
    "queue.bounce",
    "smtp.session",
    "mta.session",
    "mta.connector",
    "mta.envelope",
    "mta.task",
)
"""Of the 100 that it has, what says how it is."""

AGENTS: Final = ("scheduler", "queue")
"""Processes whose memory is a gauge: ``process.scheduler.uss_bytes``."""

PACE_S: Final = 400
"""Until the second attempt, whatever it is told: ``400 * n**2`` after it came (scheduler_backend.c)."""

_ACCEPTED: Final = re.compile(r"\b([0-9a-f]{8}) Message accepted")


class OpenSmtpd(PeerServer):
    """OpenSMTPD in a cell."""

    name = "opensmtpd"
    second_attempt_s: int | None = PACE_S
    users = (("opensmtpd", "/var/lib/opensmtpd/empty"), ("opensmtpq", "/var/lib/opensmtpd/empty"))
    accepted = _ACCEPTED
    """Of ``2.0.0 0000002a Message accepted for delivery``."""

    def configure(self) -> None:
        """Write smtpd.conf, and make what the package's scripts would."""
        self.cell.write("etc/smtpd.conf", CONFIG.format(port=PORT))
        self.cell.write("etc/aliases", "")
        for each in ("var/lib/opensmtpd", "var/lib/opensmtpd/empty", "var/spool/smtpd"):
            self.own(each, "root", mode=0o711 if each == "var/spool/smtpd" else 0o755)

    def command(self) -> Sequence[str]:
        """Return how it is started in the foreground."""
        return ("/usr/sbin/smtpd", "-d")

    @property
    def log(self) -> Path:
        """Its log, which is what it says on standard error."""
        return self.cell.log

    def queue_length(self) -> Mapping[str, float]:
        """Return some of its counters, whose names ours has too, and the memory of `AGENTS`."""
        found = dict(counters(self._control("show", "stats").splitlines()))
        # One that has never been set is not listed.
        gauges = {name: found.get(name, 0.0) for name in COUNTERS}
        agents = dict(self._agents())
        for name in AGENTS:
            memory = memory_of(agents[name]) if name in agents else None
            gauges[f"process.{name}.pss_bytes"] = float(memory.pss) if memory else math.nan
            gauges[f"process.{name}.uss_bytes"] = float(memory.uss) if memory else math.nan
        return gauges

    def _agents(self) -> Iterator[tuple[str, int]]:
        """Yield its processes by what they are, which they write where their arguments were: ``smtpd: scheduler``."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
                name, _, role = line.decode("utf-8", "replace").partition(": ")
                if name.endswith("smtpd") and role:
                    yield role, pid

    def read_queue(self) -> list[Owed]:
        """Return what `smtpctl show queue` lists."""
        return list(listed(self._control("show", "queue").splitlines()))

    def _control(self, *words: str) -> str:
        # It insists on the group that its package's scripts would have given it.
        return self.ask("/usr/sbin/smtpctl", *words, group="opensmtpq")

    def given_up(self, lines: Iterable[str]) -> Iterator[Owed]:
        """Yield what lines of its log say was given up."""
        return given_up(lines)


def counters(lines: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yield the counters of `smtpctl show stats`; those that are no numbers are left out."""
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            try:
                yield name, float(value)
            except ValueError:
                continue


def listed(lines: Iterable[str]) -> Iterator[Owed]:
    """Yield the recipients of `smtpctl show queue`: ``evpid|family|kind|flags|from|rcpt|dest|...``."""
    for line in lines:
        fields = line.split("|")
        if len(fields) > 6:
            yield Owed(fields[0][:8], fields[6])
