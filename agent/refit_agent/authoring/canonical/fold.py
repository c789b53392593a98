"""The arithmetic of folding a BatchNormalization: float64 inside, each result rounded once to the tensor's type.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias  =  x * factor + shift

For float32 the fold costs what any other order of float32 operations does. For float16 and bfloat16
the folded weights are rounded to that type: up to 2**-11 and 2**-8 of each, as large as the rounding
that the weights had before; factors beyond the type's range are not folded at all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refit_agent.authoring.canonical.values import Array, Doubles, Value, fits, rounded


class Affine(NamedTuple):
    """What a BatchNormalization does to each channel; both of shape [channels]."""

    factor: Doubles
    shift: Doubles


def affine(scale: Value, bias: Value, mean: Value, variance: Value, epsilon: float) -> Affine | None:
    """The channels' factors and shifts, or None where a number is not finite."""
    with np.errstate(all="ignore"):
        factor = scale.doubles() / np.sqrt(variance.doubles() + epsilon)
        shift = bias.doubles() - mean.doubles() * factor
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return None
    return Affine(factor, shift)


class Kernel(NamedTuple):
    """The weight of a Conv or ConvTranspose, and where its output channels are.

    A Conv has [out, in / group, ...], a ConvTranspose [in, out / group, ...], whose channel of
    output g * (out / group) + j is column j of the rows of group g.
    """

    value: Value
    transposed: bool
    group: int

    @property
    def channels(self) -> int:
        """Output channels; 0 if the shape makes no sense."""
        shape = self.value.shape
        if len(shape) < 3 or self.group < 1 or shape[0] % self.group:
            return 0
        return shape[1] * self.group if self.transposed else shape[0]

    def times(self, factor: Doubles) -> Doubles:
        """The weight with each output channel multiplied by its factor, in the weight's shape."""
        numbers = self.value.doubles()
        shape = self.value.shape
        if not self.transposed:
            numbers *= factor.reshape(-1, *[1] * (len(shape) - 1))
            return numbers
        grouped = numbers.reshape(self.group, shape[0] // self.group, *shape[1:])
        grouped *= factor.reshape(self.group, 1, shape[1], *[1] * (len(shape) - 2))
        return grouped.reshape(shape)


def folded_kernel(kernel: Kernel, factor: Doubles) -> Value | None:
    """The weight that has the factors in it, made when it is written; None if its type cannot hold it."""
    dtype = kernel.value.dtype
    if not fits(kernel.times(factor), dtype):
        return None

    def make() -> Array:
        return rounded(kernel.times(factor), dtype)

    return Value(dtype, kernel.value.shape, make)


def folded_bias(bias: Value | None, change: Affine, dtype: str) -> Value | None:
    """The bias behind a folded weight, of shape [channels]; None if ``dtype`` cannot hold it."""
    start = np.zeros_like(change.shift) if bias is None else bias.doubles().reshape(-1)
    with np.errstate(all="ignore"):
        numbers = start * change.factor + change.shift
    return _vector(numbers, dtype, 1)


def channel_vectors(change: Affine, dtype: str, rank: int) -> tuple[Value, Value] | None:
    """Factors and shifts in shapes that broadcast over [batch, channels, ...] of that rank; None if they do not fit."""
    factor = _vector(change.factor, dtype, rank - 1)
    shift = _vector(change.shift, dtype, rank - 1)
    return None if factor is None or shift is None else (factor, shift)


def _vector(numbers: Doubles, dtype: str, rank: int) -> Value | None:
    if not fits(numbers, dtype):
        return None
    array = rounded(numbers, dtype).reshape(-1, *[1] * (rank - 1))
    return Value(dtype, array.shape, lambda: array)
