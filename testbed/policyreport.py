"""The page and the tables of `testbed policies`: what was measured, what the model says, and whether the story holds."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from testbed import policyplots
from testbed.policies import cell_of
from testbed.report import MIB, NONE, notes_list, number, page, picture, plus_minus, table
from testbed.summary import STEADY_ENVELOPES

OTHERS_S: Final = 10.0
"""What "within seconds" means here, at the 99th percentile."""

RATIO_MIN: Final = 10.0
"""What an envelope of January 2013 costs at least, beside a slim one, while the agent has it."""

FLAT_BYTES: Final = 1000.0
"""RSS per waiting envelope that counts as the scheduler's record and no more."""

FLAT_AGENT: Final = 200
"""Envelopes at the agent that count as next to none: some users at high water."""


def verdicts(result: Mapping[str, Any]) -> list[tuple[bool | None, str]]:
    """Return whether each part of the story holds in this run: True, False, or None if it can't be told."""
    found: list[tuple[bool | None, str]] = []
    found += _ratio(result)
    held = [cell for cell in result["cells"] if cell["policy"] == "hold"]
    if held:
        most = max(cell["peak_agent"] for cell in held)
        queue = max(cell["peak_queue"] for cell in held)
        found.append(
            (
                most <= FLAT_AGENT,
                f"hold: the agent has next to nothing, however much waits (at most {most:,} of {queue:,})",
            )
        )
        sent_back = sum(cell["sent_back"] + cell["tempfails"] for cell in held)
        refused = sum(cell["refused_at_the_door"] for cell in held)
        found.append(
            (
                not sent_back and not refused,
                f"hold: nothing is tempfailed ({sent_back:,} by the agent, {refused:,} at the door)",
            )
        )
    waits = [
        (cell["others_latency_s"]["p99"], f"{cell['policy']}, {cell['envelope']}")
        for cell in result["cells"]
        if cell["others_latency_s"]["p99"] is not None
    ]
    if held:
        worst = max((w for w in waits if w[1].startswith("hold")), default=None)
        if worst:
            found.append(
                (
                    worst[0] <= OTHERS_S,
                    f"hold: the others' mail is delivered within seconds while the burst drains"
                    f" (99 % of it within {worst[0]:.2g} s)",
                )
            )
    others = [w for w in waits if not w[1].startswith("hold")]
    if others:
        worst = max(others)
        found.append(
            (
                worst[0] <= OTHERS_S,
                f"the same under the other policies (worst: {worst[1]}, 99 % within {worst[0]:.3g} s)",
            )
        )
    lost = sum(cell["lost"] + cell["duplicates"] for cell in result["cells"])
    accepted = sum(cell["accepted"] for cell in result["cells"])
    found.append(
        (not lost, f"nothing is lost and nothing comes twice ({accepted:,} accepted, {lost} so)")
    )
    return found


def _ratio(result: Mapping[str, Any]) -> Iterator[tuple[bool | None, str]]:
    """Yield whether fixed costs ten times slim at the agent, by the store alone and by the whole server."""
    fixed, slim = cell_of(result, "raised", "fixed"), cell_of(result, "raised", "slim")
    if not fixed or not slim:
        return
    ratios: list[float] = []
    said: list[str] = []
    alone = result["stores"]
    if alone:
        fat, lean = alone["fixed"]["agent"], alone["slim"]["agent"]
        ratios.append(fat / lean)
        said.append(f"store alone {fat:,.0f} to {lean:,.0f} B, {ratios[-1]:.1f} to 1")
    fat, lean = fixed["bytes_per_pending"], slim["bytes_per_pending"]
    waited = min(fixed["peak_queue"], slim["peak_queue"])
    if waited >= STEADY_ENVELOPES and fat and lean and lean > 0:
        ratios.append(fat / lean)
        said.append(f"whole server {fat:,.0f} to {lean:,.0f} B, {ratios[-1]:.1f} to 1")
    else:
        said.append(f"whole server: {waited:,} envelopes are too few to tell")
    words = "raised: an envelope of January 2013 costs at least ten times a slim one while the agent has it"
    yield min(ratios) >= RATIO_MIN if ratios else None, f"{words} ({'; '.join(said)})"


# ---- for a terminal


def tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what to print: 80 columns."""
    shown = Table(
        title=f"{result['scenario']}, scale {result['scale']:g}; (model)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("\npolicy", no_wrap=True)
    shown.add_column("\nenvlps", no_wrap=True)
    for head in (
        "MiB\npeak",
        "B/\nenvl",
        "agent\npeak",
        "drain\ns",
        "sent\nback",
        "oldest\ns",
        "\nJain",
        "others\np99 s",
    ):
        shown.add_column(head, justify="right", no_wrap=True)
    for cell in result["cells"]:
        shown.add_row(cell["policy"], cell["envelope"], *_terminal(cell, cell["others_latency_s"]))
        model = cell["model"]
        if model:
            latency = {"p50": model["others_p50_s"], "p99": model["others_p99_s"]}
            row = _terminal({**model, "bytes_per_pending": None}, latency)
            shown.add_row("  (model)", "", *row, style="dim")
    yield shown
    for holds, words in verdicts(result):
        mark = {True: "yes", False: "NO", None: "?"}[holds]
        yield Text(f"{mark:>4}  {words}", style="" if holds else "bold")
    for line in result["failures"]:
        yield Text(f"failed: {line}", style="bold red")


def _terminal(cell: Mapping[str, Any], latency: Mapping[str, float | None]) -> list[str]:
    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    return [
        shown(cell["peak_rss_bytes"] / MIB, 0),
        shown(cell["bytes_per_pending"], 0),
        shown(cell["peak_agent"], 0),
        shown(cell["burst_drain_s"], 0),
        shown(cell["sent_back"], 0),
        shown(cell["oldest_age_s"], 0),
        shown(cell["jain"], 2),
        shown(latency["p99"], 2),
    ]


# ---- the page


def html(result: Mapping[str, Any]) -> str:
    """Return the page: it needs nothing else."""
    title = result["title"] or result["scenario"]
    return page(
        title,
        [
            _head(result, title),
            _numbers(result),
            _figures(result),
            _stores(result),
            _policies(result),
            _reproduce(result),
        ],
    )


def _head(result: Mapping[str, Any], title: str) -> str:
    cells = result["cells"]
    items = "".join(
        f'<li class="{"good" if holds else "bad" if holds is False else "warn"}"><strong>'
        f"{ {True: 'Yes.', False: 'No.', None: 'Not to be told.'}[holds] }</strong> {escape(words)}.</li>"
        for holds, words in verdicts(result)
    )
    burst = cells[0]["burst_messages"] if cells else 0
    others = cells[0]["others_messages"] if cells else 0
    return "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="lead">{escape(result["question"])}</p>',
            f"<p>In this run the burst is {burst:,} messages (scale {result['scale']:g}), the others get {others:,}."
            f" Each row of the table is a fresh server. Started {escape(result['started'])}.</p>",
            f"<ul>{items}</ul>",
            notes_list("bad", result["failures"]),
        ]
    )


def _numbers(result: Mapping[str, Any]) -> str:
    rows = []
    for cell in result["cells"]:
        model = cell["model"] or {}
        latency = cell["others_latency_s"]
        rows.append(
            [
                f"<strong>{escape(cell['policy'])}</strong>",
                escape(cell["envelope"]),
                _both(_mib(cell["peak_rss_bytes"]), _mib(model.get("peak_rss_bytes")), model),
                plus_minus(cell["bytes_per_pending"], cell["bytes_per_pending_stderr"]),
                _both(number(cell["peak_queue"]), number(model.get("peak_queue")), model),
                _both(number(cell["peak_agent"]), number(model.get("peak_agent")), model),
                _both(
                    number(cell["burst_drain_s"], 1), number(model.get("burst_drain_s"), 1), model
                ),
                _both(number(cell["sent_back"]), number(model.get("sent_back")), model),
                _both(number(cell["tempfails"]), number(model.get("tempfails")), model),
                _both(number(cell["overflows"]), number(model.get("overflows")), model),
                _both(number(cell["oldest_age_s"], 1), number(model.get("oldest_age_s"), 1), model),
                _both(number(cell["jain"], 3), number(model.get("jain"), 3), model),
                _both(number(latency["p50"], 2), number(model.get("others_p50_s"), 2), model),
                _both(number(latency["p99"], 2), number(model.get("others_p99_s"), 2), model),
            ]
        )
    heads = [
        "Policy",
        "Envelopes",
        "Peak RSS, MiB",
        "B per waiting envelope",
        "Peak queue",
        "Peak at the agent",
        "Burst drained, s",
        "Sent back by the agent",
        "Attempts that failed for now",
        "Overflowed the hold queue",
        "Oldest, s",
        "Jain",
        "Others, p50, s",
        "p99, s",
    ]
    return "\n".join(
        [
            "<h2>Policy by policy</h2>",
            table(heads, rows, text_columns=2),
            "<p>First line: the server; second line, in grey: the model, with the same decisions, the instants at which the load"
            " really sent, and the idle server's RSS; its other costs are defaults, fitted to no run of this page. <em>B per"
            " waiting envelope</em>: slope of RSS on queued envelopes while the queue grew, from 40 % of its peak on, with its"
            " standard error; below some 4,000 envelopes it is mostly caches and buffers. <em>Burst drained</em>: from its first 250"
            " to its last delivery. <em>Sent back by the agent</em>: had no room, went to the back of the queue with a back-off; the"
            " client never hears of it. <em>Attempts that failed for now</em> include those. <em>Overflowed the hold"
            " queue</em>: found 1,000 held already, and waits for a back-off without having been tried; when the burst is over the agent"
            " may stand idle until that has passed, so hold can drain later than raised. <em>Oldest</em>: greatest age that a"
            " message reached. <em>Jain</em>: index of fairness over users, of the share of what was accepted for them while the burst"
            " came in that was delivered by its end; who floods is worse off by right, and 50/51 = 0.980 is what a server reaches"
            " that serves the fifty at once. <em>Others</em>: from 250 to delivery.</p>",
        ]
    )


def _both(real: str, model: str, modelled: Mapping[str, Any]) -> str:
    return f'{real}<br><span class="model">{model}</span>' if modelled else real


def _mib(value: float | None) -> str:
    return NONE if value is None else f"{value / MIB:,.1f}"


def _figures(result: Mapping[str, Any]) -> str:
    lines = ["<h2>Over time</h2>"]
    lines += [
        picture(policyplots.draw(name, result), caption) for name, caption in policyplots.FIGURES
    ]
    return "\n".join(lines)


def _stores(result: Mapping[str, Any]) -> str:
    if not result["stores"]:
        return ""
    slim = result["stores"].get("slim", {}).get("agent")
    rows = [
        [
            f"<strong>{escape(name)}</strong>",
            number(found["agent"], 0),
            number(found["agent"] / slim, 1) if slim else NONE,
            number(found["pending"], 0),
        ]
        for name, found in result["stores"].items()
    ]
    heads = ["Envelopes kept", "The agent has it, B", "Times slim", "Waits for its next try, B"]
    return "\n".join(
        [
            "<h2>The store alone</h2>",
            table(heads, rows),
            "<p>RSS of a fresh process that fills only the store with envelopes of this scenario. <em>fixed</em> is OpenSMTPD's"
            " <code>struct envelope</code> until January 2013, 8,584 bytes written whole for each envelope that an agent has;"
            " <em>full</em> is every field as a Python programmer keeps it, without padding; <em>slim</em> is the scheduler's"
            " record and what the agent needs. Full is close to slim: what was saved in 2013 was room for strings that were not"
            " there, which Python never had.</p>",
        ]
    )


def _policies(result: Mapping[str, Any]) -> str:
    return (
        "<h2>The policies</h2>\n<ul>"
        "<li><strong>tempfail</strong>, October 2012: the agent takes 5,000 envelopes, 500 of one user; what is above goes back to"
        " the scheduler with a back-off of 10 s and more.</li>"
        "<li><strong>raised</strong>, January 2013: it takes 200,000. History gave one user 15,000 of these; here the burst is one"
        " user's, and gets all (<code>--set server.limits.mda.raised_max_pending_per_user=15000</code> for history).</li>"
        "<li><strong>hold</strong>, since November 2013: it takes 50 of a user, asks for 10 more at 30; up to 1,000 are held in the"
        " scheduler, the rest waits for its next try without having been tried.</li></ul>"
        "<p>Seven deliveries of one user run at a time, 50 in all, under each of them. The caps are not scaled with the burst.</p>"
    )


def _reproduce(result: Mapping[str, Any]) -> str:
    machine, versions = result["host"], result["versions"]
    return "\n".join(
        [
            "<h2>Where, and how to do it again</h2>",
            f"<pre>{escape(result['command'])}</pre>",
            f"<p>{machine.get('cores', '?')} cores, {escape(str(machine.get('cpu', '?')))};"
            f" {escape(', '.join(f'{name} {value}' for name, value in versions.items()))}. Load, commands and server share the"
            " machine; each row was run once.</p>",
            notes_list("warn", result["warnings"]),
        ]
    )
