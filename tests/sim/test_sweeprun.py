"""A sweep's runs: the same whatever carries them out, kept, trusted only if they are what was written."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mta.core.settings import ConfigError
from sim.codeversion import AROUND, model_digest
from sim.costs import Costs
from sim.executors import Cluster, Here, Pool
from sim.replay import replay
from sim.runner import simulate
from sim.scenario import load
from sim.sweep import design
from sim.sweepcache import Cache
from sim.sweepresult import result_of
from sim.sweeprun import Plan, Progress, carry_out_plan, make_plan
from sim.sweepsubject import subject
from sim.sweeptask import Common, Outcome, Task, common_digest
from tests.support.model import scenario, write_run

TINY = ["load.messages=40", "load.rate=400"]
LIMITS = "limits.mta.max_conn_per_route=1,3"


def plan_of(*over: str, replications: int = 2, overrides: Sequence[str] = TINY, **options) -> Plan:
    of = subject("concurrency-sweep", overrides, **options)
    return make_plan(
        of, design(over or [LIMITS, "envelope=full,packed"]), replications=replications
    )


class Backwards:
    """Gives what it was asked for in another order."""

    workers = 3

    def run(self, common: Common, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        found = list(Here().run(common, tasks))
        random.Random(1).shuffle(found)
        yield from found


class Nobody:
    """Must not be asked."""

    workers = 1

    def run(self, common: Common, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        raise AssertionError(tasks)


def test_whatever_carries_it_out_the_result_is_the_same():
    """One after the other, in processes, in another order: to the last bit."""
    plan = plan_of()
    texts = {
        json.dumps(result_of(carry_out_plan(plan, executor)))
        for executor in (Here(), Pool(2), Backwards())
    }
    assert len(texts) == 1


def test_a_point_is_what_a_run_of_its_own_would_be():
    """Bytes of another representation included; point 0 is what is set now."""
    plan = plan_of()
    found = carry_out_plan(plan, Here())
    assert len(found.records) == 1 + 4
    assert plan.runs == 3 * 2  # envelopes share a run
    for point, records in zip(plan.design.points, found.records[1:], strict=True):
        said = [f"{key}={value}" for key, value in plan.design.settings(point).items()]
        for replication, record in enumerate(records):
            alone = simulate(load("concurrency-sweep", [*TINY, *said]), replication=replication)
            assert record is not None
            assert record.fingerprint == alone.fingerprint
            assert record.numbers["peak_rss_bytes"] == alone.peak_rss_bytes
            assert record.numbers["p95"] == alone.quantiles()["p95"]
    assert plan.now == {"server.limits.mta.max_conn_per_route": "5", "server.envelope": "slim"}


def test_points_share_their_luck_and_replications_do_not():
    """Same mail at every point, other mail in each replication."""
    found = carry_out_plan(plan_of(LIMITS, "retry.base_s=1,9"), Here())
    mail = [{record.arrivals for record in column} for column in zip(*found.records, strict=True)]
    assert [len(each) for each in mail] == [1, 1]
    assert mail[0] != mail[1]
    assert result_of(found)["same_mail"]
    other = carry_out_plan(plan_of("load.rate=100,200"), Here())
    assert not result_of(other)["same_mail"]


def test_what_was_run_is_not_run_again(tmp_path: Path):
    """Nor is what another sweep ran; a wider one runs what is new."""
    cache = Cache(tmp_path)
    first = carry_out_plan(plan_of(), Here(), cache)
    again = carry_out_plan(plan_of(), Nobody(), Cache(tmp_path))
    assert (first.ran, first.cached, again.ran, again.cached) == (6, 0, 0, 6)
    assert again.records == first.records
    wider = carry_out_plan(plan_of("limits.mta.max_conn_per_route=1,2,3"), Here(), cache)
    assert wider.ran == 1 * 2 + 2 * 2  # the new value, and `slim` of two others
    result = json.dumps(result_of(first))
    assert json.dumps(result_of(again)) == result


class _KilledError(Exception):
    pass


def test_a_sweep_that_was_killed_goes_on(tmp_path: Path):
    """What was done before is taken, and the result is that of one that was not."""

    def killed(at: Progress) -> None:
        if at.done == 4:
            raise _KilledError

    with pytest.raises(_KilledError):
        carry_out_plan(plan_of(), Pool(2), Cache(tmp_path), progress=killed)
    on = carry_out_plan(plan_of(), Here(), Cache(tmp_path))
    assert (on.cached, on.ran) == (4, 2)
    assert on.records == carry_out_plan(plan_of(), Here()).records


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "\x00" * len(text),
        lambda text: text.replace('"p95": ', '"p95": 1'),
        lambda text: json.dumps({**json.loads(text), "key": "0" * 64}),
        lambda text: "[]",
        lambda text: '{"key": 1}',
        lambda text: "null",
    ],
)
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage):
    """However it is damaged, and it is replaced."""
    first = carry_out_plan(plan_of(replications=1), Here(), Cache(tmp_path))
    victim = sorted(tmp_path.glob("??/*.json"))[0]
    victim.write_text(damage(victim.read_text()))
    cache = Cache(tmp_path)
    found = carry_out_plan(plan_of(replications=1), Here(), cache)
    assert (found.ran, cache.damaged) == (1, 1)
    assert found.records == first.records
    assert carry_out_plan(plan_of(replications=1), Nobody(), Cache(tmp_path)).ran == 0


def test_a_key_has_everything_that_the_numbers_come_from():
    """Scenario, settings, seed, replication, costs, arrivals, code: each gives others; words do not."""
    base = plan_of(replications=1)
    changed = {
        "load": plan_of(overrides=[*TINY, "load.sessions=3"]),
        "server": plan_of(overrides=[*TINY, "server.retry.base_s=3"]),
        "host": plan_of(overrides=[*TINY, "destinations.0.hosts=2"]),
        "seed": plan_of(seed=5),
        "costs": plan_of(costs=Costs(commit_s=0.5)),
    }
    for what, plan in changed.items():
        before = {(base.common_digest, decided) for decided in base.asked}
        after = {(plan.common_digest, decided) for decided in plan.asked}
        assert not before & after, what
    words = plan_of(overrides=[*TINY, "title=another", "question=why"])
    assert (words.common_digest, set(words.asked)) == (base.common_digest, set(base.asked))
    assert common_digest(replace(base.common, start=1.0)) != base.common_digest
    measured = Costs()
    measured.provenance.run = "elsewhere"
    assert plan_of(costs=measured).common_digest == base.common_digest


def test_the_model_s_code_is_in_the_key_and_what_is_around_it_is_not():
    """Nothing that is left out of the digest is loaded by a run."""
    code = "import sys, sim.sweeptask; print(*(m for m in sys.modules if m.startswith('sim.')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in run.stdout.split()}
    assert loaded & AROUND == set()
    assert {"runner", "driver", "compare", "sweeptask"} <= loaded
    folder = Path(__file__).parents[2] / "sim"
    assert {name for name in AROUND if not (folder / f"{name}.py").is_file()} == set()
    assert len(model_digest()) == 64


def test_a_run_may_take_so_long_and_no_longer():
    """The point has no numbers and does not qualify; nothing of it is kept."""
    plan = plan_of(replications=1)
    plan.common = replace(plan.common, run_s_max=0.0)
    found = carry_out_plan(plan, Here())
    assert set(found.problems) == set(plan.asked)
    result = result_of(found)
    assert result["chosen"] is None
    assert "took longer than 0 s" in result["points"][1]["why_not"][0]


def test_another_version_of_the_model_is_no_worker():
    """A cluster that was not updated gives no numbers."""

    class Old(Here):
        def run(self, common, tasks):
            for number, outcome in super().run(common, tasks):
                yield number, outcome._replace(code="0" * 64)

    with pytest.raises(ConfigError, match="another version of the model"):
        carry_out_plan(plan_of(), Old())


def test_a_cache_that_can_not_be_written(tmp_path: Path, monkeypatch):
    """At the start it is the operator's; later the sweep goes on without, and says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--cache: .*can't be made"):
        Cache(tmp_path / "file" / "cache")
    cache = Cache(tmp_path / "cache")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    found = carry_out_plan(plan_of(replications=1), Here(), cache)
    assert all(record is not None for records in found.records for record in records)
    assert "No space left on device" in cache.problem
    assert list((tmp_path / "cache").glob("??/*")) == []


