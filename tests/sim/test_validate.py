"""The validation: the model passes it, and a model with a small fault does not."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from mta.core.engine import Engine
from mta.core.holdqueue import HoldQueue
from mta.core.instructions import RemoveEnvelope
from mta.core.local import LocalAgent
from mta.core.retry import QuadraticRetry
from mta.core.settings import ConfigError
from sim import inbound as door
from sim import runner
from sim import validate as validating
from sim.__main__ import app
from sim.behaviours import Latency
from sim.behaviours.delays import LatencyBehaviour
from sim.behaviours.refusals import Reject
from sim.cpu import EventLoop
from sim.driver import Driver
from sim.inbound import Inbound
from sim.kernel import SimpyKernel
from sim.local import LocalMail
from sim.queue import GroupCommit
from sim.remote import RemoteHost
from sim.spool import Spool
from sim.validate import RULES, Profile, Row, chosen, validate, verdict
from sim.validation import degenerate
from sim.validation.laws import LAWS
from sim.validation.stats import Estimate, estimate, student_cdf, student_quantile

SMALL = Profile("small", scale=0.2, runs_min=6, runs_max=12, strictness=0.4)
"""So little that it is a matter of a second, and as strict as that allows."""

Patch = pytest.MonkeyPatch


def rows(name: str, profile: Profile = SMALL) -> list[Row]:
    """Return what one experiment finds."""
    return list(validate(profile, chosen([name])))


class TestModel:
    @pytest.mark.parametrize("name", [rule.name for rule in RULES])
    def test_rules_hold(self, name: str):
        """Each rule, exactly."""
        found = rows(name)
        assert found
        assert [(row.what, row.model) for row in found if not row.ok] == []
        assert all(row.half_width is None for row in found)

    @pytest.mark.parametrize("name", [law.name for law in LAWS])
    def test_theory_is_met(self, name: str):
        """Each law, at a fifth of its size."""
        found = rows(name)
        assert found
        assert [(row.what, row.model, row.problem) for row in found if not row.ok] == []
        assert all(row.half_width is not None and row.runs >= 6 for row in found)


def door_lets_one_more_in(patch: Patch) -> None:
    """The limit on connections is off by one."""
    honest = door.on_connect

    def on_connect(pressure: Any, *, from_client: int, limits: Any) -> Any:
        return honest(
            pressure, from_client=from_client, limits=replace(limits, max_conn=limits.max_conn + 1)
        )

    patch.setattr(door, "on_connect", on_connect)


def refusals_take_room(patch: Patch) -> None:
    """A client that heard 421 counts as a connection until it has closed: a fault that the model had."""
    honest = Inbound._turn_away

    def turn_away(self: Inbound, number: int) -> None:
        before = self.refused
        honest(self, number)
        if self.refused > before:
            self._connections += 1
            self._closing[-1] = (self._closing[-1][0], 1)

    patch.setattr(Inbound, "_turn_away", turn_away)


def one_more_connection(patch: Patch) -> None:
    """The limit of connections to a host is off by one."""
    honest = degenerate.model_config

    def model_config(*args: Any, **named: Any) -> Any:
        config = honest(*args, **named)
        config.limits.mta.max_conn_per_host += 1
        config.concurrency.limit += 1
        return config

    patch.setattr(degenerate, "model_config", model_config)


def hosts_answer_later(patch: Patch) -> None:
    """Hosts take 5 % longer."""
    honest = Latency.make

    def make(self: Latency, rng: Any) -> LatencyBehaviour:
        made = honest(self, rng)
        return LatencyBehaviour(lambda: 1.05 * made.sample(), made.verbs)

    patch.setattr(Latency, "make", make)


def hosts_answer_a_little_later(patch: Patch) -> None:
    """A transaction takes a millisecond that nobody speaks of."""
    honest = RemoteHost.transaction

    def transaction(*args: Any) -> Any:
        found = honest(*args)
        return found._replace(duration_s=found.duration_s + 0.001)

    patch.setattr(RemoteHost, "transaction", transaction)


def refuses_more(patch: Patch) -> None:
    """Hosts refuse a tenth more."""
    honest = Reject.make
    patch.setattr(
        Reject,
        "make",
        lambda self, rng: honest(replace(self, probability=1.1 * self.probability), rng),
    )


def commits_are_fast(patch: Patch) -> None:
    """The writer needs 5 % less than it costs."""
    honest = GroupCommit.__init__

    def init(self: GroupCommit, kernel: Any, costs: Any, **named: Any) -> None:
        fast = replace(
            costs,
            commit_s=0.95 * costs.commit_s,
            commit_message_s=0.95 * costs.commit_message_s,
        )
        honest(self, kernel, fast, **named)

    patch.setattr(GroupCommit, "__init__", init)


def batches_are_larger(patch: Patch) -> None:
    """A commit takes one more than it may."""
    honest = GroupCommit.__init__

    def init(self: GroupCommit, *args: Any, batch_max: int, **named: Any) -> None:
        honest(self, *args, batch_max=batch_max + 1, **named)

    patch.setattr(GroupCommit, "__init__", init)


def nobody_waits_for_the_loop(patch: Patch) -> None:
    """The event loop does two things at once."""

    def do(self: EventLoop, job: Callable[[Any], None], argument: Any) -> None:
        self.done_at = self._kernel.now
        job(argument)

    patch.setattr(EventLoop, "do", do)


def last_in_first_out(patch: Patch) -> None:
    """Hold queues let the youngest go first."""

    def take(self: HoldQueue, count: int) -> Any:
        held = [self._held.popleft() for _ in range(len(self._held))]
        cut = max(0, len(held) - count)
        for handle in held[:cut]:
            self._held.append(handle)
        return held[cut:]

    patch.setattr(HoldQueue, "_take", take)


def an_envelope_is_lost(patch: Patch) -> None:
    """One envelope of a run leaves the core without a word."""
    honest = Engine.handle
    lost: list[RemoveEnvelope] = []

    def handle(self: Engine, stimulus: Any, now: float) -> list[Any]:
        said = honest(self, stimulus, now)
        gone = [each for each in said if type(each) is RemoveEnvelope]
        if gone and not lost and now > 1.0:
            lost.append(gone[0])
            said.remove(gone[0])
        return said

    patch.setattr(Engine, "handle", handle)


def a_row_is_not_restored(patch: Patch) -> None:
    """A start reads one envelope less than the disk has."""
    honest = Spool.order
    patch.setattr(Spool, "order", lambda self: honest(self)[:-1])


def tries_are_late(patch: Patch) -> None:
    """Each retry is 5 % later than its timetable says."""
    honest = QuadraticRetry.next_attempt_at

    def next_attempt_at(self: QuadraticRetry, *, created_at: float, **named: Any) -> float:
        at = honest(self, created_at=created_at, **named)
        return created_at + 1.05 * (at - created_at)

    patch.setattr(QuadraticRetry, "next_attempt_at", next_attempt_at)


def simpy_is_late(patch: Patch) -> None:
    """One of the two clocks adds a nanosecond to every wait."""
    honest = SimpyKernel.schedule
    patch.setattr(
        SimpyKernel,
        "schedule",
        lambda self, delay, function, argument: honest(self, delay + 1e-9, function, argument),
    )


def local_deliveries_are_slow(patch: Patch) -> None:
    """Local deliveries take 5 % longer than was drawn."""
    honest = LocalMail.__init__

    def init(self: LocalMail, *args: Any, **named: Any) -> None:
        honest(self, *args, **named)
        self._service_s = [1.05 * seconds for seconds in self._service_s]

    patch.setattr(LocalMail, "__init__", init)


def users_think_longer(patch: Patch) -> None:
    """Users think 5 % longer than was drawn."""
    honest = Inbound.__init__

    def init(self: Inbound, *args: Any, **named: Any) -> None:
        honest(self, *args, **named)
        self._think_s = [1.05 * seconds for seconds in self._think_s]

    patch.setattr(Inbound, "__init__", init)


def clients_are_slow(patch: Patch) -> None:
    """A client's own part takes 5 % longer."""
    honest = Inbound.__init__

    def init(self: Inbound, kernel: Any, loop: Any, costs: Any, *args: Any, **named: Any) -> None:
        slow = replace(costs, client_s=1.05 * costs.client_s)
        honest(self, kernel, loop, slow, *args, **named)

    patch.setattr(Inbound, "__init__", init)


