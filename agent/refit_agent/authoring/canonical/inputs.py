"""Random inputs for a model about which nothing is known but its declared inputs.

Dimensions that the model leaves open get small numbers, the same for the same symbol; integers are
small and not negative, since most are indices into something. What a model takes cannot be seen
from outside, so several guesses are made, and the first with which the model runs is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from refit_agent.authoring.canonical.values import Array, rounded

#: Numbers for open dimensions other than the first: some models take multiples of a stride only.
_SIZES = (8, 2, 1, 16, 32, 64, 224)
#: For an open first dimension, which is nearly always the batch.
_BATCHES = (2, 1)
#: Integers are below these: token types, for one, are only 0 and 1.
_LIMITS = (8, 2, 1)
_TYPES = {
    "tensor(float)": "<f4",
    "tensor(double)": "<f8",
    "tensor(float16)": "<f2",
    "tensor(int64)": "<i8",
    "tensor(int32)": "<i4",
    "tensor(int16)": "<i2",
    "tensor(int8)": "|i1",
    "tensor(uint8)": "|u1",
    "tensor(uint16)": "<u2",
    "tensor(uint32)": "<u4",
    "tensor(uint64)": "<u8",
    "tensor(bool)": "|b1",
}


class DeclaredInput(Protocol):
    """An input as ONNX Runtime describes it; open dimensions are strings or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def unfit(inputs: Sequence[DeclaredInput]) -> str:
    """Why no random inputs can be made for these, or ""."""
    for declared in inputs:
        if declared.type not in _TYPES:
            return f"no random input of type {declared.type} can be made for {declared.name!r}"
    return ""


def contradiction(inputs: Sequence[DeclaredInput], shapes: Mapping[str, Sequence[int]]) -> str:
    """Why the inputs cannot have the shapes that the caller gives, or ""."""
    unknown = sorted(set(shapes) - {declared.name for declared in inputs})
    if unknown:
        return f"the model has no input {unknown[0]!r}"
    for declared in inputs:
        given = shapes.get(declared.name)
        if given is not None and not _agrees(declared.shape, given):
            return f"the input {declared.name!r} has the shape {list(declared.shape)}, which {list(given)} does not fit"
    return ""


def guesses(
    inputs: Sequence[DeclaredInput], shapes: Mapping[str, Sequence[int]], seed: int
) -> Iterator[dict[str, Array]]:
    """Inputs to try, one set after the other; the same seed gives the same. ``shapes`` are those that are known."""
    seen: set[tuple[tuple[tuple[int, ...], ...], int]] = set()
    limits = _LIMITS if any("int" in declared.type for declared in inputs) else _LIMITS[:1]
    for size in _SIZES:
        for batch in _BATCHES:
            found = tuple(_shapes(inputs, shapes, batch, size))
            for limit in limits:
                if (found, limit) not in seen:
                    seen.add((found, limit))
                    random = np.random.default_rng(seed)
                    yield {
                        declared.name: _array(random, declared.type, shape, limit)
                        for declared, shape in zip(inputs, found, strict=True)
                    }


def _agrees(declared: Sequence[int | str | None], given: Sequence[int]) -> bool:
    if len(declared) != len(given):
        return not declared  # ONNX Runtime gives an empty list for a tensor of unknown rank, too
    return all(not isinstance(d, int) or d == g for d, g in zip(declared, given, strict=True))


def _shapes(
    inputs: Sequence[DeclaredInput], shapes: Mapping[str, Sequence[int]], batch: int, size: int
) -> Iterator[tuple[int, ...]]:
    symbols: dict[str, int] = {}
    for declared in inputs:
        given = shapes.get(declared.name)
        if given is not None and len(given) == len(declared.shape):
            symbols.update({d: g for d, g in zip(declared.shape, given, strict=True) if isinstance(d, str)})
    for declared in inputs:
        if declared.shape and isinstance(declared.shape[0], str):
            symbols.setdefault(declared.shape[0], batch)
    for declared in inputs:
        given = shapes.get(declared.name)
        if given is not None:
            yield tuple(given)
            continue
        yield tuple(
            d if isinstance(d, int) else symbols.get(d or "", batch if position == 0 else size)
            for position, d in enumerate(declared.shape)
        )


def _array(random: np.random.Generator, type_: str, shape: tuple[int, ...], limit: int) -> Array:
    dtype = np.dtype(_TYPES[type_])
    if dtype.kind == "f":
        return rounded(random.standard_normal(shape), "float64").astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    # images are bytes of all values
    return random.integers(0, 256 if dtype == np.uint8 else limit, shape).astype(dtype)
