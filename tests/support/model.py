"""Runs of the model for tests: small scenarios, and run directories as the bench would leave them."""

import csv
import json
from pathlib import Path
from typing import Any

from mta.core.settings import build
from sim.costs import Costs
from sim.restarts import RestartDriver
from sim.result import told
from sim.runner import Model
from sim.scenario import Scenario, to_toml
from sim.settings import model_config
from sim.workload import Schedule, draw

LATENCY = {"kind": "latency", "law": "lognormal", "median_s": 0.004, "sigma": 0.5}
"""As in the scenario `backlog`."""


def scenario(
    *behaviours: dict[str, Any],
    messages: int = 200,
    rate: float = 200.0,
    recipients: int = 1,
    server: dict[str, Any] | None = None,
    seed: int = 7,
    **load: Any,
) -> Scenario:
    """Return a scenario with one destination of two hosts that behave like this."""
    return build(
        Scenario,
        {
            "name": "small",
            "seed": seed,
            "drain_s": 60.0,
            "load": {
                "messages": messages,
                "rate": rate,
                "sizes": {"law": "fixed", "bytes": 4096},
                "recipients": {"law": "fixed", "count": recipients},
                **load,
            },
            "destinations": [
                {"name": "a", "domain": "a.test", "hosts": 2, "behaviours": list(behaviours)}
            ],
            "server": server or {},
        },
        source="small.toml",
    )


def model(
    of: Scenario,
    *,
    costs: Costs | None = None,
    schedule: Schedule | None = None,
    **options: Any,
) -> Model:
    """Return a run that has not begun."""
    return Model(
        of,
        config=model_config(of.server, source="small.toml"),
        costs=costs or Costs(),
        schedule=schedule or draw(of),
        **options,
    )


def write_notes(
    part: Path, driver: RestartDriver, of: Scenario, costs: Costs, start: float
) -> None:
    """Leave what the bench would have noted of restarts."""
    notes = []
    for each, event in zip(driver.restarts, of.timeline, strict=True):
        found = told(each)
        found["started_s"] = found["gone_s"] + event.down_s
        found["read_s"] = found["restored_s"] - found["opened_s"]
        notes.append(found)
    (part / "run.json").write_text(json.dumps({"load_start": start, "restarts": notes}))


def write_run(
    directory: Path, of: Scenario, *, costs: Costs, representation: str = "slim", start: float = 1e9
) -> Model:
    """Run the model and leave what the bench and the server would have left of such a run."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scenario.toml").write_text(to_toml(of))
    part = directory / representation
    part.mkdir()
    it = model(of, costs=costs, start=start)
    it.config.envelope = representation  # type: ignore[assignment]
    it = Model(of, config=it.config, costs=costs, schedule=draw(of), start=start)
    driver, inbound = it.driver, it.driver.inbound
    it.trace_into(part / "trace.jsonl")
    driver.observer = it.trace
    rows: list[list[Any]] = []
    mortal = driver if isinstance(driver, RestartDriver) else None
    before_s = [0.0]
    if mortal is not None:
        born = mortal.born

        def next_process() -> None:
            assert born is not None
            born()
            before_s[0] = driver.loop.busy_s

        mortal.born = next_process

    def sample(t: float, settled: int, queued: int) -> None:
        if mortal is not None and mortal.is_down:
            return
        rss = it.memory.rss_bytes(
            envelopes=queued, body_bytes=driver.fill.size_bytes, messages=inbound.accepted
        )
        # Hundredths of a second, as the kernel counts.
        cpu_s = round(driver.loop.busy_s - before_s[0], 2)
        rows.append([start + t, rss, cpu_s, queued, inbound.accepted])

    it.progress = sample
    sent: dict[float, float] = {}
    lines: list[dict[str, Any]] = [{"kind": "start", "load_start": start}]
    dialogue, durable = inbound._dialogue, inbound.durable

    def spoken(number: int) -> None:
        count = inbound._first[number + 1] - inbound._first[number]
        own = costs.client_s + costs.client_recipient_s * count
        sent[inbound._due_s[number]] = it.kernel.now - own
        dialogue(number)

    def accepted(message: Any) -> None:
        durable(message)
        number = inbound._due_s.index(message.due_s)
        lines.append(
            {
                "kind": "message",
                "seq": number,
                "scheduled": start + message.due_s,
                "sent": start + sent[message.due_s],
                "done": start + driver.loop.done_at,
                "attempts": 1,
                "code": 250,
                "reply": f"2.0.0 {driver._next_msgid - 1:08x} Message accepted for delivery",
                "rcpts": [recipient.address for recipient in message.recipients],
            }
        )

    inbound._dialogue = spoken  # type: ignore[method-assign]
    inbound.durable = accepted  # type: ignore[method-assign]
    it.run()
    assert it.writer is not None
    it.writer.close()
    if mortal is not None:
        write_notes(part, mortal, of, costs, start)
    with (part / "samples.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["t", "rss_bytes", "cpu_s", "scheduler.envelope", "smtp.message"])
        table.writerows(rows)
    (part / "load.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return it
