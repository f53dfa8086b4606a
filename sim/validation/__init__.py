"""Experiments whose answer is known without the model, and rules that hold in every run; `sim.validate` judges them.

degenerate.py  scenarios in which only what theory speaks of is left, and what looks on
laws.py        experiments with chance in them: Erlang, Pollaczek-Khinchine, Little, Ashcroft, Bailey
rules.py       what holds exactly: conservation, limits, Little's law as an identity, the same seed the same run
comparisons.py what holds exactly beside another reckoning: a recursion, a recount, a second run
audit.py       a run in which everything happens, and books of its own about it
stats.py       means of replications and their intervals
"""
