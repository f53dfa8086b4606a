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
# # How long does a backlog last?
#
# **Question.** A destination is away for ten seconds and comes back, while the load goes on. How long until the backlog is gone, and what
# makes it shorter: more connections, or earlier retries?
#
# Theory is two straight lines. While the destination is away the queue grows at the rate of the load. Afterwards it shrinks at what is left of
# the capacity: connections / seconds per message - rate. The model runs the server's own decisions: queue, retries, limits.

# %% tags=["parameters"]
FAST = True  # False: more limits, and a longer look

# %%
from IPython.display import SVG, Markdown, display

from sim.drainplots import AWAY, RATE, WAVE_S, against_limit, drain, over_time
from testbed import plots

LIMITS = (5, 6, 8, 12, 20) if FAST else (5, 6, 7, 8, 10, 12, 14, 16, 20, 30)
LOAD_S = 62.0 if FAST else 120.0
quick = drain(LIMITS, retry_base_s=0.2, load_s=LOAD_S)
slow = drain(LIMITS, retry_base_s=2.0, load_s=LOAD_S)
print(
    f"{RATE:g} messages/s, {2 * WAVE_S:g} s each; away from {AWAY[0]:g} to {AWAY[1]:g} s; retries at base * n**2 after acceptance"
)

# %% [markdown]
# ## Result

# %%
display(SVG(plots.svg(against_limit([quick, slow]))))

# %%
by_limit = {run.connections: run for run in quick}
late = {run.connections: run for run in slow}
display(SVG(plots.svg(over_time([by_limit[6], by_limit[20], late[20]]))))

# %%
lines = [
    "| connections | theory, s | retries from 0.2 s | retries from 2 s |",
    "|---:|---:|---:|---:|",
]
for fast, other in zip(quick, slow, strict=True):
    cells = [
        "-" if at is None else f"{at - AWAY[1]:.1f}"
        for at in (fast.fluid_gone_at_s, fast.gone_at_s, other.gone_at_s)
    ]
    lines.append(f"| {fast.connections} | {' | '.join(cells)} |")
display(Markdown("\n".join(lines)))

# %%
# What the discussion says has to be true of these very runs.
assert all(run.gone_at_s is not None for run in (*quick, *slow))
assert all(run.gone_at_s > run.fluid_gone_at_s - 1 for run in (*quick, *slow))
assert late[20].gone_at_s > by_limit[20].gone_at_s + 3
assert abs(late[20].gone_at_s - late[12].gone_at_s) < 1

# %% [markdown]
# ## Discussion
#
# - Near what the load alone needs, each connection more is worth much: from five to six halves the drain. The knee is where the drain lasts about as
#   long as the outage did.
# - Past it, connections do not help if what waits is not due. With a base of two seconds a message is tried 2, 8, 18 s after it was accepted; who was
#   accepted just before the end of the outage waits until its next slot, whatever the limit. `mtactl schedule` (a flush) does what a limit can't.
# - The model is a little later than the line everywhere: a connection is opened first, and the line's load has no chance in it.
#
# ## Limitations
#
# - One destination, one recipient a message, a fixed time for each. With several destinations they share the server's processor.
# - Time is some two hundred times as fast as on the Internet: multiply seconds of outage, retries and answers alike.
# - That the model says the same as a real run of such a backlog is what [01](01_memory_of_representations.ipynb) (in-sample) and
#   [06](06_model_against_reality.ipynb) (held out) are about.
