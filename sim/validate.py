"""Holds the model against theory and against its own invariants, and says how near it comes.

The model and the server share their decisions, so that their agreement proves little (ARCHITECTURE.md). Here
the model answers questions whose answer is known without it. What is compared with theory passes if three things
are true of the mean of independent replications:

- it is as near to the theory as the tolerance says,
- its 95 % interval (Student's t) is as narrow as that, so that nearness means something,
- chance explains the rest: less than one in a thousand would be so far away, if the theory were true of the model.

Replications are made until the interval is half of the tolerance. Rules hold exactly or do not hold.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from mta.core.settings import ConfigError
from sim.validation.comparisons import COMPARISONS
from sim.validation.laws import LAWS, Law
from sim.validation.rules import EXACT, Rule
from sim.validation.stats import Estimate, estimate, student_quantile

RULES: Final[tuple[Rule, ...]] = (*EXACT, *COMPARISONS)
"""What holds exactly."""

EXPERIMENTS: Final[tuple[Rule | Law, ...]] = (*RULES, *LAWS)
"""All, in their order."""

CHANCE: Final = 0.001
"""What is less probable than this, is not taken for chance."""

SEED_RUNS: Final = 100_000
"""Replications that a seed has for itself."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How much is made of it."""

    name: str
    scale: float
    """Messages of a run, times what the experiment says."""
    runs_min: int
    runs_max: int
    """Replications."""
    strictness: float
    """Tolerances are divided by it."""


