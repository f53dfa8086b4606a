"""Postfix as a target: Debian's settings, but for what stands in `MAIN` with a reason.

Its queue manager keeps at most 20,000 messages in memory and the rest in files; what it has deferred is
tried when its file's time has come and somebody looks, every ``queue_run_delay``.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from testbed.targets.base import Owed
from testbed.targets.peer import HOSTNAME, PORT, PeerServer

MAIN: Final = """\
compatibility_level = 3.6
mail_owner = postfix
setgid_group = postdrop
queue_directory = /var/spool/postfix
data_directory = /var/lib/postfix
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = {hostname}
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_tls_security_level = may
maillog_file = /var/log/postfix.log
# Queue ids that are never used again: the account of a run needs that.
enable_long_queue_ids = yes
# Without the pause of 1 s that holds intake back while delivery lags: nobody else has one.
in_flow_delay = 0
# All clients are one address.
smtpd_client_connection_count_limit = 0
smtp_connect_timeout = {connect_timeout_s}
# To the millisecond, as they are logged: `sim replay` reads service times in the log.
delay_logging_resolution_limit = 3
"""

PACE: Final = """\
# The scenario's time is faster than the Internet's.
minimal_backoff_time = {first_s}s
maximal_backoff_time = {most_s}s
queue_run_delay = {first_s}s
transport_retry_time = {first_s}s
"""

MASTER: Final = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""

QUEUES: Final = ("maildrop", "incoming", "active", "deferred")

_ACCEPTED: Final = re.compile(r"\bOk: queued as ([0-9A-Za-z]+)")
_DELIVERY: Final = re.compile(
    r"postfix/\w+\[\d+\]: ([0-9A-Za-z]+): to=<([^>]*)>,(?: orig_to=<([^>]*)>,)?.*? status=(\w+)"
)
_EXPIRED: Final = re.compile(r"postfix/qmgr\[\d+\]: ([0-9A-Za-z]+): from=<[^>]*>, status=expired\b")


class Postfix(PeerServer):
    """Postfix in a cell."""

    name = "postfix"
    users = (("postfix", "/var/spool/postfix"),)
    groups = ("postdrop",)
    accepted = _ACCEPTED
    """Of ``2.0.0 Ok: queued as 4bX2Zq1kDgz4w1f``."""

    def configure(self) -> None:
        """Write main.cf and master.cf."""
        main = MAIN.format(hostname=HOSTNAME, connect_timeout_s=self.connect_timeout_s)
        if self.pace is not None:
            main += PACE.format(first_s=self.pace.first_s, most_s=self.pace.most_s)
        self.cell.write("etc/postfix/main.cf", main)
        self.cell.write("etc/postfix/master.cf", MASTER.format(port=PORT))
        for each in ("post-install", "postfix-script"):
            # Unpacked without its package's scripts: these have to be found where meta_directory says.
            script = self.cell.directory / "etc/postfix" / each
            if not script.exists() and self.peer.tree is not None:
                shutil.copyfile(self.peer.tree / "usr/lib/postfix/sbin" / each, script)
        self.own("var/spool/postfix", "root")
        self.own("var/lib/postfix", "postfix")

    def command(self) -> Sequence[str]:
        """Return how it is started in the foreground."""
        return ("/usr/sbin/postfix", "-c", "/etc/postfix", "start-fg")

    def end(self) -> None:
        """`postfix stop`: what was started is a shell, which would not pass a signal on."""
        with contextlib.suppress(OSError):
            self.ask("/usr/sbin/postfix", "-c", "/etc/postfix", "stop")

    @property
    def log(self) -> Path:
        """Its log."""
        return self.cell.directory / "var/log/postfix.log"

    def queue_length(self) -> Mapping[str, float]:
        """Return how many messages there are, one file each; how many recipients they have is in the files."""
        return {"queue.message": self.files_below(*(f"var/spool/postfix/{q}" for q in QUEUES))}

    def read_queue(self) -> list[Owed]:
        """Return what `postqueue -j` lists."""
        return list(
            listed(self.ask("/usr/sbin/postqueue", "-c", "/etc/postfix", "-j").splitlines())
        )

    def given_up(self, lines: Iterable[str]) -> Iterator[Owed]:
        """Yield what lines of its log say was given up."""
        return given_up(lines)


def listed(lines: Iterable[str]) -> Iterator[Owed]:
    """Yield the recipients of `postqueue -j`."""
    for line in lines:
        message = json.loads(line)
        for recipient in message["recipients"]:
            yield Owed(message["queue_id"], recipient["address"])


def given_up(lines: Iterable[str]) -> Iterator[Owed]:
    """Yield every recipient that a log says was given up: bounced, or deferred in a message that got too old."""
    waiting: dict[str, set[str]] = {}
    for line in lines:
        found = _DELIVERY.search(line)
        if found:
            queue_id, recipient, status = found[1], found[3] or found[2], found[4]
            if status == "bounced":
                yield Owed(queue_id, recipient)
            if status == "deferred":
                waiting.setdefault(queue_id, set()).add(recipient)
            elif queue_id in waiting:
                waiting[queue_id].discard(recipient)
            continue
        expired = _EXPIRED.search(line)
        if expired:
            yield from (Owed(expired[1], each) for each in sorted(waiting.pop(expired[1], ())))