def draws_depend_on_limits(patch: Patch) -> None:
    """A message's local delivery fails more often where more may run at once."""
    honest = LocalMail.start

    def start(self: LocalMail, instruction: Any) -> None:
        honest(self, instruction)
        if self.running == 3:
            self._fatal = [True] * len(self._fatal)

    patch.setattr(LocalMail, "start", start)


def bytes_of_the_gone_stay(patch: Patch) -> None:
    """A message that is gone is counted by one byte for ever."""
    honest = Driver._gone

    def gone(self: Driver, envelope: Any) -> Any:
        message = honest(self, envelope)
        self.fill.size_bytes += not message.left
        return message

    patch.setattr(Driver, "_gone", gone)


def local_mail_is_counted_twice(patch: Patch) -> None:
    """A local envelope that its agent has counts as one that waits, too."""
    honest = runner.local_standing

    def local_standing(driver: Any) -> Any:
        found = honest(driver)
        return found._replace(pending=found.pending + found.in_flight)

    patch.setattr(runner, "local_standing", local_standing)


def limits_have_two_bits(patch: Patch) -> None:
    """A limit of 5 connections is one of 1."""
    honest = degenerate.model_config

    def model_config(*args: Any, **named: Any) -> Any:
        config = honest(*args, **named)
        config.concurrency.limit = config.concurrency.limit % 4 or 4
        return config

    patch.setattr(degenerate, "model_config", model_config)


