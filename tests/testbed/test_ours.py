"""What the bench knows of our server without running it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from testbed.targets.base import Owed
from testbed.targets.ours import OurServer, given_up, merged, queue_id, to_toml

LOG = """\
Jan 26 09:37:23 relay mta[1]: 0000000100000001 mta delivery evpid=0000002a00000001 from=<s@x.test> to=<a@x.test> rcpt=<-> source="127.0.0.1" relay="127.0.10.1 (mx0.x.test)" delay=1s result="Ok" stat="250 2.0.0 Ok"
Jan 26 09:37:23 relay mta[1]: 0000000100000001 mta delivery evpid=0000002b00000002 from=<> to=<b@x.test> rcpt=<-> source="-" relay="x.test" delay=1s result="PermFail" stat="550 5.1.1 no"
Jan 26 09:37:23 relay mta[1]: 0000000100000001 mta delivery evpid=0000002c00000001 from=<s@x.test> to=<c@x.test> rcpt=<-> source="-" relay="x.test" delay=1s result="TempFail" stat="451 result="PermFail""
Jan 26 09:37:23 relay mta[1]: relay: Expire for 0000002d00000003: from=<s@x.test>, to=<d@x.test>, rcpt=<->, delay=4d, stat=timeout
Jan 26 09:37:23 relay mta[1]: 0000000000000000 mda delivery evpid=0000002e00000001 from=<s@x.test> to=<e@x.test> rcpt=<e@x.test> user=e delay=0s result=PermFail stat=Error (5.3.0 Error)
Jan 26 09:37:23 relay mta[1]: 0000000000000000 mda delivery evpid=0000002f00000001 from=<s@x.test> to=<f@x.test> rcpt=<f@x.test> user=f delay=0s result=Ok stat=Delivered
Jan 26 09:37:23 relay mta[1]: queue: restored 3 envelopes in 0.10 s
"""


def test_what_was_given_up_is_read_from_the_log() -> None:
    """Failed for good, remotely or here, or too old; what a remote host writes into its reply can't forge either."""
    assert [
        Owed("0000002b", "b@x.test"),
        Owed("0000002d", "d@x.test"),
        Owed("0000002e", "e@x.test"),
    ] == list(given_up(LOG.splitlines()))


def test_tables_are_merged_deeply() -> None:
    """The bench's own keys win; what is beside them stays; nothing is changed in place."""
    base: dict[str, Any] = {
        "limits": {"mta": {"max_mx": 3}},
        "relay": {"port": 25, "smart_host": "x"},
    }
    over = {"relay": {"port": 2525}, "seed": 7}

    assert {
        "limits": {"mta": {"max_mx": 3}},
        "relay": {"port": 2525, "smart_host": "x"},
        "seed": 7,
    } == merged(base, over)
    assert 25 == base["relay"]["port"]


@pytest.mark.parametrize(
    "settings",
    [
        {"a": 1, "b": {"c": [1, 2], "d": True, "e": 0.5}},
        {"text": 'quote " backslash \\ and ü'},
        {"empty": [], "nested": {"deep": {"deeper": "x"}}},
    ],
)
def test_the_configuration_file_is_toml(settings: dict[str, object]) -> None:
    """What is written is read back as the same."""
    assert settings == tomllib.loads(to_toml(settings))


def test_the_configuration_says_what_the_bench_needs(tmp_path: Path) -> None:
    """The scenario's settings, the world's addresses, free ports, and a seed that is one."""
    server = OurServer(
        tmp_path,
        representation="packed",
        overrides={"limits": {"mta": {"max_mx": 3}}, "envelope": "slim"},
        seed=0,
        relay_port=4025,
        nameserver="127.0.0.1:4053",
    )
    written = tomllib.loads(server.config.read_text())
    assert 0 == server.stop()

    assert ("packed", 1, 4025) == (written["envelope"], written["seed"], written["relay"]["port"])
    assert {"max_mx": 3} == written["limits"]["mta"]
    assert "127.0.0.1:0" == written["smtp"]["listen"]
    assert len(written["control"]["socket"]) < 108
    assert not Path(written["control"]["socket"]).parent.exists()


@pytest.mark.parametrize("named", ["", "own.pem"])
def test_a_scenario_may_name_its_own_authority(tmp_path: Path, named: str) -> None:
    """The world's is for those that name none; inside the directory by its name, so that it can be moved."""
    server = OurServer(
        tmp_path,
        representation="packed",
        overrides={"relay": {"ca_file": named}} if named else {},
        seed=1,
        relay_port=4025,
        nameserver="127.0.0.1:4053",
        ca_file=tmp_path / "ca.pem",
    )
    written = tomllib.loads(server.config.read_text())
    assert 0 == server.stop()
    assert (named or "ca.pem", 4025) == (written["relay"]["ca_file"], written["relay"]["port"])


def test_the_queue_id_is_in_the_reply() -> None:
    """As the load recorded it; another server's reply has none of ours."""
    assert "0000002a" == queue_id("2.0.0 0000002a Message accepted for delivery")
    assert "" == queue_id("2.0.0 Ok: queued as 4X1")
