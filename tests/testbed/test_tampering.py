"""The ledger against a relay that lies: each message that it drops, repeats, alters or swaps is found, and no other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from sim.scenario import parse, to_toml
from testbed import ledger
from testbed.children import source_environment
from testbed.targets.ours import queue_id
from testbed.world.handle import World
from tests.support.dishonest import Deed, DishonestRelay

pytestmark = pytest.mark.system

SCENARIO: Final = b"""
name = "lies"
seed = 3
[load]
lag_max_s = 60
messages = 40
rate = 200.0
sessions = 1
keep = true
senders = 1
sizes = { law = "fixed", bytes = 2048 }
recipients = { law = "fixed", count = 2 }
[[destinations]]
name = "one"
domain = "one.test"
"""

DEEDS: Final[dict[int, Deed]] = {3: "drop", 7: "drop", 11: "twice", 17: "alter", 23: "later"}


@pytest.fixture
def account(tmp_path: Path) -> ledger.Ledger:
    """The ledger of a real load through the relay to a real sink."""
    file = tmp_path / "lies.toml"
    file.write_text(to_toml(parse(SCENARIO, source="lies")))
    record = tmp_path / "load.jsonl"
    root = Path(__file__).resolve().parents[2]
    with (
        World(file, record_dir=tmp_path) as world,
        DishonestRelay(("127.0.10.1", world.smtp_port), DEEDS) as relay,
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", str(root / "loadtests"), "--headless"),
                *("--only-summary", "--host", f"smtp://127.0.0.1:{relay.port}"),
                *("--scenario", str(file), "--run-id", "lies-1", "--record", str(record)),
            ],
            env={**source_environment()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        world.stop()
        records = list(world.records)
    start = json.loads(record.read_text().splitlines()[0])["load_start"]
    return ledger.build(
        ledger.read_lines(record),
        (line for path in records for line in ledger.read_lines(path)),
        run_id="lies-1",
        start=start,
        queue_id=queue_id,
        destination=lambda recipient: "one",
    )


def test_each_lie_is_found(account: ledger.Ledger) -> None:
    """Two recipients a message: so many are lost, come twice, are altered, and come out of order; and it says which."""
    assert 80 == account.accepted
    assert 76 == account.delivered
    assert (4, 2, 2, 2) == (
        account.lost,
        account.duplicates,
        account.altered,
        account.reordered,
    )
    assert (0, 0, 0) == (account.unexpected, account.queued, account.bounced)
    named = {kind: {who.split()[1] for who in whos} for kind, whos in account.examples.items()}
    assert {
        "lost": {"3", "7"},
        "duplicate": {"11"},
        "altered": {"17"},
        "reordered": {"23"},
    } == named
    one = account.destinations["one"]
    assert (4, 2, 2, 2) == (one.lost, one.duplicates, one.altered, one.reordered)
