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
# # Does a window that adapts beat the right limit?
#
# **Question.** A host takes thirty connections, then eight for a while, then thirty again. A fixed limit is too high or too low at some time. How well does
# Postfix's feedback follow, which says nothing but "that worked" and "that did not", and what does it gain?

# %% tags=["parameters"]
FAST = True  # False: three times the mail, at the same rate

# %%
from IPython.display import SVG, Markdown, display

from sim import figures, studyplots
from sim.runner import simulate
from sim.scenario import load

SCALE = 1 if FAST else 3
RATE, ROUND_TRIP_S = 100, 0.05
BEARS = [(0.0, 30), (20.0 * SCALE, 8), (40.0 * SCALE, 30)]
UNTIL = 80.0 * SCALE
WINDOWS = {
    "fixed, 8": ("policy=fixed", "limit=8"),
    "fixed, 30": ("policy=fixed", "limit=30"),
    "feedback 1 and 1": ("policy=feedback", "limit=30"),
    "feedback 1/N and 1/N": ("policy=feedback", "limit=30", "positive_feedback=1/concurrency",
                             "negative_feedback=1/concurrency"),
}  # fmt: skip


def behaviours(most):
    """Return what a host is like that takes so many connections."""
    latency = f'{{kind="latency", law="fixed", delay_s={ROUND_TRIP_S}}}'
    return f'behaviours=[{latency}, {{kind="limit-connections", max={most}}}]'


changes = ", ".join(f"{{at_s={at_s}, {behaviours(most)}}}" for at_s, most in BEARS[1:])
scenario = (
    f"load.rate={RATE}", f"load.messages={RATE * 60 * SCALE}", "drain_s=300",
    f"destinations.0.{behaviours(BEARS[0][1])}", f"destinations.0.changes=[{changes}]",
    "server.retry.base_s=2", "server.limits.mta.max_deferred=0",
    "server.limits.mta.route_delay_base_s=0.1", "server.limits.mta.route_delay_max_s=0.4",
    "server.limits.mta.max_conn_per_route=100", "server.limits.mta.max_conn_per_connector=100",
)  # fmt: skip


def run(window):
    """Run the model once."""
    said = [*scenario, *(f"server.concurrency.{each}" for each in WINDOWS[window])]
    return simulate(load("concurrency-sweep", said), backend="heapq", fingerprint=False)


# %% [markdown]
# ## Set-up
#
# A hundred messages a second to a host fifty milliseconds away: ten connections carry them. Above what the host takes it answers
# 421 and hangs up. Every window gets the same mail. Postfix's feedback (SCHEDULER_README) widens the window by a part for each delivery and
# narrows it by a part for each failure; N is the window. OpenSMTPD has limits and no windows, which is `fixed`.

# %%
runs = {window: run(window) for window in WINDOWS}

# %% [markdown]
# ## Result

# %%
figure = studyplots.windows(runs, bears=BEARS, until_s=UNTIL)
display(SVG(figures.svg(figure)))

# %%
lines = ["| window | connections tried | refused | p50, s | p95, s | peak queued | empty after, s |",
         "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
for window, result in runs.items():
    quantiles = result.quantiles()
    counts = result.counts
    lines.append(
        f"| {window} | {counts['connections_opened']:,} | {counts['connections_failed']:,} | {quantiles['p50']:.2f} |"
        f" {quantiles['p95']:.2f} | {result.peak_queued:,} | {result.drain_time_s:.1f} |"
    )
    assert counts["delivered"] == counts["accepted"], window
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Discussion

# %%
low, high, feedback = runs["fixed, 8"], runs["fixed, 30"], runs["feedback 1 and 1"]
refused = {name: runs[name].counts["connections_failed"] for name in WINDOWS}
assert refused["fixed, 8"] == 0
assert refused["feedback 1 and 1"] < 0.8 * refused["fixed, 30"]
assert feedback.quantiles()["p95"] < 0.5 * low.quantiles()["p95"]
display(
    Markdown(
        f"The limit that is right for the worst time is wrong for the rest: with 8 nothing is ever refused, and mail waits for"
        f" {low.quantiles()['p50']:.0f} s in the median, because ten connections would be needed. The limit that is right for the best time is quick, and"
        f" hammers: {refused['fixed, 30']:,} connections are refused. Feedback has nearly its latency (p95 {feedback.quantiles()['p95']:.1f} s, against"
        f" {high.quantiles()['p95']:.1f} s) with {refused['feedback 1 and 1']:,} refused. It needs no number that somebody"
        f" would have to know beforehand; `limit` is only what it may not pass.\n\nIt cannot know what a host takes without asking for more: while the host takes"
        f" eight, feedback goes on trying a ninth, because a success widens the window again. That is the saw-tooth. What is open when the host changes its mind stays open and wears off only as connections end: the"
        f" first seconds after the change show no refusals at all. And a window does not grow beyond what is"
        f" used: where ten carry the load, it stays a little above ten."
    )
)

# %% [markdown]
# What the host bears is also learnt in another way: a route that fails rests, 0.1 to 0.4 s here, 15 s and more by default. Rests protect a
# host better than windows do, and they are why even `fixed, 30` gets its mail through.
#
# ## Limitations
#
# - The window is one for each destination, as Postfix has it. Hosts of one destination with different limits share it.
# - The host says 421 at once. One that becomes slow instead gives no failure, and no feedback: limits are all there is against that.
# - One run of each window, the model's default costs, and time some 200 times as fast as on the Internet.
