"""Inputs for golden data: from files, or random ones that the same seed gives again, on every machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refit_agent.errors import SettingInvalid
from refit_agent.runtimes.base import Array
from refit_agent.weights.external import open_regular

#: Golden data ships with the app: more than this in one input is a slip of the pen.
_MOST_INPUT_BYTES = 1 << 30
#: ONNX Runtime's name of an element type, as in "tensor(float)" -> NumPy's.
_TYPES = {
    "float": "float32",
    "double": "float64",
    **{
        name: name
        for name in ["float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    },
}

#: A dimension: so many, or from so many to so many, of which the seed picks one.
Extent = int | tuple[int, int]
Range = tuple[float, float]


class ModelInput(NamedTuple):
    """An input as the model describes it: ``dtype`` None if NumPy has no such type (``kind`` names it), and for each
    dimension its extent, the name of a symbolic one, or None for one without a name."""

    name: str
    kind: str
    dtype: np.dtype[Any] | None
    dims: tuple[int | str | None, ...]


class Wish(NamedTuple):
    """What is wanted of the inputs, by name: given arrays, shapes, ranges of random values (both ends included)."""

    arrays: Mapping[str, Array]
    shapes: Mapping[str, Sequence[Extent]]
    ranges: Mapping[str, Range]


def model_inputs(described: Iterable[Any]) -> list[ModelInput]:
    """The inputs of an ONNX Runtime session, from its ``get_inputs()``."""
    found = []
    for one in described:
        kind = _TYPES.get(one.type.removeprefix("tensor(").removesuffix(")"))
        dims = tuple(d if isinstance(d, (int, str)) else None for d in one.shape)
        found.append(ModelInput(one.name, one.type, None if kind is None else np.dtype(kind), dims))
    return found


def load_array(path: str) -> Array:
    """The array in a ``.npy`` file, never unpickled. Raises SettingInvalid."""
    try:
        handle, _ = open_regular(path)  # a FIFO would hold the command, and Ctrl+C with it
        if handle is None:
            raise _wrong("the input file", path, "a regular file")
        with open(handle, "rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise _wrong("the input file", path, f"a file that can be read ({error.strerror or error})") from error
    except (ValueError, EOFError, MemoryError) as error:
        raise _wrong("the input file", path, f"a .npy array ({error})") from error


def make_inputs(inputs: Sequence[ModelInput], wish: Wish, seed: int) -> dict[str, Array]:
    """An array for every input: the given one, else a random one.

    Random are: floats from the standard normal distribution, integers 0 or 1 (what a larger one would mean, and
    whether the model takes it, nobody knows), booleans; within ``wish.ranges`` evenly. Dimensions
    that nothing gives are 1; equal names of symbolic dimensions mean equal extents.

    Raises:
        SettingInvalid: the wish does not fit the model.
    """
    if not 0 <= seed < 1 << 32:
        raise _wrong("the seed", seed, "a whole number from 0 to 4294967295")
    known = {one.name for one in inputs}
    for names in (wish.arrays, wish.shapes, wish.ranges):
        for name in names:
            if name not in known:
                listed = ", ".join(map(repr, sorted(known))) or "none"
                raise _wrong("an input", name, f"one of the model's inputs ({listed})")
    for one in inputs:
        if one.dtype is None:
            raise _wrong(f"the type of input {one.name!r}", one.kind, "one that a .npy file can hold")
        if one.name in wish.arrays and (one.name in wish.shapes or one.name in wish.ranges):
            raise _wrong("an input", one.name, "to be random: it is given as an array")
    shapes = _shapes(inputs, wish, seed)
    made = {}
    for one in inputs:
        given = wish.arrays.get(one.name)
        made[one.name] = (
            _random(one, shapes[one.name], wish.ranges.get(one.name), seed) if given is None else _fitting(one, given)
        )
    return made


def others(inputs: Sequence[ModelInput], arrays: Mapping[str, Array], wish: Wish, seed: int) -> dict[str, Array]:
    """Different inputs of the same shapes: random ones drawn anew, given ones with their values turned round."""
    changed = {}
    for one in inputs:
        array = arrays[one.name]
        if one.name in wish.arrays:
            changed[one.name] = np.ascontiguousarray(array.reshape(-1)[::-1].reshape(array.shape))
        else:
            changed[one.name] = _random(one, array.shape, wish.ranges.get(one.name), (seed + 1) % (1 << 32))
    return changed


def _shapes(inputs: Sequence[ModelInput], wish: Wish, seed: int) -> dict[str, tuple[int, ...]]:
    symbols: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    given: dict[str, Sequence[Extent]] = {**wish.shapes, **{name: a.shape for name, a in wish.arrays.items()}}
    for one in sorted(inputs, key=lambda one: one.name not in given):  # those that bind symbols first
        extents = given.get(one.name)
        if extents is not None and len(extents) != len(one.dims):
            raise _unfit(one, extents, f"of {len(one.dims)} dimensions")
        shape = []
        for axis, dim in enumerate(one.dims):
            extent = _extent(extents[axis], seed, one, axis) if extents is not None else None
            if isinstance(dim, int):
                bound: int | None = dim
            else:
                bound = symbols.get(dim) if dim is not None else None
            if extent is not None and bound is not None and extent != bound:
                raise _unfit(one, extents or (), f"with {bound} in dimension {axis}" + (f" ({dim})" if isinstance(dim, str) else ""))  # fmt: skip
            size = extent if extent is not None else 1 if bound is None else bound
            if isinstance(dim, str):
                symbols[dim] = size
            shape.append(size)
        shapes[one.name] = tuple(shape)
    return shapes


def _extent(wanted: Extent, seed: int, one: ModelInput, axis: int) -> int:
    if isinstance(wanted, int):
        return wanted
    low, high = wanted
    if not 0 <= low <= high:
        raise _wrong(f"dimension {axis} of {one.name!r}", f"{low}..{high}", "a range, the smaller number first")
    return int(_generator(seed, f"{one.name}/{axis}").randint(low, high + 1))


def _fitting(one: ModelInput, array: Array) -> Array:
    assert one.dtype is not None
    if array.dtype.newbyteorder("=") != one.dtype:
        raise _wrong(f"the type of the array for {one.name!r}", str(array.dtype), f"the model's, {one.dtype}")
    return np.ascontiguousarray(array, dtype=one.dtype).reshape(array.shape)


def _random(one: ModelInput, shape: tuple[int, ...], within: Range | None, seed: int) -> Array:
    assert one.dtype is not None
    if math.prod(shape) * one.dtype.itemsize > _MOST_INPUT_BYTES:
        raise _unfit(one, shape, f"of at most {_MOST_INPUT_BYTES >> 20} MiB")
    generator = _generator(seed, one.name)
    if one.dtype.kind == "f":
        if within is None:
            return generator.standard_normal(shape).astype(one.dtype)
        low, high = within
        if not (math.isfinite(low) and math.isfinite(high) and low <= high) or high - low == math.inf:
            raise _range_fault(one, within, "two finite numbers, the smaller one first")
        return generator.uniform(low, high, shape).astype(one.dtype)
    if one.dtype.kind == "b":
        if within is not None:
            raise _range_fault(one, within, "possible: it is a boolean")
        return generator.randint(0, 2, shape).astype(one.dtype)
    limits = np.iinfo(one.dtype)
    low, high = (0, 1) if within is None else within
    if not (low == int(low) and high == int(high) and limits.min <= low <= high <= limits.max):
        raise _range_fault(one, (low, high), f"two whole numbers that {one.dtype} holds, the smaller one first")
    return np.asarray(generator.randint(int(low), int(high) + 1, shape, dtype=one.dtype.type))


def _generator(seed: int, name: str) -> np.random.RandomState:
    """A stream of its own for every input, so that another input changes none of the rest. RandomState, since its
    numbers are promised to stay the same in later versions of NumPy."""
    return np.random.RandomState([seed, zlib.crc32(name.encode())])


def _unfit(one: ModelInput, extents: Sequence[Extent], wanted: str) -> SettingInvalid:
    shown = "x".join(str(e) if isinstance(e, int) else f"{e[0]}..{e[1]}" for e in extents) or "a scalar"
    return _wrong(f"the shape of {one.name!r}", shown, f"one {wanted}")


def _range_fault(one: ModelInput, within: Range, wanted: str) -> SettingInvalid:
    return _wrong(f"the range of {one.name!r}", f"{within[0]}:{within[1]}", wanted)


def _wrong(name: str, value: object, wanted: str) -> SettingInvalid:
    return SettingInvalid(name=name, value=value, wanted=wanted, hint="Correct it.")
