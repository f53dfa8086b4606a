"""What would have become of the mail in a log with other settings?

Three columns: what the log says, the model with the settings of the server that wrote it, and the model with others. The
difference between the first two says how far to trust the third. The settings of then are those that the kind of
server has by default, with the pace of attempts that the log shows; who knows better says so with ``--set`` or
``--main-cf``.

CPU and disk of the server are not in a log. The model takes none by default: its answer is about limits and remote hosts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from mta.core.envelopes.base import TICK
from mta.core.reply import Outcome
from mta.core.settings import changed
from sim.costs import Costs
from sim.logs.reader import MailLog, read
from sim.logs.world import Told, World, build
from sim.result import SimResult
from sim.runner import simulate
from sim.settings import ModelConfig, model_config

ROWS: Final = (
    ("accepted", "envelopes"),
    ("delivered", "envelopes"),
    ("deferred", "attempts"),
    ("bounced", "reports"),
    ("failed", "envelopes"),
    ("queued", "at the end"),
    ("peak_queued", "envelopes"),
    ("drain_time_s", "s"),
    ("p50", "s to delivery"),
    ("p95", "s to delivery"),
    ("p99", "s to delivery"),
    ("peak_live_bytes", "bytes of the queue"),
    ("transactions", ""),
)
"""What is compared, with units."""

COUNTED: Final = ("accepted", "delivered", "deferred", "bounced", "failed", "queued")
"""What the model of then should have exactly."""

SLOWER: Final = 2.0
SLOWER_S: Final = 0.1
"""A log whose median is this many times the model's, and this much more, was not made by limits and hosts alone."""
UNLIMITED: Final = 1_000_000_000
SITES_SHOWN: Final = 12
NAME_WIDTH: Final = 24
_RETRIES_MIN: Final = 20
"""Second attempts that it takes to see a pace."""

_DOOR: Final[Mapping[str, Any]] = {
    # What is in the log was let in.
    "smtp": {
        "max_conn": 1_000_000,
        "max_conn_per_client": 1_000_000,
        "max_rcpt": 1_000_000,
        "max_message_size": UNLIMITED,
        "max_bytes_in_memory": UNLIMITED * 64,
        "stress": "no",
    },
    "queue": {"max_envelopes": UNLIMITED, "max_bytes": UNLIMITED * 1024, "max_waiting": UNLIMITED},
}
_OPENSMTPD_MTA: Final[Mapping[str, Any]] = {
    # limit.c and mta.c, where our defaults are others; see the docstrings in mta/core/limits.py.
    "conn_delay_route_s": 5.0,
    "conn_delay_relay_s": 2.0,
    "reconn_delay_route_s": 3.0,
    "route_delay_max_s": 15.0,
}
_POSTFIX_MTA: Final[Mapping[str, Any]] = {
    # default_process_limit is the only cap beside the concurrency of each destination.
    "max_conn": 100,
    "max_conn_per_host": 1000,
    "max_conn_per_route": 1000,
    "max_conn_per_source": 1000,
    "max_conn_per_connector": 1000,
    "max_conn_per_relay": 1000,
    "max_conn_per_domain": 1000,
    "session_mail_max": UNLIMITED,
    "max_failures_per_session": UNLIMITED,
    "max_try_before_disable": UNLIMITED,
    "max_rcpt_per_task": 50,
    "max_deferred": 0,
    "task_high_water": 20_000,
    "task_low_water": 19_000,
    "task_release": 1000,
}
_POSTFIX_SCHEDULER: Final[Mapping[str, Any]] = {
    # qmgr_message_active_limit
    "max_inflight": 20_000,
    "max_schedule": 1000,
    "max_held": UNLIMITED,
    "envelope_ttl_s": 5 * 86_400.0,
}


def first_retry_s(mail: MailLog) -> float | None:
    """Return when second attempts come, counted from arrival, in whole seconds; None if there were too few."""
    record = mail.record
    seen: dict[int, int] = {}
    waits: list[float] = []
    for each in record.attempts():
        seen[each.recipient] = count = seen.get(each.recipient, 0) + 1
        if count == 2:
            waits.append(
                each.at - each.service_s - record.arrived_at[record.message_of[each.recipient]]
            )
    return max(1.0, float(round(np.percentile(waits, 10)))) if len(waits) >= _RETRIES_MIN else None


