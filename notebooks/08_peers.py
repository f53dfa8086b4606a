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
# # How does it compare with Postfix, OpenSMTPD and Exim?
#
# **Question.** The same mail, the same scripted Internet, four servers, one after the other on one machine. Two numbers were asked for before
# anything was measured: ours is to be at least 1.5 times as fast, end to end, as the fastest other server *that syncs as much*; and a
# queued envelope is to take at most a quarter of what it takes in OpenSMTPD's scheduler. What else one should know stands beside: what a
# message costs, what memory does while a queue grows, who notices a dead destination, and how an outage ends.
#
# `testbed peers` makes the runs (`docs/peers.md`), and `testbed trim` what this notebook reads:
#
# ```
# testbed peers install                       # once: Debian's packages, unpacked and not installed
# testbed peers --out runs/peers
# testbed trim runs/peers notebooks/data/peers
# ```

# %% tags=["parameters"]
RESULT = "data/peers"  # what ships; or a directory of `testbed peers`, as "../runs/peers"

# %%
from pathlib import Path

from IPython.display import SVG, Markdown, display

from testbed import peermarkdown, peerplots, plots
from testbed.comparing import read, result_file

file = result_file(Path(RESULT))
assert file is not None, f"{RESULT} has no comparison"
result = read(file)

# %% [markdown]
# ## Set-up

# %%
display(Markdown(peermarkdown.setting(result)))
display(Markdown(peermarkdown.scenarios(result)))

# %% [markdown]
# ## Result

# %%
display(Markdown(peermarkdown.answers(result)))

# %%
display(SVG(plots.svg(peerplots.overview(result))))

# %% [markdown]
# Each scenario, medians with the range over repeats:

# %%
for section in result["scenarios"]:
    display(Markdown(f"**{section['title']}** (`{section['name']}`)"))
    display(Markdown(peermarkdown.quantities(section)))

# %% [markdown]
# Every recipient that was promised something, all runs, and how often each server syncs for a message:

# %%
display(Markdown(peermarkdown.counts(result)))

# %% [markdown]
# ## Discussion
#
# - **Speed is decided by what a message costs in processes and syncs.** Exim starts a process for each message and one more for its delivery; Postfix
#   hands each from process to process over sockets and files; ours is one process, and one commit makes durable what several sessions
#   have sent. OpenSMTPD in Debian's version does not sync at all, which is why its speed stands beside the verdict and not in it.
# - **A queue in memory is cheap if its records are.** OpenSMTPD's scheduler has structures and tree nodes on the heap for each envelope; packed
#   has columns of integers. Postfix has another answer: what is deferred is in files only, and is read again for each attempt.
# - **Idle memory is the other way round.** One Python process takes several times what the C servers take before the first message.
#   It is a constant: the line in the figure starts higher and hardly rises.
# - **After an outage** it matters who remembers that a host is down and who may be told when to try again. OpenSMTPD's second attempt comes
#   400 s after the message, whatever the scenario's time scale is.
#
# ## What could not be compared, and why

# %%
display(Markdown(peermarkdown.gaps(result)))

# %% [markdown]
# ## Limitations
#
# - One machine with few cores, loopback for a network, a virtual disk with fast syncs. The order of servers carries over to other machines
#   more likely than the ratios: on a disk that syncs slowly, who shares a sync gains more.
# - Each server is as Debian ships it, with what would have measured the set-up changed (`testbed/targets/`). A server tuned for one load does better
#   at it: OpenSMTPD with its limits opened, Exim with queue runners instead of immediate delivery.
# - Memory of a queued envelope compares our store, filled alone in a fresh process, with the growth of a process of OpenSMTPD that does nothing else.
#   All that grows in each server while the queue does is said beside it, and has the noise of whole processes.
# - A few runs of seconds each: the range is that of these, not of all days.
