"""Write protobuf messages of the ONNX schema (onnx.proto) without the onnx package: just the fields we need."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from refit_agent.weights.dtypes import TYPES

VARINT, BYTES, FIXED32 = 0, 2, 5
_CODES = {dtype.name: code for code, dtype in TYPES.items()}


def varint(value: int) -> bytes:
    """A non-negative integer in protobuf's base-128 form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """A varint field; negative values as 64-bit two's complement."""
    return varint(number << 3 | VARINT) + varint(value & 0xFFFFFFFFFFFFFFFF)


def blob(number: int, data: bytes) -> bytes:
    """A length-delimited field: bytes, a string or a message."""
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def text(number: int, value: str) -> bytes:
    """A string field."""
    return blob(number, value.encode())


def tensor_head(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """A TensorProto's dims, data_type and name; ``dtype`` as in ``WeightRef.dtype``."""
    return b"".join(integer(1, d) for d in shape) + integer(2, _CODES[dtype]) + text(8, name)


def tensor(name: str, dtype: str, shape: Sequence[int], raw: bytes) -> bytes:
    """A TensorProto with its data inside (raw_data, little-endian)."""
    return tensor_head(name, dtype, shape) + blob(9, raw)


def external_tensor(name: str, dtype: str, shape: Sequence[int], location: str, offset: int, length: int) -> bytes:
    """A TensorProto whose data lies in another file."""
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    pairs = b"".join(blob(13, text(1, key) + text(2, value)) for key, value in entries.items())
    return tensor_head(name, dtype, shape) + pairs + integer(14, 1)


_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7


def attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    """An AttributeProto with a float, an int or a list of ints."""
    if isinstance(value, float):
        return text(1, name) + varint(2 << 3 | FIXED32) + struct.pack("<f", value) + integer(20, _FLOAT)
    if isinstance(value, int):
        return text(1, name) + integer(3, value) + integer(20, _INT)
    return text(1, name) + b"".join(integer(8, v) for v in value) + integer(20, _INTS)


def text_attribute(name: str, value: str) -> bytes:
    """An AttributeProto with a string."""
    return text(1, name) + text(4, value) + integer(20, _STRING)


def node(
    op_type: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: float | int | Sequence[int]
) -> bytes:
    """A NodeProto of the standard operator set."""
    out = b"".join(text(1, i) for i in inputs) + b"".join(text(2, o) for o in outputs) + text(4, op_type)
    return out + b"".join(blob(5, attribute(k, v)) for k, v in attributes.items())


def value_info(name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto of a tensor; a string in ``shape`` is a symbolic dimension."""
    dims = b"".join(blob(1, text(2, d) if isinstance(d, str) else integer(1, d)) for d in shape)
    return text(1, name) + blob(2, blob(1, integer(1, _CODES[dtype]) + blob(2, dims)))