def names_matter(patch: Patch) -> None:
    """A host answers later the later it is in the alphabet."""
    honest = RemoteHost.transaction

    def transaction(self: Any, conn: Any, sender: Any, rcpts: Any, *args: Any) -> Any:
        found = honest(self, conn, sender, rcpts, *args)
        late_s = 0.001 * any("@zz." in str(rcpt) for rcpt in rcpts)
        return found._replace(duration_s=found.duration_s + late_s)

    patch.setattr(RemoteHost, "transaction", transaction)


def who_has_the_turn_keeps_it(patch: Patch) -> None:
    """A user with more mail is at the head of the line again, not at its end."""
    honest = LocalAgent._offer_turn

    def offer_turn(self: LocalAgent, user: Any) -> None:
        before = len(self._turns)
        honest(self, user)
        if len(self._turns) > before:
            self._turns.rotate(1)

    patch.setattr(LocalAgent, "_offer_turn", offer_turn)


class TestMutations:
    @pytest.mark.parametrize(
        ("fault", "names"),
        [
            (door_lets_one_more_in, ("limits", "erlang-b")),
            (refusals_take_room, ("erlang-b",)),
            (one_more_connection, ("limits", "mmc")),
            (hosts_answer_later, ("mmc", "zero-load")),
            (hosts_answer_a_little_later, ("zero-load", "scaling")),
            (refuses_more, ("tries",)),
            (commits_are_fast, ("group-commit", "commits", "users")),
            (batches_are_larger, ("limits", "commits")),
            (nobody_waits_for_the_loop, ("event-loop",)),
            (last_in_first_out, ("holds",)),
            (an_envelope_is_lost, ("conservation",)),
            (a_row_is_not_restored, ("restarts",)),
            (tries_are_late, ("timetable",)),
            (simpy_is_late, ("repeatable",)),
            (local_deliveries_are_slow, ("drain",)),
            (users_think_longer, ("users", "closed")),
            (clients_are_slow, ("md1", "zero-load")),
            (draws_depend_on_limits, ("common",)),
            (one_more_connection, ("recursion",)),
            (bytes_of_the_gone_stay, ("memory",)),
            (local_mail_is_counted_twice, ("memory",)),
            (limits_have_two_bits, ("monotone",)),
            (names_matter, ("relabelled",)),
            (who_has_the_turn_keeps_it, ("shares",)),
        ],
    )
    def test_a_fault_is_found(
        self, fault: Callable[[Patch], None], names: tuple[str, ...], monkeypatch: Patch
    ):
        """A limit off by one, a time 5 % off, a lost envelope: each of these experiments says so."""
        fault(monkeypatch)
        for name in names:
            try:
                found = rows(name)
            except (AssertionError, KeyError):
                continue  # The model itself noticed.
            assert [row.what for row in found if not row.ok], name


