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
# # How much memory does an envelope cost while it waits?
#
# **Question.** A destination goes down under load and its mail has to wait. In January 2013 OpenSMTPD's relay agent stopped keeping
# the whole envelope for each recipient (8,584 bytes of C) and kept a slim one (56 bytes and a string). What is the same
# step worth in a server that is written in Python, and what is left to gain by packing the rest into columns of machine integers?
#
# Four representations are compared. They stand behind one interface, and nothing else in the server differs:
#
# | | in memory, for each envelope |
# |---|---|
# | `whole` | every field, and the message itself (shared by its recipients) |
# | `full` | every field; the message is on disk |
# | `slim` | what the scheduler needs; the rest is on disk until the envelope is tried |
# | `packed` | the same as `slim`, as a row of machine integers in columns |

# %% tags=["parameters"]
RUN = "data/backlog"  # a run directory: the one that ships, or e.g. "../runs/latest"

# %%
from pathlib import Path

from IPython.display import SVG, Markdown, display

from testbed import plots
from testbed.rundir import Run
from testbed.summary import scenario_line

run = Run(Path(RUN))
summary, scenario = run.summary, run.scenario
parts = summary["representations"]


def table(heads, rows):
    """Show rows as a table."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


def show(figure):
    """Show a figure."""
    display(SVG(plots.svg(figure)))


# %% [markdown]
# ## Set-up

# %%
display(
    Markdown(
        f"{scenario.question.strip()}\n\n{scenario_line(scenario)}. "
        f"{summary['accepted']:,} recipients accepted over {len(parts)} runs, {summary['lost']} lost, "
        f"{summary['duplicates']} delivered twice."
    )
)

# %% [markdown]
# Each representation ran in a fresh process of the server, in a fresh world. Memory is RSS as the kernel counts it (`/proc/PID/smaps_rollup`), five times a second.
#
# ## Result

# %%
show(plots.memory_over_time(run))

# %% [markdown]
# All servers take a few MiB once when the first attempts fail; what grows after that is the queue. CPython keeps what it once had: the drain gives little back.

# %%
show(plots.memory_against_queue(run))

# %%
table(
    ["envelopes", "whole server, B/envelope", "store alone, B/envelope", "idle, MiB", "peak, MiB"],
    [
        [
            f"`{name}`",
            f"{part['bytes_per_envelope']:,.0f} ± {part['bytes_per_envelope_stderr']:,.0f}",
            f"{part['store_bytes_per_envelope']:,.0f}",
            f"{part['base_rss_bytes'] / 2**20:.1f}",
            f"{part['peak_rss_bytes'] / 2**20:.1f}",
        ]
        for name, part in parts.items()
    ],
)

# %% [markdown]
# *Whole server* is the slope above with its standard error, caches and allocator included. *Store alone* is a fresh process that only fills the store, with 100,000 envelopes of the same scenario.
#
# ## Discussion
#
# The steps, by the store alone:

# %%
STEPS = {
    ("whole", "full"): "the body goes to disk",
    ("full", "slim"): "fields that only disk needs are dropped",
    ("slim", "packed"): "what is left is packed",
}
table(
    ["step", "what it is", "bytes saved", "ratio"],
    [
        [f"{old} → {new}", what, f"{a - b:,.0f}", f"{a / b:.1f} to 1"]
        for (old, new), what in STEPS.items()
        if old in parts and new in parts
        for a, b in [
            (parts[old]["store_bytes_per_envelope"], parts[new]["store_bytes_per_envelope"])
        ]
    ],
)

# %% [markdown]
# OpenSMTPD's own step was 77 to 1 in C, because its structures held fixed-size buffers: a path, an error line, three addresses of 319 bytes each. A Python
# object holds references to strings that are as long as they are, and shares those that are equal: there is less to drop, and
# the object itself, its dict entry and its integers are what remains. That is what packing removes.

# %%
show(plots.bytes_beside_peers(summary))

# %% [markdown]
# The model runs the same decisions on simulated time. Its memory is a line that was fitted to this run, so a small error here shows that the queue was predicted, not that the memory was.

# %%
show(plots.queue_over_time(run))
if summary["model"]:
    model = summary["model"]
    table(
        ["worst over representations", "relative error"],
        [
            [what, f"{model[key]:.1%}"]
            for what, key in (
                ("peak queue", "peak_queue_error"),
                ("time until empty", "drain_time_error"),
                ("peak RSS", "peak_rss_error"),
            )
            if model[key] is not None
        ],
    )

# %% [markdown]
# ## Limitations
#
# - One run of each representation. The standard errors are of the line through one run, not of repeated runs.
# - The queue grows to a few thousand envelopes here: for `packed` the whole server's slope is a few hundred kilobytes beside an
#   allocator that takes memory in larger pieces. The store alone, and `tests/benchmarks` with 200,000 envelopes, are the better figures.
# - RSS is not what the objects take but what the kernel gave: arenas of the allocator, fragments and caches are in it.
# - Numbers of other servers were derived from their sources or published; they count different things (see the report).
# - Recipients per message matter: `whole` shares a body among them.