def pace(mail: MailLog) -> tuple[float, float, float] | None:
    """Return how a server looks after what it has put off: shortest wait, time between two looks, and when it looks.

    A second attempt comes after the shortest wait, at the next look: waits are spread evenly between the one and the
    sum of both. None if there were too few to see that. All in seconds; the last one modulo the second, since the epoch.
    """
    record = mail.record
    recipient = np.array(record.recipient_of, dtype=np.int64)
    order = np.argsort(recipient, kind="stable")
    recipient = recipient[order]
    ended = np.array(record.ended_at)[order]
    began = ended - np.array(record.service_s)[order]
    failed = np.array(record.outcome, dtype=np.int64)[order] == Outcome.TEMPFAIL
    first = np.ones(len(order), dtype=bool)
    first[1:] = recipient[1:] != recipient[:-1]
    second = np.flatnonzero(first[:-1] & ~first[1:] & failed[:-1])
    if len(second) < _RETRIES_MIN:
        return None
    waits = began[second + 1] - ended[second]
    low, high = np.percentile(waits, (1, 97))
    # Whole seconds: that is how they are configured, and as exact as syslog is.
    shortest = max(1.0, float(round(low)))
    guess = float(round(high - low))
    if guess < 2.0:
        return shortest, 0.0, 0.0
    # Of the periods near by the one that leaves most time in which nothing is ever tried again.
    looks = [_quiet(began[second + 1], guess + off) for off in range(-3, 4) if guess + off >= 2.0]
    _, look_s, phase = max(looks)
    return shortest, look_s, phase


def _quiet(instants: Any, period: float) -> tuple[float, float, float]:
    """Return the largest part of a period without an instant, the period, and where that part ends."""
    phases = np.sort(instants % period)
    gaps = np.diff(np.concatenate((phases, [phases[0] + period])))
    longest = int(gaps.argmax())
    return float(gaps[longest]) / period, period, float(phases[(longest + 1) % len(phases)])


def settings_of(mail: MailLog) -> tuple[dict[str, Any], float, list[str]]:
    """Return the settings of the server that wrote a log, when it looks for what is due, and how they were found.

    The second is an instant modulo ``retry.scan_s``.
    """
    notes: list[str] = []
    seen = pace(mail)
    server: dict[str, Any] = {
        "limits": {key: dict(value) for key, value in _DOOR.items()},
        # The log tells of every attempt; no report is written that it has not.
        "bounce": {"warn_interval_s": []},
    }
    if mail.kind in ("opensmtpd", "ours"):
        if mail.kind == "opensmtpd":
            server["limits"]["mta"] = dict(_OPENSMTPD_MTA)
            server["concurrency"] = {"policy": "fixed", "limit": 1000}
            notes.append("settings of then: OpenSMTPD's defaults")
            return server, 0.0, notes
        base_s = first_retry_s(mail)
        if base_s is not None:
            server["retry"] = {"base_s": base_s}
        seen_base = "" if base_s is None else f"; retry.base_s {base_s:g} s, as the log shows"
        notes.append(f"settings of then: this server's defaults{seen_base}")
        return server, 0.0, notes
    first_s, look_s, phase = seen or (300.0, 300.0, 0.0)
    most_s = max(4000.0, first_s)
    server["retry"] = {"policy": "age-clamped", "min_s": first_s, "max_s": most_s, "scan_s": look_s}
    server["limits"]["mta"] = {
        **_POSTFIX_MTA, "route_delay_base_s": first_s, "route_delay_max_s": first_s,
    }  # fmt: skip
    server["limits"]["scheduler"] = dict(_POSTFIX_SCHEDULER)
    if mail.kind == "exim":
        # A process for each message: nobody counts connections.
        server["concurrency"] = {"policy": "fixed", "limit": 1000}
        server["limits"]["mta"]["max_conn"] = 1000
    how = "as the log shows" if seen else "by default"
    notes.append(
        f"settings of then: {mail.kind.capitalize()}'s defaults; first wait {first_s:g} s,"
        f" due mail is looked for every {look_s:g} s, {how}"
    )
    return server, phase, notes


def costs_of(world: World) -> Costs:
    """Return costs of a server that has all the CPU and disk it wants, and takes mail in as fast as the log's."""
    nothing = {name: 0.0 for name, value in asdict(Costs()).items() if isinstance(value, float)}
    return replace(Costs(), **{**nothing, "client_s": world.accept_s})  # type: ignore[arg-type]  # numbers only