class TestVerdict:
    def test_far_vague_or_no_chance(self):
        """Near, known to be near, and no further than chance takes it."""
        assert verdict(Estimate(1.001, 0.001, 20), 1.0, 0.02) == ""
        assert verdict(Estimate(1.03, 0.001, 20), 1.0, 0.02) == "too far"
        assert verdict(Estimate(1.0, 0.02, 20), 1.0, 0.02) == "too vague"
        assert verdict(Estimate(1.01, 0.001, 20), 1.0, 0.02) == "no chance"
        assert verdict(Estimate(math.nan, 0.001, 20), 1.0, 0.02) == "too far"

    def test_one_replication_proves_nothing(self):
        """It has no interval."""
        assert estimate([1.0]).half_width() == math.inf
        assert verdict(estimate([1.0]), 1.0, 0.5) == "too vague"

    def test_equal_replications(self):
        """No spread: right is right and wrong is as wrong as can be."""
        assert estimate([2.0, 2.0]).deviation(2.0) == 0.0
        assert estimate([2.0, 2.0]).deviation(1.0) == math.inf


class TestStudent:
    @pytest.mark.parametrize(
        ("probability", "freedom", "t"),
        [
            (0.975, 1, 12.7062),
            (0.975, 2, 4.3027),
            (0.975, 9, 2.2622),
            (0.995, 5, 4.0321),
            (0.9995, 10, 4.5869),
            (0.9995, 29, 3.6594),
            (0.975, 1000, 1.9623),
        ],
    )
    def test_tables(self, probability: float, freedom: int, t: float):
        """Values of any table of Student's t."""
        assert student_quantile(probability, freedom) == pytest.approx(t, abs=1e-4)
        assert student_cdf(t, freedom) == pytest.approx(probability, abs=1e-5)

    def test_symmetry(self):
        """Half lies below 0, and as much below -t as above t."""
        for freedom in (1, 2, 3, 8):
            assert student_cdf(0.0, freedom) == 0.5
            assert student_cdf(-1.5, freedom) == pytest.approx(1 - student_cdf(1.5, freedom))


class TestSequence:
    def test_it_goes_on_until_it_knows(self):
        """Replications stop when the interval is half of the tolerance, or at the most of the profile."""
        quick = replace(SMALL, runs_max=30, strictness=1.0)
        (some,) = rows("closed", replace(quick, strictness=0.3))
        (more,) = rows("closed", quick)
        assert some.runs < more.runs
        assert more.half_width is not None
        assert more.half_width <= more.tolerance / 2 or more.runs == 30

    def test_another_seed_draws_others(self):
        """The same seed gives the same rows, another one does not."""
        one = list(validate(SMALL, chosen(["group-commit"])))
        assert one == list(validate(SMALL, chosen(["group-commit"])))
        assert one != list(validate(SMALL, chosen(["group-commit"]), seed=1))

    def test_progress_rises_to_the_end(self):
        """What is done never gets less."""
        told: list[float] = []
        list(validate(SMALL, chosen(["drain", "closed"]), progress=lambda name, p: told.append(p)))
        assert told == sorted(told)
        assert told[0] == 0.0
        assert told[-1] == 1.0


class TestCommand:
    def test_table(self):
        """One line for each thing that was found; status 0; no colour where nobody looks."""
        done = CliRunner().invoke(app, ["validate", "--only", "users", "--only", "drain"])
        assert done.exit_code == 0, done.output
        assert "4 of 4 agree" in done.output
        assert "Denning and Buzen" in done.output
        assert "\x1b" not in done.output

    def test_json(self):
        """Everything, for programs."""
        done = CliRunner().invoke(app, ["validate", "--only", "timetable", "--json"])
        found = json.loads(done.output)
        assert found["ok"] is True
        assert found["profile"] == "quick"
        assert {row["experiment"] for row in found["rows"]} == {"timetable"}

    def test_a_fault_is_status_1(self, monkeypatch: Patch):
        """And the line says what."""
        tries_are_late(monkeypatch)
        done = CliRunner().invoke(app, ["validate", "--only", "timetable"])
        assert done.exit_code == 1
        assert "differs" in done.output
        assert "of 4 disagree" in done.output

    @pytest.mark.parametrize(
        "wrong", [["--only", "nonsense"], ["--profile", "lenient"], ["--seed", "-1"]]
    )
    def test_what_the_operator_says_wrong(self, wrong: list[str]):
        """Status 2, one line."""
        done = CliRunner().invoke(app, ["validate", *wrong])
        assert done.exit_code == 2
        assert wrong[0] in done.output

    def test_profiles(self):
        """The nightly one is stricter."""
        quick, nightly = validating.profile_of("quick"), validating.profile_of("nightly")
        assert nightly.strictness > quick.strictness
        with pytest.raises(ConfigError, match="must be quick or nightly"):
            validating.profile_of("x")
