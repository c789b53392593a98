"""A tensor without its values: as a reference to data that is not there, or with zeros in place of them.

Everything about a tensor that is not its payload is copied as it stands, fields that are not known included.
"""

from __future__ import annotations

from collections.abc import Iterator

from refit_agent.authoring.stripping.splice import Copy, Fill, Piece, copy_range, tag_bytes
from refit_agent.authoring.stripping.survey import Tensor, count_varints
from refit_agent.weights.dtypes import FIELD_NAMES, FIXED_ENTRY_BYTES, RAW_DATA, STRING_DATA, TYPES
from refit_agent.weights.wire import BYTES, VARINT, Wire
from refit_agent.weights.wire_writer import blob, integer, text, varint

EXTERNAL_DATA, DATA_LOCATION = 13, 14
#: Fields of TensorProto that hold values, or say where they are.
PAYLOAD_FIELDS = frozenset({*FIELD_NAMES, EXTERNAL_DATA, DATA_LOCATION})
_TYPES = {dtype.name: dtype for dtype in TYPES.values()}


def external_form(wire: Wire, tensor: Tensor, location: str, offset: int) -> list[Piece]:
    """The TensorProto with its payload at ``offset`` of the file ``location``, whatever form it had."""
    out = _without(wire, tensor, PAYLOAD_FIELDS)
    out.append(_entries(location, offset, tensor.nbytes) + integer(DATA_LOCATION, 1))
    return out


def moved_form(wire: Wire, tensor: Tensor, location: str, offset: int) -> list[Piece]:
    """The TensorProto of external data with another location."""
    out = _without(wire, tensor, frozenset({EXTERNAL_DATA}))
    out.append(_entries(location, offset, tensor.nbytes))
    return out


def inline_form(wire: Wire, tensor: Tensor, payload: Copy) -> list[Piece]:
    """The TensorProto of external data with its values in raw_data."""
    out = _without(wire, tensor, PAYLOAD_FIELDS)
    out.append(varint(RAW_DATA << 3 | BYTES) + varint(tensor.nbytes))
    copy_range(out, *payload)
    return out


def zeroed_form(wire: Wire, tensor: Tensor) -> list[Piece]:
    """The TensorProto, or the AttributeProto of a list of numbers, with zeros in the very fields that hold its values.

    As many entries as there were, packed where they were packed. In fields of varints a zero takes one byte: the
    lengths of the true values are gone too.
    """
    place = tensor.place
    fields = {place.number: 0} if place.number else {n: FIXED_ENTRY_BYTES.get(n, 0) for n in FIELD_NAMES}
    out: list[Piece] = []
    start = place.start
    entries = 0
    for number, kind, value, end, at in wire.fields(place.start, place.stop):
        if number not in fields or number == STRING_DATA:
            continue
        copy_range(out, wire.path, start, at)
        start = end
        tag = tag_bytes(wire, at)
        if kind == BYTES and (number == RAW_DATA or fields[number] or place.number == 7):
            copy_range(out, wire.path, at, value)
            _fill(out, b"\0", end - value)
        elif kind == BYTES:
            count = count_varints(wire, value, end)
            entries += count
            out.append(tag + varint(count))
            _fill(out, b"\0", count)
        else:
            entries += 1
            _fill(out, tag + bytes(1 if kind == VARINT else end - value), 1)
    copy_range(out, wire.path, start, place.stop)
    if tensor.ref is not None and _TYPES[tensor.dtype].field not in FIXED_ENTRY_BYTES and entries:
        needed = _TYPES[tensor.dtype].entry_count(tensor.ref.count)
        if entries != needed:
            wire.fail(place.start, f"{place.label!r} has {entries} entries where its shape needs {needed}")
    return out


def payload_fields(wire: Wire, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The ranges of the TensorProto's fields that hold its values or say where they are, with their tags."""
    for number, _, _, end, at in wire.fields(start, stop):
        if number in PAYLOAD_FIELDS:
            yield at, end


def _without(wire: Wire, tensor: Tensor, dropped: frozenset[int]) -> list[Piece]:
    out: list[Piece] = []
    start, stop = tensor.place.start, tensor.place.stop
    for number, _, _, end, at in wire.fields(start, stop):
        if number in dropped:
            copy_range(out, wire.path, start, at)
            start = end
    copy_range(out, wire.path, start, stop)
    return out


def _entries(location: str, offset: int, length: int) -> bytes:
    # The length is always given: TensorRT 8.6 takes the whole file without one.
    pairs = {"location": location, "offset": str(offset), "length": str(length)}
    return b"".join(blob(EXTERNAL_DATA, text(1, key) + text(2, value)) for key, value in pairs.items())


def _fill(out: list[Piece], pattern: bytes, count: int) -> None:
    last = out[-1] if out else b""
    if isinstance(last, Fill) and last.pattern == pattern:
        out[-1] = Fill(pattern, last.times + count)
    elif count:
        out.append(Fill(pattern, count))
