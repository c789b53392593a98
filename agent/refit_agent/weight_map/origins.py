"""Kinds of origin that an engine weight can have, and the checks that make one a source.

An origin knows what it is made from; ``source`` joins it with a name, its prototype and the parser's
generation, and refuses whatever the parser would not have done. Types and counts are checked here,
before the first byte is set; nothing is computed until ``WeightSource.array``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from refit_agent.weight_map.casts import cast
from refit_agent.weight_map.families import Generation
from refit_agent.weight_map.parsed import Visit, Weight
from refit_agent.weight_map.sources import MisfitError, NoSourceError, Prototype, SeveralSourcesError, WeightSource
from refit_agent.weights.records import WeightRef

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

FOLD_PARAMETERS = frozenset({"float32", "float16", "bfloat16", "float64"})


class Origin(Protocol):
    """What an engine weight may have been in the parser."""

    @property
    def words(self) -> str:
        """It in words, for messages."""
        ...

    def source(self, name: str, prototype: Prototype, generation: Generation, /) -> WeightSource:
        """The source for engine weight ``name``.

        Raises:
            NoSourceError, MisfitError, SeveralSourcesError: it cannot be, and why.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor of the model as it is, or converted as the parser does at import."""

    weight: Weight

    @property
    def words(self) -> str:
        return f"the ONNX weight {self.weight.key!r}"

    def source(self, name: str, prototype: Prototype, generation: Generation, /) -> WeightSource:
        weight = self.weight
        types = generation.import_types(weight.dtype)
        if not types:
            raise NoSourceError(f"{self.words} is {weight.dtype}, which {generation.label} does not import")
        if weight.ref is None and weight.dtype == "int64" and generation.version < (9, 0):
            # Section 3: value_int becomes 0 and value_ints an empty list there.
            raise NoSourceError(f"{generation.label} misreads integers in the attributes of Constant nodes")
        if prototype.dtype is None:
            if len(types) > 1 or (not generation.known and weight.dtype in ("int64", "uint8")):
                raise NoSourceError(f"nobody has read how {generation.label} imports {weight.dtype}")
            dtype = types[0]
        elif prototype.dtype in types:
            dtype = prototype.dtype
        else:
            raise MisfitError(f"the plan wants {prototype.dtype}, and {self.words} is {weight.dtype}")
        _check_count(prototype, weight.count, self.words)
        key, made_of = (weight.key,), (weight.identity,)
        if dtype == weight.dtype:
            return WeightSource(name, "identity", key, dtype, weight.count, self.words, weight.array, made_of)
        words = f"{self.words} converted from {weight.dtype}"

        def make() -> npt.NDArray[Any]:
            return cast(weight.array(), weight.dtype, dtype)

        return WeightSource(name, "cast", key, dtype, weight.count, words, make, made_of)


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """Scale or bias of a BatchNormalization that the parser folds (section 2).

    ``node`` names the BatchNormalization for messages; ``parameters`` are scale, bias, mean and variance.
    """

    node: str
    parameters: tuple[Weight, Weight, Weight, Weight]
    epsilon: float
    role: str  # "scale" or "bias"

    @property
    def words(self) -> str:
        return f"the folded {self.role} of BatchNormalization {self.node!r}"

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(p.key for p in self.parameters)

    def source(self, name: str, prototype: Prototype, generation: Generation, /) -> WeightSource:
        dtype = self._dtype(prototype, generation)
        counts = {p.count for p in self.parameters}
        if len(counts) != 1:
            raise NoSourceError(f"the parameters of BatchNormalization {self.node!r} have different lengths")
        count = counts.pop()
        _check_count(prototype, count, self.words)

        def make() -> npt.NDArray[Any]:
            from refit_agent.weight_map.batch_norm import fold, widen

            values = [widen(p.array().reshape(-1), p.dtype) for p in self.parameters]
            scale, bias = fold(values[0], values[1], values[2], values[3], self.epsilon, dtype)
            return scale if self.role == "scale" else bias

        # Two nodes may share their tensors and differ in epsilon.
        made_of = (*(p.identity for p in self.parameters), self.epsilon)
        return WeightSource(name, "batch-norm-" + self.role, self.keys, dtype, count, self.words, make, made_of)

    def _dtype(self, prototype: Prototype, generation: Generation) -> str:
        for p in self.parameters:
            if p.dtype not in FOLD_PARAMETERS or not generation.import_types(p.dtype):
                raise NoSourceError(f"{p.key!r} is {p.dtype}, which {generation.label} does not fold")
        types = tuple(generation.import_types(p.dtype)[0] for p in self.parameters)
        only = generation.fold_type(types)
        dtype = prototype.dtype or only
        if dtype is None:
            raise SeveralSourcesError(
                f"{self.words} is {' or '.join(sorted({*types, 'float32'}))}, and the runtime does not say which"
            )
        if only is not None and dtype != only:
            raise MisfitError(f"the plan wants {dtype}, and {self.words} is {only}")
        if dtype == "float32":
            if "bfloat16" in types and not generation.widens_bfloat16():
                raise NoSourceError(f"nobody has read how {generation.label} folds bfloat16 into float32")
        elif set(types) != {dtype}:
            raise MisfitError(f"the plan wants {dtype}, and the parameters of {self.node!r} are {', '.join(types)}")
        return dtype


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """``count`` times one number that the parser makes up; ``dtypes`` are those it may have."""

    value: float
    count: int
    words: str
    dtypes: tuple[str, ...] = ("float32",)
    transform: str = "fill"

    def source(self, name: str, prototype: Prototype, _generation: Generation, /) -> WeightSource:
        if prototype.dtype is None and len(self.dtypes) > 1:
            raise SeveralSourcesError(f"{self.words} may be {' or '.join(self.dtypes)}")
        dtype = prototype.dtype or self.dtypes[0]
        if dtype not in self.dtypes:
            raise MisfitError(f"the plan wants {dtype}, and {self.words} is {' or '.join(self.dtypes)}")
        _check_count(prototype, self.count, self.words)
        return WeightSource(name, self.transform, (), dtype, self.count, self.words, lambda: self._make(dtype))

    def _make(self, dtype: str) -> npt.NDArray[Any]:
        import numpy as np

        from refit_agent.weight_map.batch_norm import narrow

        if dtype in ("float32", "float16", "bfloat16"):
            return narrow(np.full(self.count, self.value, np.float32), dtype)
        return np.full(self.count, self.value, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Unknown:
    """A constant of the parser whose value these rules do not know."""

    words: str

    def source(self, _name: str, _prototype: Prototype, _generation: Generation, /) -> WeightSource:
        raise NoSourceError(f"it can be {self.words}, whose value is not known here")


def of_batch_norm(visit: Visit) -> tuple[Folded, Folded] | None:
    """Scale and bias that the parser makes of a BatchNormalization node, or None if it does not fold it."""
    first, second, third, fourth = (visit.weight(i) for i in range(1, 5))
    if first is None or second is None or third is None or fourth is None:
        return None
    parameters = (first, second, third, fourth)
    epsilon = float32(visit.number("epsilon", 1e-5))
    return (
        Folded(visit.layer_name, parameters, epsilon, "scale"),
        Folded(visit.layer_name, parameters, epsilon, "bias"),
    )


def of_constant_of_shape(visit: Visit) -> Origin:
    """The value of a ConstantOfShape: its tensor of one element, or float32 zero (section 6)."""
    words = f"the value of ConstantOfShape {visit.layer_name!r}"
    value = visit.attributes.get("value")
    if isinstance(value, WeightRef):
        return _ShapeValue(Weight(visit.layer_name, visit.layer_name, value.dtype, value.count, False, 0, False, value))
    return Filled(0.0, 1, words, transform="constant-of-shape")


@dataclass(frozen=True, slots=True, eq=False)
class _ShapeValue:
    weight: Weight

    @property
    def words(self) -> str:
        return f"the value of ConstantOfShape {self.weight.name!r}"

    def source(self, name: str, prototype: Prototype, generation: Generation, /) -> WeightSource:
        plain = Stored(self.weight).source(name, prototype, generation)
        return WeightSource(name, "constant-of-shape", (), plain.dtype, plain.count, self.words, plain.make)


def float32(value: float) -> float:
    """``value`` as the nearest float32, which is what ONNX attributes hold."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _check_count(prototype: Prototype, count: int, words: str) -> None:
    if prototype.count is not None and prototype.count != count:
        raise MisfitError(f"the plan wants {prototype.count} elements, and {words} has {count}")