def test_a_cache_has_a_limit(tmp_path: Path):
    """The oldest go, and so does what was left half-written."""
    carry_out_plan(plan_of(), Here(), Cache(tmp_path))
    entries = sorted(tmp_path.glob("??/*.json"))
    for n, path in enumerate(entries):
        os.utime(path, (n, n))
    left = entries[0].with_name("x.json.77.new")
    left.write_text("half")
    Cache(tmp_path, entries_max=3)
    assert sorted(tmp_path.glob("??/*")) == sorted(entries[-3:])


def test_how_long_it_will_take():
    """By the mean of what was run now; what was kept took nothing."""
    assert Progress(done=10, total=30, cached=6, busy_s=8.0, workers=4).left_s == 10.0
    assert Progress(done=6, total=30, cached=6, busy_s=0.0, workers=4).left_s is None


def test_a_recorded_run_is_swept_over_its_own_mail(tmp_path: Path):
    """With its arrivals, its settings and costs measured in it; what says which mail comes can't be varied."""
    of = scenario({"kind": "latency", "law": "fixed", "delay_s": 0.02}, messages=120)
    write_run(tmp_path / "run", of, costs=Costs())
    it = subject(str(tmp_path / "run"))
    plan = make_plan(it, design(["limits.mta.max_conn_per_route=1,20"]), replications=2)
    found = carry_out_plan(plan, Here())
    result = result_of(found)
    assert [result[key] for key in ("recorded", "measured", "same_mail")] == [True] * 3
    assert len({record.arrivals for records in found.records for record in records}) == 1
    p95 = [point["means"]["p95"]["mean"] for point in result["points"]]
    assert p95[1] > p95[0] >= p95[2]
    again = make_plan(subject(str(tmp_path / "run")), plan.design, replications=2)
    assert json.dumps(result_of(carry_out_plan(again, Pool(2)))) == json.dumps(result)
    with pytest.raises(ConfigError, match=r"--over: load\.rate: says which mail comes"):
        make_plan(it, design(["load.rate=1,2"]))
    with pytest.raises(ConfigError, match="neither a run nor a scenario"):
        subject("nothing-of-the-kind")


