"""Numbers rounded once to their type."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.authoring.canonical.values import fits, of_array, rounded

_FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


def _bfloat16(patterns: np.ndarray) -> np.ndarray:
    return np.asarray((patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64))


@given(st.lists(st.floats(-3e38, 3e38), min_size=1, max_size=20))
def test_bfloat16_is_the_nearest(numbers: list[float]) -> None:
    """No other pattern is nearer, and of two equally near ones it is the even one."""
    exact = np.array(numbers)
    got = rounded(exact, "bfloat16")
    around = np.stack([got - np.uint16(1), got, got + np.uint16(1)])
    with np.errstate(all="ignore"):
        distance = np.abs(_bfloat16(around.reshape(-1)).reshape(3, -1) - exact)
    distance[~np.isfinite(distance)] = np.inf
    assert (distance[1] <= np.nanmin(distance, axis=0)).all()
    tied = (distance[1] == distance[0]) | (distance[1] == distance[2])
    assert (got[tied & (exact != 0)] % 2 == 0).all()


def test_bfloat16_by_hand() -> None:
    """One, halfway up and down, the largest, the smallest, zero of both signs, infinity, and just below half of the smallest."""
    numbers = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, float.fromhex("0x1.fep127"), 2.0**-133, 0.0, -0.0, np.inf, 2.0**-135, 1 + 2**-8 + 2**-40]  # fmt: skip
    wanted = [0x3F80, 0x3F80, 0x3F82, 0x7F7F, 0x0001, 0x0000, 0x8000, 0x7F80, 0x0000, 0x3F81]
    assert rounded(np.array(numbers), "bfloat16").tolist() == wanted
    assert np.isnan(_bfloat16(rounded(np.array([np.nan]), "bfloat16")))[0]


@given(st.lists(_FINITE, max_size=20))
def test_bfloat16_patterns_are_read_as_they_are(numbers: list[float]) -> None:
    """Widening and rounding again changes nothing."""
    patterns = rounded(np.array(numbers), "bfloat16")
    assert np.array_equal(rounded(of_array(patterns, "bfloat16").doubles(), "bfloat16"), patterns)


def test_what_fits() -> None:
    """Finite numbers up to the largest of the type."""
    for dtype, largest in (("float16", 65504.0), ("bfloat16", float.fromhex("0x1.fep127")), ("float32", 3.4028234663852886e38), ("float64", 1.7e308)):  # fmt: skip
        assert fits(np.array([largest, -largest, 0]), dtype) and fits(np.zeros(0), dtype)
        assert not any(fits(np.array([bad]), dtype) for bad in (np.inf, np.nan, -np.inf))
        if dtype != "float64":
            assert not fits(np.array([largest * 1.1]), dtype)
            assert np.isfinite(rounded(np.array([largest]), dtype).astype(np.float64)).all()
