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
# # What if, from a mail log?
#
# **Question.** A relay has written a log. One destination was out of order for a minute, another one greylists. How long would
# the mail have waited, and how much of it at once, if the relay had tried again sooner, later, or spread in time; and how many
# connections does the slow destination need?
#
# The log is a real Postfix's, of 100,000 messages in a quarter of an hour. Nothing else is known of it here. Any log of Postfix,
# OpenSMTPD or Exim may take its place; `sim replay LOG --set KEY=VALUE` asks one such question at a time.

# %% tags=["parameters"]
LOG = "data/maillog/postfix-100k.log.bz2"
FAST = True  # False: more values of the limit

# %%
from IPython.display import SVG, Markdown, display

from sim.figures import svg
from sim.logs import plots
from sim.logs.replay import ROWS, Replay, agreement, numbers

QUESTIONS = {
    "model of then": [],
    "on time": ["retry.scan_s=0"],
    "defaults": ["retry.min_s=300", "retry.scan_s=300"],
    "spread": ["retry.policy=exponential", "retry.base_s=120", "retry.max_s=600"],
}
KEY = "concurrency.limit"
VALUES = (3, 6, 20) if FAST else (2, 3, 4, 5, 6, 7, 8, 10, 20, 50)


def table(heads, rows):
    """Show rows as a table."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


def show(figure):
    """Show a figure."""
    display(SVG(svg(figure)))


def number(value):
    """Return a number, or a dash."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"  # fmt: skip


# %% [markdown]
# ## Set-up
#
# Mail arrives as it did. Attempts are the model's own; of the log it keeps why they failed: outages, failures of a recipient,
# refusals for good. See `docs/replay.md`.

# %%
replayed = Replay([LOG])
record = replayed.mail.record
display(
    Markdown(
        f"A log of {replayed.mail.kind.capitalize()}: {replayed.mail.lines:,} lines, {record.messages:,} messages, {len(record):,}"
        f" attempts in {record.last_at - record.first_at:,.0f} s."
    )
)
table(
    ["destination", "recipients", "attempts", "deferred", "refused", "median attempt, s", "out of order, s"],
    [
        [site.name, f"{site.recipients:,}", f"{site.attempts:,}", f"{site.deferred:,}", f"{site.refused:,}",
         f"{site.median_s:.3f}", ", ".join(f"{one.begin:.1f} to {one.end:.1f}" for one in site.outages)]
        for site in replayed.world.sites
    ],
)  # fmt: skip
display(Markdown("\n".join(f"- {note}" for note in replayed.notes)))

# %% [markdown]
# ## Result
#
# First the model of then, because the other columns are worth as much as this one is near the log.

# %%
runs = {name: replayed.run(overrides) for name, overrides in QUESTIONS.items()}
told = replayed.world.told
off = agreement(told, runs["model of then"])
table(
    ["", "the log", *runs, ""],
    [
        [f"`{key}`", number(told.rows.get(key)), *(number(numbers(result)[key]) for result in runs.values()), unit]
        for key, unit in ROWS
    ],
)  # fmt: skip
display(
    Markdown(
        f"The model of then: counts that differ: {off['counts_differ'] or 'none'}; drain {off['drain_time']:+.1%}; area between the"
        f" queue lengths {off['queue_area']:.1%} of the log's; largest difference of the distributions of time to delivery"
        f" {off['latency_ks']:.3f}."
    )
)

# %%
show(plots.queue(replayed, runs))

# %%
show(plots.latency(replayed, runs))

# %% [markdown]
# How many connections does a destination need? The slow one has 45 messages a second that take a ninth of a second each: five
# connections are busy all the time.

# %%
swept = [
    replayed.run([f"{KEY}={value}", f"concurrency.initial={min(value, 5)}"]) for value in VALUES
]
show(plots.limits(KEY, VALUES, swept, replayed.config.concurrency.limit))

# %% [markdown]
# ## Discussion

# %%
waits = {name: result.quantiles()["p99"] for name, result in runs.items()}
display(
    Markdown(
        f"- Greylisting makes nearly all of the queue: {told.rows['deferred']:,} deferrals, most of them of one destination. A relay that"
        f" looks once a minute lets 1 % of its mail wait {waits['model of then']:.0f} s or more; one that is on time"
        f" {waits['on time']:.0f} s; the defaults of Postfix, every five minutes, {waits['defaults']:,.0f} s.\n"
        "- Who looks once a minute sees a saw: what became due in that minute comes at once. That is the peak after the outage, too.\n"
        f"- With {VALUES[0]} connections the queue grows to {swept[0].peak_queued:,} envelopes, and no outage is needed for that; with"
        + ", ".join(
            f" {value}: {result.peak_queued:,}"
            for value, result in zip(VALUES[1:], swept[1:], strict=True)
        )
        + f". The {replayed.config.concurrency.limit} of then were not what held the mail up."
    )
)
assert not off["counts_differ"]
assert off["queue_area"] < 0.15

# %% [markdown]
# ## Limitations
#
# - The CPU and the disk of that server are not in its log; the model has as much of both as it wants. On a machine that is busy, mail
#   waits longer than limits and hosts explain, and the model of then says so by being quicker.
# - An attempt takes as long as it took then, also where there would be fewer at a time.
# - The greylisting host is replayed as "refuses once", not as "refuses for twenty seconds": the log can't tell.
# - One outage, a quarter of an hour of one day. A limit that suits this log suits this log.
