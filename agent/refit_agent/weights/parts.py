"""Small messages and tables of onnx.proto that graphs are made of."""

from __future__ import annotations

import struct

from refit_agent.weights.records import AttributeValue
from refit_agent.weights.wire import BYTES, FIXED32, VARINT, Wire, signed64

# AttributeProto: field number of the value -> (AttributeType, is a list)
VALUES = {
    2: (1, False),
    3: (2, False),
    4: (3, False),
    5: (4, False),
    6: (5, False),
    7: (6, True),
    8: (7, True),
    9: (8, True),
    10: (9, True),
    11: (10, True),
    14: (13, False),
    15: (14, True),
    22: (11, False),
    23: (12, True),
}
FIELD_OF = {type_: number for number, (type_, _) in VALUES.items()}

# What proto3 writers leave out because it equals the default.
DEFAULTS: dict[int, AttributeValue] = {1: 0.0, 2: 0, 3: b"", 6: (), 7: (), 8: (), 9: (), 10: (), 12: ()}


def read_floats(wire: Wire, kind: int, value: int, end: int, at: int) -> tuple[float, ...]:
    """The float32 values of one occurrence of ``AttributeProto.floats``, packed or not."""
    if kind == FIXED32:
        end = value + 4
    else:
        wire.expect(7, kind, BYTES, at)
    if (end - value) % 4:
        wire.fail(at, "a list of floats is not a multiple of 4 bytes")
    return struct.unpack_from(f"<{(end - value) // 4}f", wire.data, value)


def value_name(wire: Wire, start: int, stop: int) -> str:
    """The name in a ValueInfoProto."""
    name = ""
    for number, kind, value, end, at in wire.fields(start, stop):
        if number == 1:
            wire.expect(number, kind, BYTES, at)
            name = wire.text(value, end)
    return name


def read_opsets(wire: Wire, ranges: list[tuple[int, int]]) -> dict[str, int]:
    """OperatorSetIdProto messages -> {domain: version}."""
    opsets: dict[str, int] = {}
    for start, stop in ranges:
        domain, version = "", 0
        for number, kind, value, end, at in wire.fields(start, stop):
            if number == 1:
                wire.expect(number, kind, BYTES, at)
                domain = wire.text(value, end)
            elif number == 2:
                wire.expect(number, kind, VARINT, at)
                version = signed64(value)
        if opsets.get(domain, version) != version:
            wire.fail(start, f"the operator set {domain!r} has two versions")
        opsets[domain] = version
    return opsets
