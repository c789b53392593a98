"""Tolerances by precision."""

from __future__ import annotations

import pytest

from refit_agent.authoring.tolerances import BY_PRECISION, tolerance_for


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("fp32", 2e-3),
        ("FP16", 1e-2),
        ("fp16+int8", 1e-1),
        ("fp16, bf16", 5e-2),
        ("fp16+odd", None),
        ("", None),
        ("+", None),
    ],
)
def test_the_coarsest_type_decides(precision: str, tolerance: float | None) -> None:
    """And one that nobody knows leaves it open."""
    assert tolerance_for(precision) == tolerance


def test_the_samples_stay_below_theirs() -> None:
    """What was measured on real engines, with room; a weight that was never set was off by more than 1."""
    assert BY_PRECISION["fp32"] > 2 * 8.8e-4 and BY_PRECISION["fp16"] > 2 * 4.2e-3
    assert max(BY_PRECISION.values()) <= 0.2
