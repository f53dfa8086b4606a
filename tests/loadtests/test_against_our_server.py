"""The load and a real server: TLS, logins, BDAT, smtplib, and clients that misbehave while mail goes on."""

import json
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram

from tests.support.server import ROOT, RunningServer
from tests.support.tls import write_pair

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MESSAGES = 200
SOME = (
    f"load.messages={MESSAGES}",
    "load.rate=200",
    "load.sessions=4",
    "load.recipients.law=fixed",
    "load.sizes.law=fixed",
)
NOWHERE = {"relay": {"smart_host": "[127.0.0.3]", "port": 9}}
"""Nothing listens there: what is accepted stays in the queue."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    made = subprocess.run(
        [sys.executable, "-m", "mta.ctl", "encrypt"],
        cwd=ROOT,
        input="load\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    users = directory / "users"
    users.touch(mode=0o600)
    users.write_text(f"load {made.stdout.strip()}\n")
    config = {
        **NOWHERE,
        "tls": write_pair(directory).config,
        "auth": {"file": str(users)},
        "smtp": {"listen": ""},
        "listeners": [{"name": "both", "address": "127.0.0.1:0", "auth": "optional"}],
    }
    with RunningServer(directory, config) as running:
        yield running


def play(server: RunningServer, tmp_path: Path, *arguments: str, settings=(), host="") -> dict:
    """Run Locust against a server and return how its run ended."""
    sets = [word for each in (*SOME, *settings) for word in ("--set", each)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests"), "--headless"),
            *(
                "--only-summary",
                "--host",
                host or f"smtp://127.0.0.1:{server.port}",
                "--lag-max",
                "60",
            ),
            *("--summary", str(tmp_path / "end"), "--histograms", str(tmp_path / "hdr"), *sets),
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "end").read_text())


def test_parts_have_tls_logins_and_bdat(server, tmp_path):
    """Half of the connections each, and a quarter of the messages; who logs in has TLS, without which ours has no AUTH."""
    before = server.stats()
    parts = ("load.tls=0.5", "load.auth=0.5", "load.bdat=0.25", "load.sources=5")
    end = play(server, tmp_path, settings=parts)
    assert end["outcomes"] == {"250": MESSAGES}
    count = {name: row["count"] for name, row in end["verbs"].items()}
    # Half, and half of the others.
    assert count["STARTTLS"] == count["TLS"] == pytest.approx(MESSAGES * 0.75, abs=10)
    assert count["AUTH"] == pytest.approx(MESSAGES / 2, abs=3)
    assert count["BDAT"] == pytest.approx(MESSAGES / 4, abs=3)
    assert count["BDAT"] + count["."] == MESSAGES
    after = server.stats()
    assert after["smtp.auth.ok"] - before["smtp.auth.ok"] == count["AUTH"]
    assert after["smtp.message"] - before["smtp.message"] == MESSAGES


def test_histograms_are_what_other_tools_read(server, tmp_path):
    """A line per verb, with its tag; the encoded histogram has as many values as the summary says."""
    end = play(server, tmp_path, settings=("load.keep=true",))
    lines = (tmp_path / "hdr").read_text().splitlines()[3:]
    found = {}
    for line in lines:
        tag, _, _, most, encoded = line.split(",")
        histogram = HdrHistogram.decode(encoded)
        found[tag.removeprefix("Tag=")] = histogram.get_total_count()
        assert float(most) == pytest.approx(histogram.get_max_value() / 1e6)
    assert found == {name: row["count"] for name, row in end["verbs"].items()}


def test_smtplib_sends_the_same(server, tmp_path):
    """Only messages are in the statistics; all are accepted."""
    end = play(server, tmp_path, "-u", "4", "StandardLibrary", settings=("load.tls=0.2",))
    assert end["outcomes"] == {"250": MESSAGES}
    assert list(end["verbs"]) == ["message"]


ENDED = {
    "slow-commands": "421 4.4.2",
    "slow-body": "421 4.4.2",
    "idle": "421 4.4.2",
    "garbage": "421 4.7.0",
    "early-talker": "554 5.5.0",
    "noop": "421 4.7.0",
}
"""What the server says last to each kind, and then closes. Those who hang up leave by themselves."""


@pytest.fixture
def strict(tmp_path):
    """A server without patience."""
    limits = {"smtp": {"timeout_s": 1.0, "min_data_rate": 1000, "max_junk": 20}}
    with RunningServer(tmp_path / "strict", {**NOWHERE, "limits": limits}) as running:
        yield running


def test_rude_clients_are_ended_and_hold_nobody_up(strict, tmp_path):
    """One of each kind beside the load: every message is accepted, and the server ends each of them, with its reply.

    Those that are slow go when the timeout is over and not before: commands that come letter by letter are none, and a
    message that comes slower than ``min_data_rate`` is silence. Nobody may stay for an hour (``max_session_s``).
    """
    kinds = (*ENDED, "hang-up")
    groups = ",".join(f"{{kind='{kind}',users=1,bytes_per_s=20.0,pause_s=0.02}}" for kind in kinds)
    end = play(
        strict,
        tmp_path,
        settings=(f"load.beside=[{groups}]", "load.messages=800", "load.keep=true"),
    )
    assert end["outcomes"] == {"250": 800}
    verbs = end["verbs"]
    assert {f"{kind} {reply}" for kind, reply in ENDED.items()} <= verbs.keys()
    # Nothing else was said to them, but for those whom the end of the run caught.
    assert {name for name in verbs if name.split(" ")[0] in ENDED} <= {
        *ENDED,
        *(f"{kind} {reply}" for kind, reply in ENDED.items()),
    }
    for kind in ("slow-commands", "slow-body", "idle"):
        name = f"{kind} {ENDED[kind]}"
        assert verbs[name]["count"] >= 2
        assert 0.99 <= verbs[name]["p50"] < 4.0, (name, verbs[name])
    after = strict.until(lambda stats: stats["smtp.session"] == 0)
    assert after["smtp.message"] == 800
    ended = sum(
        verbs[f"{kind} 421 4.4.2"]["count"] for kind in ("slow-commands", "slow-body", "idle")
    )
    # The end of the run may have caught one of each after the server had given up, and before it heard.
    assert ended <= after["smtp.timeout"] <= ended + 3


def test_connections_are_spread_over_addresses(server, tmp_path):
    """Each of seven source addresses has its turn: the server saw as many connections from one as from the other."""
    log = server.log.read_text()
    end = play(server, tmp_path, settings=("load.sources=7", "load.messages=140"))
    assert end["outcomes"] == {"250": 140}
    server.until(lambda stats: stats["smtp.session"] == 0)
    new = server.log.read_text()[len(log) :]
    found = Counter(re.findall(r"smtp connected address=(127[.\d]+)", new))
    assert found == {f"127.0.0.{number}": 20 for number in range(1, 8)}


def has_ipv6() -> bool:
    """Return whether this machine has ::1; some containers have not."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_ipv6_is_as_good(tmp_path):
    """The same over ::1, to our server."""
    with RunningServer(tmp_path / "six", {"smtp": {"listen": "[::1]:0"}, **NOWHERE}) as six:
        end = play(six, tmp_path, host=f"smtp://[::1]:{six.port}")
        assert end["outcomes"] == {"250": MESSAGES}
        assert six.stats()["smtp.message"] == MESSAGES
        six.until_logged_some("smtp connected address=[::1] ")
