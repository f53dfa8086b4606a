"""``report.html``: a run on one page that needs nothing else, no network and no script.

Figures are inside, once for a light page and once for a dark one; printing takes the light ones. Whatever comes from the
run is escaped. The page says what each number means, and what the run can't show.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from sim.pages import NONE as NONE
from sim.pages import notes_list as notes_list
from sim.pages import number as number
from sim.pages import page as page
from sim.pages import picture as picture
from sim.pages import table as table
from sim.scenario import Scenario
from sim.timeline import SIGNALS
from testbed import beside, diskphases, plots
from testbed.peers import PEERS
from testbed.rundir import Run
from testbed.summary import as_told, scenario_line

MIB: Final = 1024 * 1024


def html(run: Run) -> str:
    """Return the page.

    Raises:
        UsageError: a file that every run has is missing or damaged.
    """
    scenario, summary = run.scenario, as_told(run.summary)
    title = scenario.title or scenario.name
    parts = [
        _head(scenario, summary),
        _memory(run, summary),
        _savings(summary),
        _peers(summary),
        _model(run, summary),
        _restarts(summary),
        diskphases.section(run, summary),
        beside.section(run, summary),
        _flow(run, summary),
        _ledger(run, summary),
        _reproduce(run, scenario, summary),
    ]
    return page(title, parts)


# ---- sections


def _head(scenario: Scenario, summary: Mapping[str, Any]) -> str:
    failures, warnings = summary["failures"], summary["warnings"]
    verdict = (
        f"{summary['accepted']:,} recipients accepted, {summary['delivered']:,} delivered,"
        f" {summary['bounced']:,} bounced, {summary['queued']:,} still queued,"
        f" {summary['lost']:,} lost, {summary['duplicates']:,} duplicates,"
        f" {summary['altered']:,} altered."
    )
    lines = [
        f"<h1>{escape(scenario.title or scenario.name)}</h1>",
        f'<p class="lead">{escape(scenario.question)}</p>' if scenario.question else "",
        f'<p class="{"bad" if failures else "good"}"><strong>'
        f"{'Failed.' if failures else 'Every promise was kept.'}</strong> {verdict}</p>",
        notes_list("bad", failures),
        notes_list("warn", warnings),
        f"<p>{escape(scenario_line(scenario))}. Started {escape(str(summary.get('started', NONE)))}.</p>",
        "<p>A healthy server: " + escape(scenario.healthy) + "</p>" if scenario.healthy else "",
        _expected(summary.get("expected", [])),
    ]
    return "\n".join(line for line in lines if line)


def _expected(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return which of the scenario's expectations hold: what it says in words, as conditions."""
    if not verdicts:
        return ""
    held = sum(each["holds"] is True for each in verdicts)
    rows = [
        [
            escape(each["condition"]),
            escape(each["server"]),
            escape(each["value"]),
            {True: "yes", False: '<strong class="bad">no</strong>', None: "can't be told"}[
                each["holds"]
            ],
        ]
        for each in verdicts
    ]
    shown = table(["Expected", "Server", "Found", "Holds"], rows, text_columns=4)
    opened = "" if held == len(verdicts) else " open"
    return (
        f"<details{opened}><summary>{held} of {len(verdicts)} expectations of the scenario hold"
        f"</summary>{shown}</details>"
    )


def _memory(run: Run, summary: Mapping[str, Any]) -> str:
    rows = []
    for name, part in summary["representations"].items():
        fit = part["fit"] or {}
        rows.append(
            [
                f"<strong>{escape(name)}</strong>",
                plus_minus(part["bytes_per_envelope"], part["bytes_per_envelope_stderr"]),
                number(part["store_bytes_per_envelope"], 1),
                _mib(part["base_rss_bytes"]),
                _mib(fit.get("step_bytes")),
                _mib(part["peak_rss_bytes"]),
                _mib(part["end_rss_bytes"]),
                number(part["peak_queue"]),
                number(part["drain_time_s"], 1),
                number(part["cpu_ms_per_message"], 2),
            ]
        )
    stored = next((p["store_envelopes"] for p in summary["representations"].values()), None)
    shown = table(
        [
            "Envelopes kept",
            "Whole server, B per envelope",
            "Store alone, B per envelope",
            "Idle, MiB",
            "Step, MiB",
            "Peak, MiB",
            "At the end, MiB",
            "Peak queue",
            "Empty after, s",
            "CPU, ms per message",
        ],
        rows,
    )
    alone = f" with {stored:,} envelopes of this scenario" if stored else ""
    note = (
        "<p><em>Whole server</em>: slope of the process's RSS on queued envelopes while the queue grew, from 40 % of its peak"
        " on, with its standard error (widened for the correlation of neighbouring samples). <em>Step</em>: what the same line"
        " has at no envelope, above the idle server: memory that a failing destination takes once, whatever the length of the"
        f" queue. <em>Store alone</em>: RSS of a fresh process that fills only the store{alone}; bodies are in it"
        " where the representation keeps them. RSS is read from /proc/PID/smaps_rollup five times a second; CPython and its"
        " allocator keep what they once had, so the end is not the beginning.</p>"
    )
    return "\n".join(
        [
            "<h2>What an envelope costs</h2>",
            shown,
            note,
            _figure(run, "memory_over_time", "RSS of the server process over time."),
            _figure(
                run,
                "memory_against_queue",
                "RSS against queued envelopes while the queue grew; lines are moved to one origin.",
            ),
        ]
    )


