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
# # What comes back after an outage, and does jitter help?
#
# **Question.** Hosts are away for twelve seconds, and take few connections when they are back. All that was sent meanwhile is tried again and
# again. When do retries come in waves, does jitter flatten them, and what does that cost?

# %% tags=["parameters"]
FAST = True  # False: three times the mail

# %%
from IPython.display import SVG, Markdown, display

from sim import figures, studyplots
from sim.runner import simulate
from sim.scenario import load

MESSAGES = 1500 if FAST else 4500
OUTAGE = (0.0, 12.0)
POLICIES = {
    "OpenSMTPD, quadratic": ("policy=quadratic",),
    "the same with full jitter": ("policy=quadratic", "jitter=full"),
    "Postfix, by age": ("policy=age-clamped", "min_s=2", "max_s=20"),
    "exponential, full jitter": ("policy=exponential", "min_s=1", "max_s=20"),
}
ARRIVALS = {
    "spread over the outage": f"load.rate={MESSAGES / 10}",
    "all in the first second": f"load.rate={MESSAGES}",
}
scenario = (f"load.messages={MESSAGES}", "load.sessions=200", f"destinations.0.behaviours.1.from_s={OUTAGE[0]}",
            f"destinations.0.behaviours.1.to_s={OUTAGE[1]}", "drain_s=200")  # fmt: skip


def run(arrivals, policy):
    """Run the model once."""
    said = [*scenario, ARRIVALS[arrivals], *(f"server.retry.{each}" for each in POLICIES[policy])]
    return simulate(load("retry-storm", said), backend="heapq", fingerprint=False)


def show(figure):
    """Show a figure."""
    display(SVG(figures.svg(figure)))


# %% [markdown]
# ## Set-up
#
# The scenario `retry-storm` with an outage from 0 to 12 s: forty domains on four hosts, which refuse connections while they are away and take eight
# each when they are back. Time is some 200 times as fast as on the Internet: the first wait is 2 s and not 400. Everybody gets the same mail.
#
# | policy | attempt n is due | source |
# |---|---|---|
# | quadratic | at creation + 2 s * n**2 | OpenSMTPD, scheduler_ramqueue.c |
# | by age | after as long as the mail is old, 2 to 20 s | Postfix, qmgr_active.c |
# | exponential | after a random part of 2 s * 2**(n - 1), 20 s at most | AWS Architecture Blog, 2015: full jitter |

# %%
runs = {arrivals: {policy: run(arrivals, policy) for policy in POLICIES} for arrivals in ARRIVALS}

# %% [markdown]
# ## Result
#
# Mail that came **spread over the outage**:

# %%
UNTIL = 40.0
show(studyplots.pace(runs["spread over the outage"], outage=OUTAGE, until_s=UNTIL))

# %% [markdown]
# The same mail, **all in the first second**, as a mailing list would send it:

# %%
show(studyplots.pace(runs["all in the first second"], outage=OUTAGE, until_s=UNTIL))

# %%
lines = ["| arrivals | policy | attempts in vain | peak after the return, /s | empty after, s | p50, s | p95, s |",
         "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
for arrivals, by_policy in runs.items():
    for policy, result in by_policy.items():
        quantiles = result.quantiles()
        drained = "-" if result.drain_time_s is None else f"{result.drain_time_s:.1f}"
        lines.append(
            f"| {arrivals} | {policy} | {result.counts['deferred']:,} | {studyplots.peak_after(result, OUTAGE[1]):,.0f} |"
            f" {drained} | {quantiles['p50']:.1f} | {quantiles['p95']:.1f} |"
        )
        assert result.counts["delivered"] == result.counts["accepted"], policy
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Discussion

# %%
burst, spread = runs["all in the first second"], runs["spread over the outage"]
plain, jittered = "OpenSMTPD, quadratic", "the same with full jitter"
peaks = {
    (name, policy): studyplots.peak_after(of[policy], OUTAGE[1])
    for name, of in (("burst", burst), ("spread", spread))
    for policy in (plain, jittered)
}
assert peaks["burst", plain] > 2 * peaks["burst", jittered]
assert peaks["burst", plain] > 2 * peaks["spread", plain]
more = burst[jittered].counts["deferred"] / burst[plain].counts["deferred"] - 1
display(
    Markdown(
        f"A timetable that counts from the creation keeps the pattern of the arrivals: what came evenly comes back evenly, at up to"
        f" {peaks['spread', plain]:,.0f} attempts a second, and needs no jitter. What came at once comes back at once, whole and at each of its slots,"
        f" at {peaks['burst', plain]:,.0f} a second; between the slots the hosts are idle. Jitter flattens that to"
        f" {peaks['burst', jittered]:,.0f}.\n\nIt is not free. Full jitter may try at once and does: {more:.0%} more attempts in"
        f" vain. And on OpenSMTPD's timetable each early attempt uses up a slot, so that some mail waits long after the hosts are back: 95 %"
        f" are delivered after {burst[jittered].quantiles()['p95']:.0f} s instead of {burst[plain].quantiles()['p95']:.0f}. What protects the hosts in both"
        f" cases is the limit on connections: a wave waits in the queue for its turn, and that is what the limits are for."
    )
)

# %% [markdown]
# Neither OpenSMTPD nor Postfix has jitter, and this is why they can do without: arrivals are spread for most, and windows and limits hold
# back the rest. Jitter pays where many servers, or one with a burst, come back to a host that has no limit of its own.
#
# ## Limitations
#
# - One sender. A thousand servers that noticed the same outage are in step although each is spread: there jitter would show more.
# - While a route rests, nothing is tried on it: the attempts in vain that are counted are envelopes sent back, not connections.
# - One run of each. `sim sweep retry-storm --over retry.jitter=none,full` gives intervals.