def test_a_recorded_run_is_what_a_replay_says(tmp_path: Path):
    """With other limits and another representation, whose memory was not measured, as the notes say."""
    of = scenario(
        {"kind": "latency", "law": "lognormal", "median_s": 0.02, "sigma": 0.5}, messages=150
    )
    write_run(tmp_path / "run", of, costs=Costs())
    it = subject(str(tmp_path / "run"))
    plan = make_plan(it, design(["limits.mta.max_conn_per_route=1,2", "envelope=slim,full"]))
    found = carry_out_plan(plan, Here())
    for point, (record,) in zip(plan.design.points, found.records[1:], strict=True):
        assert record is not None
        asked = [
            f"{key.removeprefix('server.')}={value}"
            for key, value in plan.design.settings(point).items()
        ]
        what_if = replay(str(tmp_path / "run"), asked)["what_if"]
        names = ("peak_rss_bytes", "p50", "p95", "deferred", "delivered", "peak_queued")
        assert {name: record.numbers[name] for name in names} == {
            name: what_if[name] for name in names
        }
    assert "full was not run: its memory is a default" in result_of(found)["notes"]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:8786", "must be tcp://host:port"),
        ("tcp://127.0.0.1", "must be tcp://host:port"),
        ("tcp://127.0.0.1:99999", "must be tcp://host:port"),
        ("http://127.0.0.1:8786", "must be tcp://host:port"),
        ("tcp://192.0.2.1:8786", "is not this machine; --anywhere allows it"),
        ("tcp://dask.example:8786", "is not this machine; --anywhere allows it"),
    ],
)
def test_a_cluster_is_on_this_machine_unless_somebody_says_otherwise(address: str, problem: str):
    """Before anything is sent anywhere."""
    with pytest.raises(ConfigError, match="--scheduler") as raised:
        Cluster(address)
    assert problem in str(raised.value)
