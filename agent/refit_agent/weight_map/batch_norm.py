"""Folding a BatchNormalization into scale and bias, bit for bit as the parser does it.

Source: weight_naming section 2. S = scale / sqrt(variance + epsilon), B = bias - mean * S with S as
it was stored. A REFIT_IDENTICAL engine is undefined with any other bits, so every operation here
rounds where the parser's C++ rounds: each single operation to float32, never fused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def fold(scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float, dtype: str) -> tuple[Array, Array]:
    """Folded scale and bias, each a fresh 1-D array in the storage form of ``dtype``.

    Args:
        scale, bias, mean, variance: float32 values, 1-D, equal lengths (see ``widen``).
        epsilon: the node's attribute.
        dtype: "float32", "float16" or "bfloat16": what the engine stores. The last two come back as
            float16 and as uint16 bit patterns; then the parameters must hold values of that type.

    Raises:
        ValueError: another ``dtype``.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"a BatchNormalization cannot be folded to {dtype}")
    eps = widen(narrow(np.array([epsilon], np.float32), dtype), dtype)
    # The parser divides by zero and makes infinities without a word, and so must we.
    with np.errstate(all="ignore"):
        stored_scale = narrow(scale / np.sqrt(variance + eps), dtype)
        stored_bias = narrow(bias - mean * widen(stored_scale, dtype), dtype)
    return stored_scale, stored_bias


def widen(values: Array, dtype: str) -> Array:
    """``values``, in the storage form of ``dtype``, as float32.

    Exact, except that float64 is clamped to the range of float32 and rounded to nearest, as at
    import (section 5).

    Raises:
        ValueError: ``dtype`` is no type that the parser folds.
    """
    if dtype == "bfloat16":
        patterns: npt.NDArray[np.uint32] = values.astype(np.uint32) << np.uint32(16)
        return patterns.view(np.float32)
    if dtype == "float64":
        return clamp_double(values)
    if dtype in ("float32", "float16"):
        return values.astype(np.float32, copy=False)
    raise ValueError(f"{dtype} is no type of BatchNormalization parameters")


def narrow(values: Array, dtype: str) -> Array:
    """float32 ``values`` rounded to the storage form of ``dtype`` as the parser's number classes do."""
    if dtype == "float16":
        return float32_to_half(values)
    if dtype == "bfloat16":
        return float32_to_bfloat16(values)
    return np.ascontiguousarray(values, np.float32)


def float32_to_half(values: Array) -> Array:
    """float32 to float16, to nearest, ties AWAY from zero.

    Source: the parser's half.h (HALF_ROUND_TIES_TO_EVEN=0). numpy's own cast rounds ties to even
    and differs by one unit on exact ties.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # Normal halves: adding half a unit to the magnitude carries into the exponent where it must.
    normal = np.minimum((magnitude - np.uint32(0x38000000) + np.uint32(0x1000)) >> np.uint32(13), np.uint32(0x7C00))
    # Subnormal halves are multiples of 2**-24; float64 holds the scaled value and its half exactly.
    small = magnitude < np.uint32(0x38800000)
    scaled = np.where(small, magnitude, np.uint32(0)).view(np.float32).astype(np.float64) * 2.0**24
    result = np.where(small, np.floor(scaled + 0.5).astype(np.uint32), normal)
    result = np.where(magnitude > np.uint32(0x7F800000), np.uint32(0x7FFF), result)
    signed: npt.NDArray[np.uint32] = result | ((bits >> np.uint32(16)) & np.uint32(0x8000))
    return signed.astype(np.uint16).view(np.float16)


def float32_to_bfloat16(values: Array) -> Array:
    """float32 to bfloat16 bit patterns (uint16), to nearest, ties to even; infinities and NaNs are cut off.

    Source: the parser's bfloat16.cpp.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    finite = (bits & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: npt.NDArray[np.uint32] = np.where(finite, bits + np.uint32(0x7FFF) + even, bits)
    upper: npt.NDArray[np.uint16] = (rounded >> np.uint32(16)).astype(np.uint16)
    return upper


def clamp_double(values: Array) -> Array:
    """float64 to float32, values beyond +-FLT_MAX (infinities too) clamped to it; NaN stays NaN. Section 5."""
    largest = float(np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        clamped: npt.NDArray[np.float32] = np.clip(values, -largest, largest).astype(np.float32)
    return clamped