def _savings(summary: Mapping[str, Any]) -> str:
    parts = summary["representations"]
    steps = (
        ("whole", "full", "The body goes to disk"),
        ("full", "slim", "Fields that only disk needs are dropped"),
        ("slim", "packed", "What is left is packed into columns of integers"),
    )
    rows = []
    for before, after, what in steps:
        if before in parts and after in parts:
            rows.append(
                [
                    f"{before} → {after}",
                    what,
                    _saving(parts, before, after, "store_bytes_per_envelope"),
                    _saving(parts, before, after, "bytes_per_envelope"),
                ]
            )
    if not rows:
        return ""
    return "<h2>What saves how much</h2>\n" + table(
        ["Step", "What it is", "Store alone, B per envelope", "Whole server, B per envelope"],
        rows,
        text_columns=2,
    )


def _saving(parts: Mapping[str, Any], before: str, after: str, key: str) -> str:
    old, new = parts[before][key], parts[after][key]
    if not old or not new or new <= 0:
        return NONE
    return f"{old:,.0f} → {new:,.0f}: -{old - new:,.0f} ({old / new:.1f} to 1)"


def _in_server(part: Mapping[str, Any]) -> str:
    if part["bytes_per_envelope"] is None:
        return ""
    told = plus_minus(part["bytes_per_envelope"], part["bytes_per_envelope_stderr"])
    return f"; in the whole server {told}"


