"""Which tensors lose their values.

Weights do: floating-point numbers of every width, complex ones, and the integers of 16 bits and less, which are
quantized weights. They do so from 64 bytes on: smaller ones are bounds, exponents, scales of a resize, which a
builder wants to know while it builds.

What stays, because a builder bakes it into the engine, where no refit can mend it: integers of 32 and 64 bits,
booleans and strings (shapes, indices, masks), whatever their size; the scales and zero points of Quantize and
DequantizeLinear, which TensorRT refuses unless they are positive; and tensors in the attributes of operators
other than Constant.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Default of `Rule.keep_below`: sixteen float32.
KEEP_BELOW_BYTES = 64
#: Integers below this size are shapes, axes and the like also where other integers are to lose their values.
KEEP_INTEGERS_BELOW_BYTES = 1024

_INTEGERS = frozenset({"int32", "uint32", "int64", "uint64", "bool"})


@dataclass(frozen=True, slots=True)
class Rule:
    """Attributes:
    keep_below: weights of fewer bytes stay.
    integers: whether integers and booleans of 1 KiB and more lose their values too.
    """

    keep_below: int = KEEP_BELOW_BYTES
    integers: bool = False

    def __post_init__(self) -> None:
        if self.keep_below < 0:
            raise ValueError(f"keep_below is {self.keep_below}, and no tensor has fewer than 0 bytes")

    def reason_to_stay(self, dtype: str, nbytes: int, role: str, *, quantizes: bool = False) -> str:
        """Why such a tensor keeps its values, or "" where it loses them.

        ``role`` is that of its `Place`; ``quantizes`` says whether a (De)QuantizeLinear uses it as scale or zero point.
        """
        if role in ("attribute", "indices"):
            return role
        if dtype == "string":
            return "string"
        if nbytes < max(self.keep_below, 1):
            return "small"
        if dtype in _INTEGERS:
            if not self.integers:
                return "integer"
            if nbytes < KEEP_INTEGERS_BELOW_BYTES:
                return "small"
        return "quantization" if quantizes else ""
