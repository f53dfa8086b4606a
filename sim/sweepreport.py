"""The page of a sweep: what is recommended and why, the front, every point, and how to do it again."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from sim import sweepplots
from sim.pages import NONE, notes_list, page, picture, table
from sim.sweepresult import MUST_BE_ZERO
from sim.sweepstats import CONFIDENCE, LATENCY, MEMORY
from sim.sweeptask import NUMBERS
from sim.sweepwords import (
    in_mib,
    in_seconds,
    listed,
    mib,
    seconds,
    setting_of,
    settings_lines,
    signed,
)

ROWS_MAX: Final = 300
"""Points in the table; beyond, the base and the front. ``sweep.json`` has all."""

_MORE: Final = (
    ("p99", "p99, s"),
    ("drain_time_s", "Empty after, s"),
    ("goodput", "Delivered per s"),
    ("peak_queued", "Peak queued"),
    ("deferred", "Failed tries"),
)


def html(result: Mapping[str, Any]) -> str:
    """Return the page: it needs nothing else."""
    title = f"Sweep: {result['title'] or result['scenario']}"
    return page(
        title, [_head(result, title), *_figures(result), _points(result), _reproduce(result)]
    )


def _head(result: Mapping[str, Any], title: str) -> str:
    chosen = result["chosen"]
    first, *rest = result["words"]
    kind = "good" if chosen is not None else "bad"
    head, _, tail = first.partition(":")
    lead = f"<strong>{escape(head)}:</strong>{escape(tail)}" if tail else escape(first)
    settings = "\n".join(settings_lines(result))
    return "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="lead">{escape(" ".join(result["question"].split()))}</p>' if result["question"] else "",
            f'<p class="{kind}">{lead}</p>',
            f"<pre>{escape(settings)}</pre>" if settings else "",
            "<h2>Why</h2>",
            notes_list("why", rest),
            "" if result["same_mail"] else notes_list(
                "warn", ["Points did not have the same mail: differences from the base have the luck of both in them."]
            ),
        ]
    )  # fmt: skip


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    several = result["replications"] > 1
    bars = (
        f" Bars: {CONFIDENCE:.0%} intervals of the mean of {result['replications']} runs."
        if several
        else ""
    )
    yield "<h2>Memory against latency</h2>"
    yield picture(
        sweepplots.pareto(result),
        f"Each mark is a point, a setting of all that was varied. Nothing is both lower and further left than the front.{bars}",
    )
    figure = sweepplots.along(result)
    if figure is not None:
        yield "<h2>Along each limit</h2>"
        yield picture(
            figure,
            "Where several points have the same value, each is a small mark and the line is their mean. Axes of time and rate begin"
            f" at 0, that of memory does not.{bars}",
        )


def _points(result: Mapping[str, Any]) -> str:
    points = listed(result)
    shown = points
    left = ""
    if len(points) > ROWS_MAX:
        wanted = {0, *result["front"]}
        shown = [each for each in points if each["number"] in wanted]
        left = f"<p>{len(points) - len(shown):,} points that are not on the front are in sweep.json.</p>"
    heads = [
        "",
        *(_breakable(axis["short"].rpartition(".")[2]) for axis in result["axes"]),
        "p95",
        "Peak memory",
        "Against now: p95",
        "memory",
    ]
    heads += [words for _, words in _MORE]
    rows = [_row(result, point) for point in shown]
    return "\n".join(
        [
            "<h2>Every point</h2>",
            table(heads, rows, text_columns=1 + len(result["axes"]), dense=True),
            left,
        ]
    )


def _row(result: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    number = point["number"]
    words = ["now"] if not number else []
    if number == result["chosen"]:
        words.append("<strong>recommended</strong>")
    elif number in result["front"]:
        words.append("front")
    # How often, `sweep.json` says.
    words += [
        f'<span class="bad">{escape(why.partition(" (")[0])}</span>' for why in point["why_not"]
    ]
    if point["same_as"] is not None:
        words.append(
            f'<small class="model">same as {_short(result["points"][point["same_as"]])}</small>'
        )
    told = point["means"][LATENCY]["mean"] is not None
    cells = [", ".join(words)]
    cells += [escape(setting_of(result, point, axis["key"]) or NONE) for axis in result["axes"]]
    cells.append(seconds(point, LATENCY) if told else NONE)
    cells.append(mib(point) if point["means"][MEMORY]["mean"] is not None else NONE)
    for name, shown in ((LATENCY, in_seconds), (MEMORY, in_mib)):
        of = point["against_base"][name]
        cells.append(signed(of["mean"], of["half"], shown) if number else NONE)
    for name, _ in _MORE:
        mean = point["means"][name]["mean"]
        cells.append(NONE if mean is None else _figures_of(mean))
    return [cell.replace(" ± ", "<br>± ") for cell in cells]


def _breakable(name: str) -> str:
    """Return a key that a narrow column may break behind an underscore."""
    return name.replace("_", "_\N{ZERO WIDTH SPACE}")


def _short(point: Mapping[str, Any]) -> str:
    return escape(", ".join(point["settings"].values())) if point["settings"] else "now"


def _figures_of(value: float) -> str:
    size = abs(value)
    if size >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _reproduce(result: Mapping[str, Any]) -> str:
    allowed = f" Allowed: {', '.join(result['allow'])}." if result["allow"] else ""
    zero = "; ".join(words for name, words in MUST_BE_ZERO.items() if name not in result["allow"])
    costs = (
        "measured in a run"
        if result["measured"]
        else "the model's defaults: good for questions of \N{LEFT DOUBLE QUOTATION MARK}about how much\N{RIGHT DOUBLE QUOTATION MARK} only"
    )
    drawn = {"grid": "every combination", "latin": "a Latin hypercube", "random": "drawn at random"}
    mail = "The mail is that of the recorded run; replications differ in how hosts answer" if result["recorded"] else (
        "The n-th run of each point has the same mail and the same hosts"
    )  # fmt: skip
    meanings = "; ".join(f"<em>{name}</em>: {escape(words)}" for name, words in NUMBERS.items())
    return "\n".join(
        [
            "<h2>How to read it, and how to do it again</h2>",
            f"<p>A point does not qualify if in any of its runs: {escape(zero)}.{escape(allowed)}</p>",
            f"<p>{mail}, so that differences are taken run by run: common luck drops out. ± is half of a {CONFIDENCE:.0%} interval of the"
            f" mean (Student's t). Points: {drawn[result['sampling']]}.</p>",
            f"<p>Costs are {costs}. Memory is the process, the queue, open connections and what an allocator keeps; what a connection takes in the"
            " kernel is not in the model. A limit that never binds changes nothing here, and protects from loads that were not tried.</p>",
            notes_list("warn", result["notes"]),
            f"<p>{meanings}.</p>",
            f"<pre>{escape(result['command'])}</pre>",
            f"<p>Seed {result['seed']}, {result['messages']:,} messages a run. Model {result['model'][:16]}, costs"
            f" {result['costs'][:16]}, result {result['digest'][:16]}.</p>",
        ]
    )  # fmt: skip
