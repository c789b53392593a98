"""The fold's arithmetic, against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.weight_map.batch_norm import clamp_double, float32_to_bfloat16, float32_to_half, fold, widen

FINITE_HALVES = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
EXACT_HALVES = [Fraction(float(h)) for h in FINITE_HALVES]


def half_ties_away(value: float) -> int:
    """Bits of the nearest half, ties away from zero; overflow from the tie beyond 65504 on."""
    exact = abs(Fraction(value))
    low, high = 0, len(EXACT_HALVES)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if EXACT_HALVES[middle] <= exact else (low, middle)
    below = low - 1
    above_value = EXACT_HALVES[low] if low < len(EXACT_HALVES) else Fraction(65536)
    nearest = low if exact - EXACT_HALVES[below] >= above_value - exact else below
    return nearest | (0x8000 if np.signbit(np.float32(value)) else 0)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_half_is_the_nearest_with_ties_away_from_zero(value):
    assert float32_to_half(np.array([value], np.float32)).view(np.uint16)[0] == half_ties_away(value)


@given(st.integers(0, 0x7BFF), st.booleans())
def test_half_ties_go_away_from_zero(bits, negative):
    low, high = (Fraction(float(h)) for h in (FINITE_HALVES[bits], FINITE_HALVES[min(bits + 1, 0x7BFF)]))
    tie = float((low + high) / 2) if bits < 0x7BFF else 65520.0
    got = float32_to_half(np.array([-tie if negative else tie], np.float32)).view(np.uint16)[0]
    assert got == (bits + 1) | (0x8000 if negative else 0)


def test_half_differs_from_numpy_on_a_tie():
    tie = np.array([1 + 2**-11], np.float32)
    assert tie.astype(np.float16)[0] == 1.0
    assert float32_to_half(tie)[0] == np.float16(1 + 2**-10)


def test_half_keeps_infinity_and_nan():
    got = float32_to_half(np.array([np.inf, -np.inf, np.nan], np.float32))
    assert got[0] == np.inf
    assert got[1] == -np.inf
    assert np.isnan(got[2])


def test_epsilon_in_half_is_168_units():
    assert float32_to_half(np.array([1e-5], np.float32))[0] == np.float16(168 * 2.0**-24)


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F808000, 0x3F80),  # tie, even below
        (0x3F818000, 0x3F82),  # tie, even above
        (0x3F808001, 0x3F81),
        (0xBF818000, 0xBF82),
        (0x7F7FFFFF, 0x7F80),  # overflows to infinity
        (0x7F800000, 0x7F80),
        (0x7F800001, 0x7F80),  # a NaN is cut off, as the parser does
    ],
)
def test_bfloat16_rounds_ties_to_even(bits, rounded):
    assert float32_to_bfloat16(np.array([bits], np.uint32).view(np.float32))[0] == rounded


@given(st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 3, st.floats(0, 100, width=32)), min_size=1, max_size=5))
def test_float32_fold_rounds_every_operation(rows):
    g, b, m, v = (np.array(c, np.float32) for c in zip(*rows, strict=True))
    scale, bias = fold(g, b, m, v, 1e-5, "float32")
    for i in range(len(rows)):
        root = np.float32(np.sqrt(np.float64(np.float32(Fraction(float(v[i])) + Fraction(float(np.float32(1e-5)))))))
        s = np.float32(float(g[i]) / float(root))  # division in float64, rounded once more, is exact here
        assert scale[i] == s
        product = np.float32(float(m[i]) * float(s))
        assert bias[i] == np.float32(float(b[i]) - float(product))


def test_bias_is_not_fused():
    # bias - mean * scale with one rounding would be -2**-24 here, not 0.
    one_up = np.float32(1 + 2**-12)
    product = np.float32(one_up * one_up)
    scale, bias = fold(
        np.array([one_up]), np.array([product]), np.array([one_up]), np.ones(1, np.float32), 0.0, "float32"
    )
    assert scale[0] == one_up
    assert float(one_up) ** 2 != float(product)
    assert bias[0] == 0.0


def test_half_fold_rounds_only_epsilon_and_the_stores():
    rng = np.random.default_rng(3)
    g, b, m = (rng.standard_normal(500).astype(np.float16) for _ in range(3))
    v = rng.uniform(0, 1e-3, 500).astype(np.float16)
    scale, bias = fold(*(widen(a, "float16") for a in (g, b, m, v)), 1e-5, "float16")
    assert scale.dtype == bias.dtype == np.float16
    eps = np.float32(168 * 2.0**-24)
    for i in range(500):
        s = half_ties_away(float(np.float32(g[i]) / np.sqrt(np.float32(v[i]) + eps)))
        assert scale.view(np.uint16)[i] == s
        stored = np.uint16(s).view(np.float16).astype(np.float32)
        assert bias.view(np.uint16)[i] == half_ties_away(float(np.float32(b[i]) - np.float32(m[i]) * stored))


def test_bfloat16_fold_gives_bit_patterns():
    one = widen(np.array([0x3F80], np.uint16), "bfloat16")
    scale, bias = fold(one * 3, one * 2, one, one * 3, 1.0, "bfloat16")
    assert (scale.dtype, scale[0], bias[0]) == (np.uint16, 0x3FC0, 0x3F00)


def test_doubles_are_clamped_not_overflown():
    got = clamp_double(np.array([1e300, -np.inf, np.nan, 0.1]))
    largest = np.finfo(np.float32).max
    assert list(got[:2]) == [largest, -largest]
    assert np.isnan(got[2])
    assert got[3] == np.float32(0.1)


def test_zero_variance_without_epsilon_is_infinite_and_silent():
    zero = np.zeros(1, np.float32)
    scale, _ = fold(np.ones(1, np.float32), zero, zero, zero, 0.0, "float32")
    assert scale[0] == np.inf


def test_other_types_are_refused():
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match="int8"):
        fold(one, one, one, one, 0.0, "int8")
    with pytest.raises(ValueError, match="int64"):
        widen(np.ones(1, np.int64), "int64")
