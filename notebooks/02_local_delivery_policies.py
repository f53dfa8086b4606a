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
# # What should a server do with more local mail than it can deliver?
#
# **Question.** One user, whose mail goes through a slow command, is flooded; fifty others get ten messages each. OpenSMTPD has
# had three answers in thirteen months:
#
# | policy | when | the delivery agent |
# |---|---|---|
# | `tempfail` | October 2012 | takes 5,000 envelopes, 500 of one user, and sends the others back to the scheduler |
# | `raised` | January 2013 | takes 200,000: its envelopes had just become slim |
# | `hold` | since November 2013 | takes 50 of a user; the others are held in the scheduler |
#
# What does each cost in memory, time and retries, and do the others notice? And what had the slim envelope to do with it?
# Three ways to keep an envelope are compared: `fixed`, one buffer of 8,584 bytes as in OpenSMTPD until January 2013, for as long as
# an agent has it; `full`, every field as Python objects; `slim`, what the scheduler and the agent need.

# %% tags=["parameters"]
RESULT = "data/local-burst/policies.json"  # of `testbed policies`: what ships, or "../runs/latest/policies.json"
SCALES = (
    0.01,
    0.03,
    0.1,
)  # sizes of the burst for the model, in parts of 100,000 messages; (0.03, 0.1, 1.0) takes minutes
MODELLED = ("fixed", "slim")

# %%
from pathlib import Path

from IPython.display import SVG, Markdown, display

from testbed import plots, policyplots
from testbed.policies import modelled_sizes, read
from testbed.policyreport import verdicts

result = read(Path(RESULT))
cells = result["cells"]


def table(heads, rows):
    """Show rows as a table."""
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


def show(figure):
    """Show a figure."""
    display(SVG(plots.svg(figure)))


def number(value, digits=0):
    """Return a number, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


# %% [markdown]
# ## Set-up

# %%
display(
    Markdown(
        f"`{result['command']}`: a burst of {cells[0]['burst_messages']:,} messages, {cells[0]['others_messages']:,} for the"
        f" others. Every row below is a fresh server with real commands (fork, exec, a wait of 0.05 s); seven of one user run at a time, 50 in"
        f" all. {sum(c['accepted'] for c in cells):,} messages accepted in {len(cells)} runs,"
        f" {sum(c['lost'] for c in cells)} lost, {sum(c['duplicates'] for c in cells)} delivered twice."
    )
)

# %% [markdown]
# ## Result

# %%
table(
    ["policy", "envelopes", "peak RSS, MiB", "B per waiting envelope", "peak at the agent", "drained, s",
     "sent back", "oldest, s", "Jain", "others p50, s", "p99, s"],
    [
        [f"`{c['policy']}`", f"`{c['envelope']}`", f"{c['peak_rss_bytes'] / 2**20:.1f}",
         number(c["bytes_per_pending"]), number(c["peak_agent"]), number(c["burst_drain_s"], 1),
         number(c["sent_back"]), number(c["oldest_age_s"], 1), number(c["jain"], 2),
         number(c["others_latency_s"]["p50"], 2), number(c["others_latency_s"]["p99"], 2)]
        for c in cells
    ],
)  # fmt: skip

# %%
show(policyplots.draw("memory", result))

# %%
show(policyplots.draw("waiting", result))

# %%
show(policyplots.draw("progress", result))

# %%
show(policyplots.draw("latency", result))

# %% [markdown]
# ## Discussion
#
# Each part of the story, checked against this run:

# %%
display(
    Markdown(
        "\n".join(
            f"- **{ {True: 'yes', False: 'no', None: 'not to be told'}[holds] }**: {words}"
            for holds, words in verdicts(result)
        )
    )
)

# %% [markdown]
# The store alone, in bytes per envelope: while the agent has it, and while it waits for its next try.

# %%
table(
    ["envelopes", "", "the agent has it", "waits for its next try"],
    [
        [f"`{name}`", "", number(s["agent"]), number(s["pending"])]
        for name, s in result["stores"].items()
    ],
)

# %% [markdown]
# `raised` is affordable with slim envelopes and not with fixed ones: that is why the caps could be raised when the
# envelopes had become slim. `hold` makes the question go away: what waits is with the scheduler, which never had more than a small record. `full`
# costs little more than `slim` at the agent. What was saved in 2013 was room for strings that were not there, and Python never had it.
#
# `hold` has a price that the story leaves out. What finds 1,000 envelopes held already goes back to the scheduler and waits for a back-off, again
# and again; when the burst is over, the agent may stand idle until that has passed:

# %%
table(
    ["policy", "envelopes", "overflowed the hold queue", "drained, s", "by the model, s"],
    [
        [f"`{c['policy']}`", f"`{c['envelope']}`", number(c["overflows"]), number(c["burst_drain_s"], 1),
         number(c["model"] and c["model"]["burst_drain_s"], 1)]
        for c in cells
        if c["policy"] != "tempfail"
    ],
)  # fmt: skip

# %% [markdown]
# ## Larger and smaller bursts, by the model
#
# The model runs the same decisions on simulated time. Bytes are those of the representations' stores; the process itself is not in them.

# %%
rows = modelled_sizes("local-burst", scales=SCALES, representations=MODELLED)
show(policyplots.memory_by_burst(rows))

# %%
table(
    ["policy", "envelopes", "burst", "envelopes at most, MiB", "sent back", "others p99, s"],
    [
        [f"`{r['policy']}`", f"`{r['envelope']}`", number(r["burst"]), f"{r['live_bytes'] / 2**20:.1f}",
         number(r["sent_back"]), number(r["others_p99_s"], 3)]
        for r in rows
    ],
)  # fmt: skip

# %% [markdown]
# ## Limitations
#
# - One run of each row, on a machine that load, commands and server share; the others' latency has the machine's scheduling in it.
# - `raised` gave one user 15,000 of its 200,000 places. Here the burst is one user's, and it gets all: with history's cap most of
#   a burst of 100,000 would have been sent back under `raised` too.
# - Caps are not scaled with the burst. A larger burst is sent back more often under `tempfail`, with growing back-off.
# - RSS is what the kernel gave: CPython keeps what it once had, so memory does not fall with the drain.
# - `fixed` has the layout of the C structure, and Python's own record beside it: 9 kB in all.