def _peers(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, part in summary["representations"].items():
        store = number(part["store_bytes_per_envelope"], 0)
        rows.append(
            [
                f"<strong>This server, {escape(name)}</strong>",
                store,
                "measured in this run",
                "growth of RSS per envelope in the store alone" + _in_server(part),
                "testbed.footprint, samples.csv",
            ]
        )
    rows += [
        [
            escape(p.system),
            escape(p.bytes_shown),
            escape(p.kind),
            escape(p.meaning),
            escape(p.source),
        ]
        for p in PEERS
    ]
    shown = table(
        ["System", "Bytes", "How it is known", "What it counts", "Source"],
        rows,
        text_columns=5,
        classes={1: "n"},
    )
    return "\n".join(
        [
            "<h2>Beside other servers</h2>",
            "<p>Numbers of others were not measured in this run unless it says so, and count different things: sizes of C"
            " structures are without the allocator's and the strings' share where it says <em>structures</em>, and Python"
            " objects can't be that small. The comparison that holds is the ratio between the rows of one server.</p>",
            shown,
            picture(
                plots.bytes_beside_peers(summary),
                "Filled marks: the whole server, with standard error; hollow: the store alone; crosses: other servers.",
            ),
        ]
    )


def _model(run: Run, summary: Mapping[str, Any]) -> str:
    model = summary["model"]
    lines = ["<h2>The model beside the run</h2>"]
    if model is None:
        lines.append("<p>The model was not asked in this run.</p>")
    else:
        rows = []
        for name, found in model["representations"].items():
            part = summary["representations"][name]
            rows.append(
                [
                    f"<strong>{escape(name)}</strong>",
                    *_pair(part["peak_queue"], found["peak_queue"], found["peak_queue_error"]),
                    *_pair(
                        part["drain_time_s"], found["drain_time_s"], found["drain_time_error"], 1
                    ),
                    *_pair(
                        part["peak_rss_bytes"] / MIB,
                        found["peak_rss_bytes"] / MIB,
                        found["peak_rss_error"],
                        1,
                    ),
                    *_pair(
                        part["end_rss_bytes"] / MIB,
                        None if (end := found.get("end_rss_bytes")) is None else end / MIB,
                        found.get("end_rss_error"),
                        1,
                    ),
                    _percent(found["queue_area_error"]),
                ]
            )
        rows.append(
            [
                "<strong>worst</strong>",
                "",
                _percent(model["peak_queue_error"]),
                "",
                _percent(model["drain_time_error"]),
                "",
                _percent(model["peak_rss_error"]),
                "",
                _percent(model.get("end_rss_error")),
                "",
            ]
        )
        lines += [
            "<p>A SimPy model runs the same scheduler, relay, limits and retry policies as the server, on simulated time; what"
            " things cost (CPU, commits, connections, memory) is calibrated. <strong>The errors are in-sample</strong>: its"
            " costs and its arrivals come from the run that it predicts. They show that the mechanism is right, not how well another limit or"
            " machine is predicted.</p>",
            table(
                [
                    "",
                    "Peak queue: run / model",
                    "off by",
                    "Empty after, s: run / model",
                    "off by",
                    "Peak RSS, MiB: run / model",
                    "off by",
                    "RSS after the drain",
                    "off by",
                    "Queue curve, area between",
                ],
                rows,
            ),
        ]
    lines.append(
        _figure(run, "queue_over_time", "Envelopes that the scheduler knows, five times a second.")
    )
    return "\n".join(lines)


def _restarts(summary: Mapping[str, Any]) -> str:
    """Return what each end of the server's process came to, beside the model's; nothing if it never ended."""
    parts = summary["representations"]
    if not any(part.get("restarts") for part in parts.values()):
        return ""
    models = (summary["model"] or {}).get("representations", {})
    rows, totals = [], []
    for name, part in parts.items():
        model = models.get(name, {})
        predicted = model.get("restarts", [])
        for i, each in enumerate(part["restarts"]):
            other = predicted[i] if i < len(predicted) else {}
            rows.append(
                [
                    f"<strong>{escape(name)}</strong>",
                    f"{SIGNALS[each['how']]} at {each['gone_s']:.2f}",
                    _beside(each["envelopes"], other.get("envelopes")),
                    _beside(_after(each, "opened_s"), _after(other, "opened_s"), 2),
                    _beside(_after(each, "restored_s"), _after(other, "restored_s"), 2),
                    _beside(_reading_s(each), _reading_s(other), 2),
                ]
            )
        counts, near = model.get("counts", {}), model.get("near", {})
        totals.append(
            [
                f"<strong>{escape(name)}</strong>",
                *(_beside(part[key], counts.get(key)) for key in ("accepted", "refused")),
                *(
                    f"{number(part[key])} / {_range(near.get(key), counts.get(key))}"
                    for key in ("duplicates", "duplicates_client", "unacknowledged")
                ),
                number(part["lost"]),
            ]
        )
    return "\n".join(
        [
            "<h2>The end of the process, and the next one</h2>",
            "<p>Run / model. The next process has the same queue, port and socket. Mail is taken again from the instant at which"
            " its <em>door is open</em>; it reads its queue beside that, and tries what is due. Seconds count from the end of the"
            " process, those that it was left down included.</p>",
            table(
                [
                    "",
                    "Ended",
                    "Envelopes on disk",
                    "Door open after, s",
                    "Queue read after, s",
                    "Reading it took, s",
                ],
                rows,
                text_columns=2,
            ),
            "<p>What that did to mail, in recipients. <em>Duplicates</em> were taken by a host and not written down before the end;"
            " <em>sent again</em> were kept and not answered, so that the client came again; <em>never acknowledged</em> the"
            " same, of a client that gave up. The model says how many there would be at the instants of the same tenth of a second: it is a"
            " matter of milliseconds who is in the middle of what.</p>",
            table(
                [
                    "",
                    "Accepted",
                    "Refused",
                    "Duplicates",
                    "Sent again",
                    "Never acknowledged",
                    "Lost",
                ],
                totals,
            ),
        ]
    )


def _after(restart: Mapping[str, Any], key: str) -> float | None:
    """Return seconds from the end of the process to an instant; None if it never came."""
    return None if restart.get(key) is None else float(restart[key] - restart["gone_s"])


def _reading_s(restart: Mapping[str, Any]) -> float | None:
    if restart.get("restored_s") is None:
        return None
    return float(restart["restored_s"] - restart["opened_s"])


def _range(near: Sequence[int] | None, single: int | None) -> str:
    """Return the least and the most, or the one number that there is."""
    if not near or near[0] == near[1]:
        return number(near[0] if near else single)
    return f"{number(near[0])} to {number(near[1])}"


def _beside(real: float | None, model: float | None, digits: int = 0) -> str:
    return f"{number(real, digits)} / {number(model, digits)}"


def _flow(run: Run, summary: Mapping[str, Any]) -> str:
    rows = []
    for name, part in summary["representations"].items():
        accepted = part["accept_latency_s"]
        row = [f"<strong>{escape(name)}</strong>", _ms(accepted["p50"]), _ms(accepted["p99"])]
        cells = [
            f"{escape(destination)} {spread['p50']:.3g} / {spread['p95']:.3g} / {spread['p99']:.3g}"
            for destination, spread in part["delivery_latency_s"].items()
        ]
        row += [
            "; ".join(cells) or NONE,
            _ms(part["generator_lag_p99_s"]),
            _ms(part["loop_lag_p99_s"]),
        ]
        rows.append(row)
    return "\n".join(
        [
            "<h2>Flow and latency</h2>",
            _figure(run, "flow", "Recipients per second, in steps of half a second."),
            _figure(
                run,
                "delivery_latency",
                "Share that was served within so many seconds, counted from the instant at which a message was due.",
            ),
            table(
                [
                    "",
                    "Accepted, p50, ms",
                    "p99, ms",
                    "Delivered, p50 / p95 / p99, s",
                    "Generator late, p99, ms",
                    "Server's answer to the bench, p99, ms",
                ],
                rows,
            ),
        ]
    )


def _ledger(run: Run, summary: Mapping[str, Any]) -> str:
    keys = (
        "offered",
        "refused",
        "accepted",
        "delivered",
        "bounced",
        "queued",
        "lost",
        "duplicates",
        "duplicates_client",
        "altered",
        "unexpected",
        "reordered",
        "messages_accepted",
        "messages_delivered",
    )
    ledgers = run.ledgers
    parts = summary["representations"]
    rows = [
        [
            f"<strong>{key.replace('_', ' ')}</strong>",
            *(number(account[key]) for account in ledgers.values()),
            number(sum(account[key] for account in ledgers.values())),
        ]
        for key in keys
    ]
    deferred: list[int | None] = [parts[name]["attempts_deferred"] for name in parts]
    known = [each for each in deferred if each is not None]
    told = sum(known) if known else None
    rows.append(["<strong>attempts deferred</strong>", *map(number, deferred), number(told)])
    heads = ["", *ledgers, "sum"]
    return "\n".join(
        [
            "<h2>Ledger</h2>",
            table(heads, rows),
            "<p>Recipients, unless it says messages. Accepted: the final dot was answered with 250. Delivered: the world's"
            " hosts have it in their records. Lost: accepted, and neither delivered nor bounced nor queued at the end. Altered:"
            " its bytes without the trace fields in front are not those that were sent. Reordered: it came after one that was accepted"
            " later, which no server promises to avoid. Duplicates of the client: it sent again after no reply to its dot.</p>",
        ]
    )


def _reproduce(run: Run, scenario: Scenario, summary: Mapping[str, Any]) -> str:
    host, versions = summary.get("host", {}), summary.get("versions", {})
    memory = host.get("memory_bytes")
    machine = [
        f"{host.get('cores', '?')} cores, {host.get('cpu', '?')}",
        f"{memory / 2**30:.1f} GiB" if memory else "",
        f"{host.get('kernel', '')} {host.get('machine', '')} {host.get('libc', '')}".strip(),
    ]
    toml = (run.directory / "scenario.toml").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<h2>Where, and how to do it again</h2>",
            f"<pre>{escape(str(summary.get('command', '')))}</pre>",
            f"<p>Seed {scenario.seed}. {escape('; '.join(each for each in machine if each))}. "
            + escape(", ".join(f"{name} {value}" for name, value in versions.items()))
            + ".</p>",
            "<p>Sinks, load and server share the machine, loopback is the network: rates are what this arrangement does, not"
            " what a server does alone. Each representation was run once; for intervals, run it again.</p>",
            f"<details><summary>The scenario in full</summary><pre>{escape(toml)}</pre></details>",
        ]
    )


# ---- bits


def _figure(run: Run, name: str, caption: str) -> str:
    return picture(plots.draw(name, run), caption)


def plus_minus(value: float | None, error: float | None) -> str:
    """Return a number with its standard error, or a dash."""
    return NONE if value is None else f"{value:,.0f} ± {error or 0:,.0f}"


def _mib(value: float | None) -> str:
    return number(None if value is None else value / MIB, 1)


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{value * 1000:,.1f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _pair(
    real: float | None, model: float | None, error: float | None, digits: int = 0
) -> tuple[str, str]:
    return f"{number(real, digits)} / {number(model, digits)}", _percent(error)
