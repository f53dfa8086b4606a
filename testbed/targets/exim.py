"""Exim as a target: a process takes each message and delivers it; nobody keeps the queue in memory.

What a first attempt leaves behind waits for a queue runner, which is started at twice the scenario's pace.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from testbed.targets.base import Owed
from testbed.targets.peer import HOSTNAME, PORT, PeerServer

CONFIG: Final = """\
primary_hostname = {hostname}
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
disable_ipv6 = true
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim4/%slog
pid_file_path = /run/exim4/exim.pid
keep_environment =
tls_advertise_hosts =
acl_smtp_rcpt = accept
# All clients are one address, and there are as many as the others allow by default.
smtp_accept_max = 100
# The eleventh message of a connection would wait for a queue runner.
smtp_accept_queue_per_connection = 0
# Its runs go through the whole spool, a process for each message. On the Internet there are two an hour; where time is compressed
# several of them at once would be all that the machine does.
queue_run_max = 1

begin routers
world:
  driver = dnslookup
  domains = *
  transport = remote_smtp
  # The world's hosts are on loopback, which Exim takes for itself.
  self = send
  no_more

begin transports
remote_smtp:
  driver = smtp
  connect_timeout = {connect_timeout_s}s

begin retry
* * {retry}
"""

QUEUE_RUN_S: Final = 1800
"""Between queue runners, as Debian starts it: ``-q30m``."""

RUN_TO_RETRY: Final = 2
"""Debian's queue runners are twice as far apart as the first retry of its rule, and so they are at a scenario's pace."""

RETRY: Final = "F,2h,15m; G,16h,1h,1.5; F,4d,6h"
"""The rule that Exim and Debian ship."""

_ACCEPTED: Final = re.compile(r"\bOK id=([0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4})")
_LISTED: Final = re.compile(
    r"^\s*\S+\s+\S+\s+([0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4}) <"
)
_FAILED: Final = re.compile(
    r" ([0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4}) \*\* (?:\S+ <)?([^\s>:]+@[^\s>:]+)"
)


class Exim(PeerServer):
    """Exim in a cell."""

    name = "exim"
    users = (("Debian-exim", "/var/spool/exim4"),)
    accepted = _ACCEPTED
    """Of ``OK id=1r5kfE-0001Qf-2c``."""

    def configure(self) -> None:
        """Write its one file, and make what the package's scripts would."""
        retry = RETRY if self.pace is None else f"F,4d,{self.pace.first_s}s"
        self.cell.write(
            "etc/exim4/exim4.conf",
            CONFIG.format(
                hostname=HOSTNAME, port=PORT, retry=retry, connect_timeout_s=self.connect_timeout_s
            ),
        )
        for each in ("var/spool/exim4", "var/log/exim4", "run/exim4"):
            self.own(each, "Debian-exim", mode=0o750)

    def command(self) -> Sequence[str]:
        """Return how it is started in the foreground, with queue runners."""
        every = QUEUE_RUN_S if self.pace is None else RUN_TO_RETRY * self.pace.first_s
        return ("/usr/sbin/exim4", "-bdf", f"-q{every}s")

    @property
    def log(self) -> Path:
        """Its log."""
        return self.cell.directory / "var/log/exim4/mainlog"

    def queue_length(self) -> Mapping[str, float]:
        """Return how many messages there are, a header file each, as `exim -bpc` counts."""
        return {"queue.message": self.files_below("var/spool/exim4/input", suffix="-H")}

    def read_queue(self) -> list[Owed]:
        """Return what `exim -bp` lists."""
        return list(listed(self.ask("/usr/sbin/exim4", "-bpru").splitlines()))

    def given_up(self, lines: Iterable[str]) -> Iterator[Owed]:
        """Yield what lines of its log say was given up."""
        return given_up(lines)


def listed(lines: Iterable[str]) -> Iterator[Owed]:
    """Yield the recipients of `exim -bpru`, which lists only those that are still to be delivered to."""
    queue_id = ""
    for line in lines:
        found = _LISTED.match(line)
        if found:
            queue_id = found[1]
        elif queue_id and "@" in line:
            yield Owed(queue_id, line.split()[-1])


def given_up(lines: Iterable[str]) -> Iterator[Owed]:
    """Yield every recipient that a log says was given up: ``id ** address R=...``."""
    for line in lines:
        found = _FAILED.search(line)
        if found:
            yield Owed(found[1], found[2])
