"""A Postfix of our own: Debian's binaries, our directory, our ports; the system's is left alone."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOLS = ("/usr/sbin/postfix", "/usr/sbin/smtp-source", "/usr/sbin/smtp-sink")

MAIN = """\
compatibility_level = 3.6
queue_directory = {spool}
data_directory = {data}
mail_owner = postfix
setgid_group = postdrop
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.postfix.test
mydestination =
mynetworks = 127.0.0.0/8
relayhost = {relayhost}
default_transport = smtp
alias_maps =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
# Without the pause that throttles intake while delivery lags.
in_flow_delay = 0
smtpd_client_connection_count_limit = 0
maillog_file = {log}
maillog_file_prefixes = /
"""

MASTER = """\
{port}     inet  n       -       n       -       -       smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
anvil     unix  -       -       n       -       1       anvil
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
discard   unix  -       -       n       -       -       discard
scache    unix  -       -       n       -       1       scache
virtual   unix  -       n       n       -       -       virtual
postlog   unix-dgram n  -       n       -       1       postlogd
"""


def missing() -> str:
    """Return what is not installed, or an empty string."""
    return ", ".join(tool for tool in TOOLS if not Path(tool).exists())


class RunningPostfix:
    """Postfix relaying everything to one host; needs root, as Postfix does."""

    def __init__(
        self, directory: Path, *, port: int, relayhost: str = "", settings: str = ""
    ) -> None:
        """``settings``: more lines for main.cf."""
        self.directory = directory
        self.settings = settings
        self.log = directory / "mail.log"
        self.port = port
        self.relayhost = relayhost
        self.etc = directory / "etc"

    def __enter__(self) -> "RunningPostfix":
        spool, data = self.directory / "spool", self.directory / "data"
        for path in (self.etc, spool, data):
            path.mkdir(parents=True)
        # Postfix's processes are not root: they must reach their spool through every parent.
        for parent in (self.directory, *self.directory.parents):
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o055)
        shutil.chown(data, "postfix")
        log = self.log
        (self.etc / "main.cf").write_text(
            MAIN.format(spool=spool, data=data, relayhost=self.relayhost, log=log) + self.settings
        )
        (self.etc / "master.cf").write_text(MASTER.format(port=f"127.0.0.1:{self.port}"))
        done = self._postfix("start")
        assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
        return self

    def queue(self) -> list[dict[str, Any]]:
        """Return what `postqueue -j` says: a table for each message."""
        done = subprocess.run(
            ["/usr/sbin/postqueue", "-c", str(self.etc), "-j"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def flush(self) -> None:
        """Let it try everything now, as `postqueue -f` does."""
        subprocess.run(["/usr/sbin/postqueue", "-c", str(self.etc), "-f"], timeout=30, check=True)

    def reload(self) -> None:
        """Let it read its files again."""
        done = self._postfix("reload")
        assert done.returncode == 0, done.stderr

    def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
        """Wait until something holds; if it does not come to hold, say what is in the log."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def _postfix(self, verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/usr/sbin/postfix", "-c", str(self.etc), verb],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def __exit__(self, *exc: object) -> None:
        self._postfix("stop")
        deadline = time.monotonic() + 20
        while self._postfix("status").returncode == 0 and time.monotonic() < deadline:
            time.sleep(0.1)
