"""Weights while a model is rewritten: a type, a shape, and a way to make the array when its turn comes.

A model may be larger than the memory, so the graph that is worked on holds no weights. They are made
one by one while they are written, most of them as views into the memory map of the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refit_agent.weights.dtypes import TYPES, DataType

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

BY_NAME: dict[str, DataType] = {dtype.name: dtype for dtype in TYPES.values()}
#: The types that a Conv or a BatchNormalization computes in.
FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
_LARGEST = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127"), "float32": float.fromhex("0x1.fffffep127")}


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One weight.

    ``dtype`` is named as in ``WeightRef.dtype``; ``make`` gives the array in its storage form (see
    ``WeightRef.array``) each time it is called: a read-only view into the source, or a new array.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].byte_count(self.count)

    def doubles(self) -> Doubles:
        """The numbers as a new float64 array, exactly; for the types in FLOATS."""
        array = self.make()
        if self.dtype == "bfloat16":
            array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        numbers: Doubles = array.astype(np.float64)
        return numbers


def of_array(array: Array, dtype: str) -> Value:
    """The weight that a small array in its storage form is; keeps the array."""
    return Value(dtype, array.shape, lambda: array)


def of_bytes(raw: bytes, dtype: str, shape: tuple[int, ...]) -> Value:
    """The weight whose ``raw_data`` is ``raw``."""
    array: Array = np.frombuffer(raw, BY_NAME[dtype].storage)
    return Value(dtype, shape, lambda: array.reshape(shape) if BY_NAME[dtype].bits >= 8 else array)


def rounded(numbers: Doubles, dtype: str) -> Array:
    """``numbers`` in the storage form of ``dtype`` (one of FLOATS): each rounded once, to nearest, ties to even."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            # 8 significant bits, and 2**-133 below the smallest normal number; float32 then holds it exactly.
            _, exponent = np.frexp(numbers)
            unit = np.ldexp(1.0, np.maximum(exponent, -125) - 8)
            patterns = np.asarray(np.rint(numbers / unit) * unit, np.float32).view(np.uint32)
            upper: Array = (patterns >> np.uint32(16)).astype(np.uint16)
            return upper
        narrow: Array = numbers.astype(BY_NAME[dtype].storage)
        return narrow


def fits(numbers: Doubles, dtype: str) -> bool:
    """Whether all numbers are finite, and stay so when they are rounded to ``dtype``."""
    if not np.isfinite(numbers).all():
        return False
    largest = _LARGEST.get(dtype)
    return largest is None or numbers.size == 0 or float(np.abs(numbers).max()) <= largest


def raw_bytes(array: Array) -> memoryview:
    """The bytes of ``array`` in C order, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
