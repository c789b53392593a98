"""The element types of ONNX tensors: names, sizes and where a typed payload lives.

Source: ``TensorProto.DataType`` and the comments of the ``*_data`` fields in onnx.proto (1.23).
"""

from __future__ import annotations

from typing import NamedTuple

# Field numbers of TensorProto that can hold a payload.
FLOAT_DATA = 4
INT32_DATA = 5
STRING_DATA = 6
INT64_DATA = 7
RAW_DATA = 9
DOUBLE_DATA = 10
UINT64_DATA = 11

FIELD_NAMES = {
    FLOAT_DATA: "float_data",
    INT32_DATA: "int32_data",
    STRING_DATA: "string_data",
    INT64_DATA: "int64_data",
    RAW_DATA: "raw_data",
    DOUBLE_DATA: "double_data",
    UINT64_DATA: "uint64_data",
}

# Bytes of one entry in the fields of fixed-size entries; the other fields hold varints.
FIXED_ENTRY_BYTES = {FLOAT_DATA: 4, DOUBLE_DATA: 8}


class DataType(NamedTuple):
    """One element type.

    Attributes:
        code: the number in ``TensorProto.data_type``.
        name: lower-case name, as ``WeightRef.dtype`` gives it.
        bits: size of one element in bits; 0 for strings, which have no fixed size.
        field: number of the typed field that holds such elements when ``raw_data`` does not.
        storage: numpy type string of the array a caller gets; types that numpy lacks are unsigned
            integers of the same size, types below one byte are packed bytes.
    """

    code: int
    name: str
    bits: int
    field: int
    storage: str

    def byte_count(self, count: int) -> int:
        """Bytes that ``count`` elements take in ``raw_data``; the last byte may be partly used."""
        return (count * self.bits + 7) // 8

    def entry_count(self, count: int) -> int:
        """Entries that ``count`` elements take in the typed field."""
        if self.bits == 6:  # one 6-bit element per int32_data entry, unlike the other small types
            return count
        if self.bits in (2, 4):
            return self.byte_count(count)
        return count * 2 if self.name.startswith("complex") else count


TYPES: dict[int, DataType] = {
    code: DataType(code, name, bits, field, storage)
    for code, name, bits, field, storage in (
        (1, "float32", 32, FLOAT_DATA, "<f4"),
        (2, "uint8", 8, INT32_DATA, "|u1"),
        (3, "int8", 8, INT32_DATA, "|i1"),
        (4, "uint16", 16, INT32_DATA, "<u2"),
        (5, "int16", 16, INT32_DATA, "<i2"),
        (6, "int32", 32, INT32_DATA, "<i4"),
        (7, "int64", 64, INT64_DATA, "<i8"),
        (8, "string", 0, STRING_DATA, ""),
        (9, "bool", 8, INT32_DATA, "|b1"),
        (10, "float16", 16, INT32_DATA, "<f2"),
        (11, "float64", 64, DOUBLE_DATA, "<f8"),
        (12, "uint32", 32, UINT64_DATA, "<u4"),
        (13, "uint64", 64, UINT64_DATA, "<u8"),
        (14, "complex64", 64, FLOAT_DATA, "<c8"),
        (15, "complex128", 128, DOUBLE_DATA, "<c16"),
        (16, "bfloat16", 16, INT32_DATA, "<u2"),
        (17, "float8e4m3fn", 8, INT32_DATA, "|u1"),
        (18, "float8e4m3fnuz", 8, INT32_DATA, "|u1"),
        (19, "float8e5m2", 8, INT32_DATA, "|u1"),
        (20, "float8e5m2fnuz", 8, INT32_DATA, "|u1"),
        (21, "uint4", 4, INT32_DATA, "|u1"),
        (22, "int4", 4, INT32_DATA, "|u1"),
        (23, "float4e2m1", 4, INT32_DATA, "|u1"),
        (24, "float8e8m0", 8, INT32_DATA, "|u1"),
        (25, "uint2", 2, INT32_DATA, "|u1"),
        (26, "int2", 2, INT32_DATA, "|u1"),
        (27, "float6e2m3", 6, INT32_DATA, "|u1"),
        (28, "float6e3m2", 6, INT32_DATA, "|u1"),
    )
}

FLOAT32 = TYPES[1]
INT64 = TYPES[7]
STRING = TYPES[8]
