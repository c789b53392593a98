"""What must hold for everything that can be generated; `thorough` says how much of it a run tries."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

#: How many times as many examples as usual, drawn anew in each run: for nightly runs. Without it a run tries the same
#: examples every time, so that it fails for a change and for nothing else.
FACTOR = int(os.environ.get("PROPERTY_FACTOR", "1"))


def thorough(examples: int) -> settings:
    """The settings of a test that usually tries so many examples."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
