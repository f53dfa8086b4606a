# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How many connections to a destination, and where is the knee?
#
# **Question.** A destination is fifty milliseconds away and takes as much as it is sent. How many connections does a load need, what does each
# one less cost in time and memory, and what does each one more buy? And where is the knee if the destination has a limit, too?

# %% tags=["parameters"]
FAST = True  # False: more messages, more values and ten runs of each

# %%
from IPython.display import SVG, Markdown, display

from sim import figures, studyplots
from sim.executors import Here
from sim.sweep import design
from sim.sweepresult import result_of
from sim.sweeprun import carry_out_plan, make_plan
from sim.sweepsubject import subject
from sim.sweepwords import named, seconds

MESSAGES, RUNS = (960, 3) if FAST else (4800, 10)
LIMITS = (4, 8, 12, 16, 20, 24, 32, 48) if FAST else (2, *range(4, 37, 2), 48, 64)
RATE, ROUND_TRIP_S = 160.0, 0.05


def swept(*over, overrides=()):
    """Run a sweep of the scenario `concurrency-sweep`."""
    of = subject("concurrency-sweep", [f"load.messages={MESSAGES}", *overrides])
    return result_of(carry_out_plan(make_plan(of, design(over), replications=RUNS), Here()))


def show(figure):
    """Show a figure."""
    display(SVG(figures.svg(figure)))


def listed(values):
    """Return values as --over takes them."""
    return ",".join(map(str, values))


# %% [markdown]
# ## Set-up
#
# The scenario `concurrency-sweep`: 160 messages a second, one recipient each, over kept connections. A pipelined message takes two round trips
# (MAIL to DATA, then the text), so that one connection carries 10 messages a second, and Little's law wants 160 * 0.1 s = 16 of
# them. Each point runs the model over the same mail; bars are 95 % intervals over replications.

# %%
found = swept(
    f"limits.mta.max_conn_per_route={listed(LIMITS)}",
    "envelope=full,slim,packed",
    overrides=("server.limits.mta.max_conn_per_connector=100",),
)
show(studyplots.knee(found, per_connection=1 / (2 * ROUND_TRIP_S), offered=RATE))

# %% [markdown]
# ## Result

# %%
display(Markdown("\n".join(f"- {line}" for line in found["words"])))

# %% [markdown]
# ## The destination has a limit, too
#
# The same, but the destination answers 421 to every connection above twelve, as large providers do. The window is fixed, so that our limit
# alone decides.

# %%
TAKES = 12
refusing = f'destinations.0.behaviours=[{{kind="latency", law="fixed", delay_s={ROUND_TRIP_S}}}, {{kind="limit-connections", max={TAKES}}}]'
rests = (
    "server.limits.mta.max_deferred=0",
    "server.limits.mta.route_delay_base_s=0.1",
    "server.limits.mta.route_delay_max_s=0.4",
)
limited = swept(
    f"limits.mta.max_conn_per_route={listed(LIMITS)}",
    overrides=(refusing, *rests, "load.rate=100", "server.limits.mta.max_conn_per_connector=100"),
)
lines = ["| connections allowed | p95 | opened | refused | |", "|---:|---:|---:|---:|---|"]
for point in limited["points"][1:]:
    opened, refused = (
        sum(point["values"][name]) / point["runs"]
        for name in ("connections_opened", "connections_failed")
    )
    mark = "recommended" if point["number"] == limited["chosen"] else ""
    allowed = next(iter(point["settings"].values()))
    lines.append(
        f"| {allowed} | {seconds(point, 'p95')} | {opened:,.0f} | {refused:,.0f} | {mark} |"
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Discussion

# %%
within = [p for p in limited["points"][1:] if float(next(iter(p["settings"].values()))) <= TAKES]
beyond = [p for p in limited["points"][1:] if float(next(iter(p["settings"].values()))) > TAKES]
assert all(not sum(p["values"]["connections_failed"]) for p in within)
assert any(sum(p["values"]["connections_failed"]) for p in beyond)
below = {
    p["settings"]["server.limits.mta.max_conn_per_route"]: p["means"]["goodput"]["mean"]
    for p in found["points"][1:]
}
assert below["8"] < 0.6 * RATE < 0.85 * below["32"]
p95 = {
    int(p["settings"]["server.limits.mta.max_conn_per_route"]): p["means"]["p95"]["mean"]
    for p in found["points"][1:]
}
display(
    Markdown(
        f"Below sixteen the connections are busy all the time and the rest waits in the queue: throughput is a straight line through 0, and"
        f" memory is what waits. That is the knee of throughput. The knee of latency comes later, because arrivals are random, and a limit that is"
        f" just enough for the mean lets bursts wait: at 16, 95 % take {p95[16]:.2f} s, at 20 {p95[20]:.2f} s and at 32 {p95[32]:.2f} s. Recommended"
        f" is {named(found['points'][found['chosen']])}. Above that hardly anything changes, memory included: no more connections are"
        f" opened than there is work for.\n\nThe second knee is the destination's: up to {TAKES} nothing is refused, and above, every"
        f" connection more is one that it refuses. The price of a limit that is too high is paid in refusals, not in memory."
    )
)

# %% [markdown]
# ## Limitations
#
# - What a connection takes in the server's memory is a default of the model, and what it takes in the kernel is not in it.
# - Latency is fixed and the destination takes everything: in reality both move with the hour. That is what windows with feedback are for,
#   see `10_adaptive_concurrency`.
# - Costs are the model's defaults; `sim sweep RUN` asks the same of a recorded run. `testbed run concurrency-sweep` does it with a real server.