PROFILES: Final = {
    each.name: each
    for each in (
        Profile("quick", scale=1.0, runs_min=10, runs_max=80, strictness=1.0),
        Profile("nightly", scale=2.0, runs_min=20, runs_max=500, strictness=2.5),
    )
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    experiment: str
    what: str
    unit: str
    theory: float
    model: float
    """The mean of the replications, or what was found."""
    half_width: float | None
    """Half of the 95 % interval; None where nothing is left to chance."""
    deviation: float | None
    """Standard errors between model and theory."""
    tolerance: float
    """Absolute."""
    runs: int
    problem: str
    """Empty if all is well."""

    @property
    def ok(self) -> bool:
        """All is well."""
        return not self.problem


Progress = Callable[[str, float], None]
"""Told of the experiment that runs, and of the part of all work that is done."""


def profile_of(name: str) -> Profile:
    """Return a profile by its name.

    Raises:
        ConfigError: there is no such profile.
    """
    found = PROFILES.get(name)
    if found is None:
        problem = f"must be {' or '.join(PROFILES)}"
        raise ConfigError("--profile", value=name, problem=problem)
    return found


def names() -> list[str]:
    """Return the names of all experiments, in their order."""
    return [each.name for each in EXPERIMENTS]


def chosen(only: Collection[str]) -> tuple[Rule | Law, ...]:
    """Return the experiments of these names; all if there are none.

    Raises:
        ConfigError: there is no such experiment.
    """
    for name in only:
        if name not in names():
            problem = f"there is no such experiment; there are {', '.join(names())}"
            raise ConfigError("--only", value=name, problem=problem)
    return tuple(each for each in EXPERIMENTS if not only or each.name in only)


def validate(
    profile: Profile,
    experiments: Sequence[Rule | Law],
    *,
    seed: int = 0,
    progress: Progress = lambda name, part: None,
) -> Iterator[Row]:
    """Yield a row for each thing that theory knows, as it is found.

    Args:
        profile: how much is made of it.
        experiments: as `chosen` returned them.
        seed: another one draws other replications.
        progress: told what runs, and how far all is.
    """
    total = len(experiments)
    for number, experiment in enumerate(experiments):
        progress(experiment.name, number / total)
        if isinstance(experiment, Rule):
            yield from _rule(experiment)
        else:
            yield from _law(experiment, profile, seed, partial(_advance, progress, number, total))
    progress("", 1.0)


def _advance(progress: Progress, number: int, total: int, name: str, part: float) -> None:
    progress(name, (number + part) / total)


def _rule(rule: Rule) -> Iterator[Row]:
    for found in rule.check(rule.messages):
        # Not `>`: a NaN is no agreement.
        near = abs(found.found - found.expected) <= found.tolerance
        yield Row(
            rule.name,
            found.what,
            found.unit,
            found.expected,
            found.found,
            None,
            None,
            found.tolerance,
            1,
            "" if near else "differs",
        )


def _law(law: Law, profile: Profile, seed: int, advance: Progress) -> Iterator[Row]:
    messages = round(law.messages * profile.scale)
    tolerances = [q.theory * q.tolerance / profile.strictness for q in law.quantities]
    measured: list[tuple[float, ...]] = []
    means: list[Estimate] = []
    while len(measured) < profile.runs_max:
        measured.append(law.measure(messages, seed * SEED_RUNS + len(measured) + 1))
        runs = len(measured)
        if runs < profile.runs_min:
            advance(law.name, runs / profile.runs_min / 2)
            continue
        means = [estimate(column) for column in zip(*measured, strict=True)]
        # How far the interval is from the one that is wanted: it narrows with the square root of the runs.
        needed = max(
            (mean.half_width() / (tolerance / 2)) ** 2
            for mean, tolerance in zip(means, tolerances, strict=True)
        )
        if needed <= 1:
            break
        advance(law.name, max(0.5, 1 / needed))
    for quantity, mean, tolerance in zip(law.quantities, means, tolerances, strict=True):
        yield Row(
            law.name,
            quantity.what,
            quantity.unit,
            quantity.theory,
            mean.mean,
            mean.half_width(),
            mean.deviation(quantity.theory),
            tolerance,
            mean.runs,
            verdict(mean, quantity.theory, tolerance),
        )


def verdict(mean: Estimate, theory: float, tolerance: float) -> str:
    """Return what is wrong with a mean, or an empty string; see the module."""
    if not abs(mean.mean - theory) <= tolerance:
        return "too far"
    if not mean.half_width() <= tolerance:
        return "too vague"
    if not abs(mean.deviation(theory)) <= student_quantile(1 - CHANCE / 2, mean.runs - 1):
        return "no chance"
    return ""


def report(profile: Profile, rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything, for JSON."""
    return {
        "profile": profile.name,
        "ok": all(row.ok for row in rows),
        "rows": [{**asdict(row), "ok": row.ok} for row in rows],
    }


def table(rows: Sequence[Row], experiments: Sequence[Rule | Law]) -> None:
    """Print all rows, in colour on a terminal only, and what they come to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("", "theory", "model", "± 95 %", "off by s.e.", "tolerance", "runs", ""):
        shown.add_column(head, justify="right" if head else "left", no_wrap=bool(head))
    about = {each.name: each.about for each in experiments}
    last = ""
    for row in rows:
        if row.experiment != last:
            last = row.experiment
            shown.add_section()
            shown.add_row(f"[bold]{row.experiment}[/] {_plain(about[last])}")
        exact = row.half_width is None
        shown.add_row(
            f"  {_plain(row.what)}, {_plain(row.unit)}",
            _number(row.theory),
            _number(row.model),
            "" if row.half_width is None else _number(row.half_width),
            "" if row.deviation is None else f"{row.deviation:+.1f}",
            "exact" if exact and not row.tolerance else _number(row.tolerance),
            "" if exact else str(row.runs),
            "[green]ok[/]" if row.ok else f"[bold red]{row.problem}[/]",
        )
    # A table that is read by a program or kept is not cut to a terminal's width.
    console.print(shown) if console.is_terminal else Console(width=160).print(shown)
    failed = sum(not row.ok for row in rows)
    words = (
        f"{len(rows)} of {len(rows)} agree" if not failed else f"{failed} of {len(rows)} disagree"
    )
    console.print(f"[{'bold red' if failed else 'green'}]{words}[/]")


def _plain(text: str) -> str:
    """Return a text in which rich finds nothing to interpret."""
    return text.replace("[", r"\[")


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.1e}"
