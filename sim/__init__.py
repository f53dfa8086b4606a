"""The model: the decisions of `mta.core` on SimPy, with sampled durations."""