class Replay:
    """A log that was read, ready to be run again and again."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        kind: str = "",
        year: int | None = None,
        host: str = "",
        server: Mapping[str, Any] | None = None,
        costs: Costs | None = None,
    ) -> None:
        """Read it.

        Args:
            names: files and directories, as for `sim.logs.reader.read`.
            kind: as for `read`.
            year: as for `read`.
            host: as for `read`.
            server: what is known of the settings of then, tables with the server's keys.
            costs: what the server's own work costs; by default nothing.

        Raises:
            ConfigError: a file can't be read or is no log, or a setting makes no sense.
        """
        self.names = tuple(names)
        self.mail = read(names, kind=kind, year=year, host=host)
        self.world = build(self.mail)
        self.server, self.phase, found = settings_of(self.mail)
        _merge(self.server, server or {})
        self.notes = [*found, *self.world.notes]
        self.costs = costs or costs_of(self.world)
        self.config = self._config(())
        self.results: dict[str, SimResult] = {}
        """Runs of the last comparison, by name."""

    def _config(self, overrides: Sequence[str]) -> ModelConfig:
        return model_config(self.server, source=f"log of {self.mail.kind}", overrides=overrides)

    def run(self, overrides: Sequence[str] = ()) -> SimResult:
        """Run the model with the settings of then, but for ``overrides``.

        Raises:
            ConfigError: an override is wrong.
        """
        config = self._config(overrides)
        return self._run(config)

    def _run(self, config: ModelConfig) -> SimResult:
        world = self.world
        scan_s = config.retry.scan_s
        start = 1e9
        if scan_s:
            # So that the model looks for what is due at the instants at which the server did.
            start = start // scan_s * scan_s + (world.start_at - self.phase) % scan_s
        # All instants of the core are multiples of its tick.
        start = round(start / TICK) * TICK
        return simulate(
            world.scenario,
            config=config,
            costs=self.costs,
            schedule=world.schedule,
            hosts=world.hosts(),
            sample_s=world.sample_s,
            start=start,
            fingerprint=False,
            backend="heapq",
        )

    def compare(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return the log beside the model of then, and beside the model with ``overrides``, if any.

        As `sim.replay.replay` returns it; in addition ``log``: what was read, ``sites``: the destinations with their
        outages, and ``agreement``: how far the model of then is from the log.

        Raises:
            ConfigError: an override is wrong.
        """
        # Before the first run: who mistypes a key need not wait for it.
        other = self._config(overrides)
        self.results = {"model of then": (model := self._run(self.config))}
        what_if = None
        if overrides:
            self.results["what if"] = result = self._run(other)
            what_if = numbers(result)
        told = self.world.told
        record = self.mail.record
        rows = numbers(model)
        notes = list(self.notes)
        then_s, now_s = told.rows["p50"], rows["p50"]
        # None: the model delivers nothing, as where no message is small enough to be let in.
        if then_s and now_s is not None and then_s > now_s * SLOWER + SLOWER_S:
            notes.append(
                "half of the mail took much longer than limits and hosts explain: the server was short of CPU or disk,"
                " of which the model takes none without --costs, or its settings were others"
            )
        return {
            "run": " ".join(self.names),
            "scenario": self.world.scenario.name,
            "representation": self.config.envelope,
            "changed": changed(other, self.config),
            "then": {key: told.rows.get(key) for key, _ in ROWS},
            "model": rows,
            "what_if": what_if,
            "agreement": agreement(told, model),
            "log": {
                "kind": self.mail.kind,
                "files": [str(path) for path in self.mail.files],
                "lines": self.mail.lines,
                "messages": record.messages,
                "attempts": len(record),
                "span_s": record.last_at - record.first_at,
                "counted": dict(sorted(record.kinds.items())),
            },
            "sites": [_site(self, site) for site in self.world.sites[:SITES_SHOWN]],
            "notes": notes,
        }


def _site(replayed: Replay, site: Any) -> dict[str, Any]:
    replies = replayed.mail.record.replies
    return {
        **{key: getattr(site, key) for key in ("name", "recipients", "attempts", "deferred", "refused", "median_s")},
        "outages": [
            {
                "from_s": None if one.begin == -np.inf else round(one.begin, 3),
                "to_s": None if one.end == np.inf else round(one.end, 3),
                "refuses_connections": not one.reachable,
                "failed_attempts": one.attempts,
                "reply": replies[one.reply],
            }
            for one in site.outages
        ],
    }  # fmt: skip


def numbers(result: SimResult) -> dict[str, Any]:
    """Return the rows of a run of the model."""
    flat = {**result.summary(), **result.quantiles()}
    return {key: flat[key] for key, _ in ROWS}


