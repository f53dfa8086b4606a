"""The load and a real server: TLS, logins, BDAT, smtplib, and clients that misbehave while mail goes on."""

import json
import subprocess
import sys
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
        # Nothing listens there: what is accepted stays in the queue.
        "relay": {"smart_host": "[127.0.0.3]", "port": 9},
        "tls": write_pair(directory).config,
        "auth": {"file": str(users)},
        "smtp": {"listen": ""},
        "listeners": [{"name": "both", "address": "127.0.0.1:0", "auth": "optional"}],
        "limits": {"smtp": {"timeout_s": 1.0}},
    }
    with RunningServer(directory, config) as running:
        yield running


def play(server: RunningServer, tmp_path: Path, *arguments: str, settings=()) -> dict:
    """Run Locust against a server and return how its run ended."""
    sets = [word for each in (*SOME, *settings) for word in ("--set", each)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests"), "--headless"),
            *("--only-summary", "--host", f"smtp://127.0.0.1:{server.port}", "--lag-max", "5"),
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


def test_rude_clients_hold_nobody_up(server, tmp_path):
    """One of each kind beside the load: every message is accepted, every kind was there, nobody stays connected."""
    kinds = ["slow-commands", "slow-body", "garbage", "hang-up", "early-talker", "noop", "idle"]
    groups = ",".join(f"{{kind='{kind}',users=1,bytes_per_s=20.0}}" for kind in kinds)
    before = server.stats()
    end = play(
        server,
        tmp_path,
        settings=(f"load.beside=[{groups}]", "load.messages=800", "load.keep=true"),
    )
    assert end["outcomes"] == {"250": 800}
    rude = {name.rpartition(" ")[0] or name for name in end["verbs"]} & set(kinds)
    # Those that the server keeps for as long as they stay busy have no end before the run's.
    assert {"garbage", "hang-up", "early-talker", "idle"} <= rude
    after = server.until(lambda stats: stats["smtp.session"] == 0)
    assert after["smtp.message"] - before["smtp.message"] == 800
    assert after["smtp.timeout"] > before["smtp.timeout"]
