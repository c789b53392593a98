"""Payloads -> numpy arrays.

Contiguous little-endian bytes become views. Entries of typed fields (onnx.proto: ``float_data``,
``int32_data`` and so on) are decoded into a new array, in windows of bounded size, after their
number has been counted and compared with the shape: no count from the file ever sizes an allocation
that the file's own bytes do not pay for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from refit_agent.weights.dtypes import FIXED_ENTRY_BYTES, TYPES, DataType
from refit_agent.weights.wire import BYTES, Buffer, Wire

if TYPE_CHECKING:
    import numpy.typing as npt

    from refit_agent.weights.records import WeightRef

    Array = npt.NDArray[Any]
    Bytes = npt.NDArray[np.uint8]

# Bytes of varints that are decoded at a time; the temporaries take about 40 times as much.
_WINDOW = 1 << 16

_BY_NAME = {dtype.name: dtype for dtype in TYPES.values()}


def plain_array(data: Buffer, ref: WeightRef) -> Array:
    """The view of ``ref``'s contiguous payload in ``data``; read-only as ``data`` is."""
    dtype = _BY_NAME[ref.dtype]
    storage = np.dtype(dtype.storage)
    if ref.nbytes == 0:
        return _finish(np.empty(0, storage), dtype, ref)
    array = np.frombuffer(data, storage, ref.nbytes // storage.itemsize, ref.payload.start)
    return _finish(array, dtype, ref)


def fields_array(wire: Wire, ref: WeightRef) -> Array:
    """A new array with the entries of the payload's typed field.

    Raises:
        OnnxMalformed: a wrong number of entries, a broken varint, a value its type cannot have.
    """
    dtype = _BY_NAME[ref.dtype]
    needed = dtype.entry_count(ref.count)
    if dtype.field in FIXED_ENTRY_BYTES:
        array: Array = _fixed(wire, ref, needed, FIXED_ENTRY_BYTES[dtype.field]).view(dtype.storage)
        return _finish(array, dtype, ref)
    entries = _varints(wire, ref, dtype, needed)
    if dtype.bits == 6:
        return _finish(_pack6(entries), dtype, ref)
    return _finish(entries.view(dtype.storage), dtype, ref)


def _finish(array: Array, dtype: DataType, ref: WeightRef) -> Array:
    if dtype.bits >= 8:
        array = array.reshape(ref.shape)
    if array.flags.writeable:
        array.flags.writeable = False
    return array


def _chunks(wire: Wire, ref: WeightRef) -> Iterator[tuple[bool, int, int]]:
    """(is packed, value or start, stop) of each occurrence of the payload's field."""
    payload = ref.payload
    for number, kind, value, stop, _ in wire.fields(payload.start, payload.stop):
        if number == payload.number:
            yield kind == BYTES, value, stop


def _bytes(wire: Wire, start: int, stop: int) -> Bytes:
    return np.frombuffer(wire.data, np.uint8, stop - start, start)


def _fixed(wire: Wire, ref: WeightRef, needed: int, entry: int) -> Bytes:
    """Gather fixed-size entries; their number was checked when the reference was made."""
    out = np.empty(needed * entry, np.uint8)
    filled = 0
    for packed, start, stop in _chunks(wire, ref):
        size = stop - start if packed else entry
        if size:
            out[filled : filled + size] = _bytes(wire, start, start + size)
        filled += size
    return out


def _varints(wire: Wire, ref: WeightRef, dtype: DataType, needed: int) -> Array:
    """Decode varint entries to unsigned integers of the type's size, dropping higher bits as
    protobuf and ONNX do for negative numbers."""
    found = 0
    for packed, start, stop in _chunks(wire, ref):
        found += _count(wire, start, stop) if packed else 1
    if found != needed:
        wire.fail(ref.offset, f"the weight {ref.name!r} has {found} entries where its shape needs {needed}")
    out = np.empty(needed, f"<u{max(dtype.bits, 8) // 8}")
    filled = 0
    for packed, start, stop in _chunks(wire, ref):
        if not packed:
            values = np.array([start], np.uint64)
            _check_values(wire, ref, dtype, values)
            out[filled] = values.astype(out.dtype)[0]
            filled += 1
            continue
        while start < stop:
            values, start = _window(wire, start, stop)
            _check_values(wire, ref, dtype, values)
            out[filled : filled + len(values)] = values.astype(out.dtype)
            filled += len(values)
    return out


def _check_values(wire: Wire, ref: WeightRef, dtype: DataType, values: npt.NDArray[np.uint64]) -> None:
    limit = {"bool": 1, "float6e2m3": 63, "float6e3m2": 63}.get(dtype.name)
    if limit is not None and values.max() > limit:
        wire.fail(ref.offset, f"the {dtype.name} weight {ref.name!r} has an entry above {limit}")


def _count(wire: Wire, start: int, stop: int) -> int:
    """The varints in a packed chunk: each ends with the only byte below 0x80."""
    found = 0
    while start < stop:
        end = min(start + _WINDOW, stop)
        found += int(np.count_nonzero(_bytes(wire, start, end) < 0x80))
        start = end
    return found


def _window(wire: Wire, start: int, stop: int) -> tuple[npt.NDArray[np.uint64], int]:
    """Decode the whole varints of one window: (values, offset behind them)."""
    window = _bytes(wire, start, min(start + _WINDOW, stop))
    ends = np.flatnonzero(window < 0x80)
    if not len(ends):
        wire.fail(start, "a varint is cut off or longer than 10 bytes")
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10:
        wire.fail(start + int(starts[lengths.argmax()]), "a varint is longer than 10 bytes")
    values = (window[starts] & 0x7F).astype(np.uint64)
    for index in range(1, longest):
        mask = lengths > index
        septets = window[starts[mask] + index]
        if index == 9 and septets.max() > 1:
            wire.fail(start, "a varint does not fit into 64 bits")
        values[mask] |= (septets & 0x7F).astype(np.uint64) << np.uint64(7 * index)
    return values, start + int(ends[-1]) + 1


def _pack6(entries: Array) -> Bytes:
    """One 6-bit element per byte -> ONNX's stream of 4 elements in 3 bytes, lowest bits first."""
    out = np.empty((len(entries) * 6 + 7) // 8, np.uint8)
    step = 4 * 4096
    for start in range(0, len(entries), step):
        bits = np.unpackbits(entries[start : start + step, None], axis=1, count=6, bitorder="little")
        packed = np.packbits(bits.ravel(), bitorder="little")
        out[start * 6 // 8 : start * 6 // 8 + len(packed)] = packed
    return out