def agreement(told: Told, model: SimResult) -> dict[str, Any]:
    """Return how far the model is from the log: counts that differ, and errors as parts of what the log says.

    ``queue_area`` is the integral of the difference of the queue lengths over that of the log's; ``latency_ks`` the largest
    difference of the distributions of the time to delivery.
    """
    rows = numbers(model)
    differ = {key: rows[key] - told.rows[key] for key in COUNTED if rows[key] != told.rows[key]}
    found: dict[str, Any] = {"counts_differ": differ}
    then = told.rows["drain_time_s"]
    both = then is not None and rows["drain_time_s"] is not None
    found["drain_time"] = rows["drain_time_s"] / then - 1 if both and then else None
    queued = queued_of(told, model.t)
    area = float(queued.sum())
    found["queue_area"] = float(np.abs(queued - model.queued).sum()) / area if area else None
    ours = np.sort(model.delivery_latency_s)
    theirs = told.latency_s
    found["latency_ks"] = None
    if len(ours) and len(theirs):
        grid = np.concatenate((ours, theirs))
        apart = np.searchsorted(ours, grid, side="right") / len(ours) - np.searchsorted(
            theirs, grid, side="right"
        ) / len(theirs)
        found["latency_ks"] = float(np.abs(apart).max())
    return found


def queued_of(told: Told, t: Any) -> Any:
    """Return the log's queue length at instants of the model: int64[sample]."""
    at = np.searchsorted(told.queued_at, t, side="right")
    return np.concatenate(([0], told.queued))[at]


def _merge(into: dict[str, Any], tables: Mapping[str, Any]) -> None:
    for key, value in tables.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def table(found: dict[str, Any]) -> None:
    """Print a replay side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sim.replay import shown

    # Names and replies are strangers' words: no markup in them.
    console = Console(markup=False)
    log = found["log"]
    console.print(
        f"{found['run']}: {log['kind']}, {log['lines']:,} lines, {log['messages']:,} messages,"
        f" {log['attempts']:,} attempts in {log['span_s']:,.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    sites = Table(title="destinations", title_justify="left")
    widest = max((len(site["name"]) for site in found["sites"]), default=0)
    sites.add_column("", min_width=min(widest, NAME_WIDTH), overflow="fold")
    for head in ("to", "attempts", "deferred", "refused", "median s", "out of order, s"):
        sites.add_column(head, justify="right")
    for site in found["sites"]:
        spans = [
            f"{'' if one['from_s'] is None else format(one['from_s'], '.0f')}..{'' if one['to_s'] is None else format(one['to_s'], '.0f')}"
            for one in site["outages"]
        ]
        more = f" and {len(spans) - 3} more" if len(spans) > 3 else ""
        sites.add_row(
            Text(site["name"]),
            *(
                shown(site[key])
                for key in ("recipients", "attempts", "deferred", "refused", "median_s")
            ),
            ", ".join(spans[:3]) + more,
        )
    console.print(sites)
    for site in found["sites"]:
        for one in site["outages"][:3]:
            what = "refuses connections" if one["refuses_connections"] else "is out of order"
            console.print(
                f"{site['name']} {what}, {one['failed_attempts']:,} attempts failed: {one['reply']}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    sheet = Table(title="then, and what if", title_justify="left")
    sheet.add_column("")
    columns = ["then", "model", "what_if"] if found["what_if"] else ["then", "model"]
    heads = {"then": "the log", "model": "model of then", "what_if": "what if"}
    for column in columns:
        sheet.add_column(heads[column], justify="right")
    sheet.add_column("")
    for key, unit in ROWS:
        sheet.add_row(key, *(shown(found[column][key]) for column in columns), unit)
    console.print(sheet)
    for key, value in found["changed"].items():
        console.print(f"what if {key} = {json.dumps(value)}", highlight=False)
    off = found["agreement"]
    parts = [
        f"{name} {off[key]:+.1%}" if key == "drain_time" else f"{name} {off[key]:.1%}"
        for key, name in (("drain_time", "drain"), ("queue_area", "queue length"), ("latency_ks", "latency (KS)"))
        if off[key] is not None
    ]  # fmt: skip
    exact = (
        "counts are the log's"
        if not off["counts_differ"]
        else f"counts differ: {off['counts_differ']}"
    )
    console.print(
        f"model of then against the log: {exact}; off by {', '.join(parts)}",
        highlight=False,
        soft_wrap=True,
    )
    for note in found["notes"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
