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
# # Does the model say what a real server will do at a limit that it has not seen?
#
# **Question.** Costs are measured in runs at one limit on connections to a slow destination. With nothing else from reality the model predicts
# other limits, to both sides of that one: longest queue, drain, throughput, memory, and what slim envelopes save. Then each is run for real,
# several times. How far off is it, and is that more than two real runs are from each other?
#
# The runs are made by `testbed validate` (about sixteen minutes on two cores); what ships is its result. An overlay of a run on the
# model that was calibrated with the same run proves little; this is the other way round.

# %% tags=["parameters"]
RESULT = "data/held-out/validation.json.gz"  # or "../runs/latest/validation.json"
FAST = True  # False: each real run's own number as well

# %%
from pathlib import Path

from IPython.display import SVG, Markdown, display

from testbed import heldoutplots, plots
from testbed.comparereport import figures
from testbed.heldout import read
from testbed.heldoutgates import GATES, TOO_NOISY, rows_of, word_of

result = read(Path(RESULT))
rows = rows_of(result)
key = result["key"].rpartition(".")[2]


def table(heads, lines):
    """Show rows as a table."""
    every = [heads, ["---"] + ["---:"] * (len(heads) - 1), *lines]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in every)))


def share(value):
    """Return a relative number in per cent, or a dash."""
    return "-" if value is None else f"{value:.1%}"


held_out = [each for each in result["settings"] if not each["trains"]]
print(f"calibrated at {key} = {result['train']} with {result['training_runs']} runs;", end=" ")
print(f"{len(held_out)} settings held out, {sum(each['repeats'] for each in held_out)} real runs")
print(result["command"])

# %% [markdown]
# ## Result
#
# Points are real runs, median and range; dashed is the model; the grey band is the limit at which it was calibrated.

# %%
display(SVG(plots.svg(heldoutplots.against_setting(result))))

# %%
table(
    ["", "held", "error, median", "worst", "gate", "real runs' spread", "naive", ""],
    [
        [line["title"], f"{line['held']} of {line['settings']}", share(line["median_error"]), share(line["worst_error"]),
         share(line["gate"]), share(line["real_spread"]), share(line["naive_error"]), word_of(result, line)]
        for line in result["verdict"]["quantities"]
    ],
)  # fmt: skip

# %% [markdown]
# Naive is the number of the training limit, as it is or in proportion to the limit, whichever does better. Over time, the first run of each:

# %%
display(SVG(plots.svg(heldoutplots.over_time(result))))

# %%
for quantity, gate in GATES.items():
    own = [row for row in rows if row.quantity == quantity and row.real is not None]
    if own and not (FAST and quantity not in ("drain_time", "saving")):
        display(Markdown(f"**{gate.title}, {gate.unit}**"))
        table(
            [key, "", "real", "low", "high", "model", "error", ""],
            [
                [row.value, row.representation, *(figures(each * gate.factor) for each in (row.real, row.low, row.high, row.model)),
                 f"{row.error:+.1%}", row.verdict or "in-sample"]
                for row in own
            ],
        )  # fmt: skip

# %% [markdown]
# ## Discussion

# %%
missed = [line for line in result["verdict"]["quantities"] if not line["ok"]]
unsure = [
    line["title"] for line in result["verdict"]["quantities"] if word_of(result, line) == TOO_NOISY
]
words = (
    "Not all gates hold:"
    if missed
    else "All gates hold."
    if not unsure
    else "All gates hold that can be told:"
)
for title in unsure:
    words += f"\n- **{title}**: real runs differ from each other by more than the model from their median; longer queues would tell."
for line in missed:
    words += f"\n- **{line['title']}**: {'; '.join(line['why']) or 'see the table'}"
display(Markdown(words))
machine = result["host"]
busy = max(each["foreign_cpu_share"] for each in result["settings"])
print(f"{machine.get('cores')} cores, {machine.get('cpu')}; other programs took at most {busy:.0%}")

# %% [markdown]
# Queue, drain and throughput follow from decisions that model and server share, and from one number, how long a transaction takes. That they
# hold says that the mechanism is complete: connection set-up, the wait for the event loop, what the client has to wait for. Memory is a regression, and a
# saving is the small difference of two large ones: there the real runs' own spread is what to look at first.
#
# ## Limitations
#
# - One scenario, one machine, loopback, one varied limit. Another: `testbed validate SCENARIO`, for any scenario that varies a key.
# - Gates are ours. They are for limits within a factor of five of the one that was calibrated at, on the machine that was calibrated on. At 40 another limit counts, the connector's, which is 20.
# - Peak RSS is a number of an allocator. Small queues say nothing of it, and rows say so.
