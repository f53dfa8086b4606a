"""Hypothesis profiles: a quick one for the desk, a thorough and repeatable one where `CI` is set.

Neither has a deadline: a busy machine makes an example slow, and that is not what they test.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "dev", max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
