"""TensorProto and SparseTensorProto -> WeightRef: everything about a tensor but its values.

Field numbers: onnx.proto (TensorProto, SparseTensorProto, StringStringEntryProto).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from refit_agent.weights.dtypes import (
    FIELD_NAMES,
    FIXED_ENTRY_BYTES,
    RAW_DATA,
    STRING,
    STRING_DATA,
    TYPES,
    DataType,
)
from refit_agent.weights.external import ExternalFiles
from refit_agent.weights.records import ArraySource, Payload, WeightRef
from refit_agent.weights.scan import MAX_RANK
from refit_agent.weights.wire import BYTES, FIXED32, FIXED64, VARINT, Wire

_MAX_BYTES = (1 << 63) - 1


@dataclass(slots=True)
class _Typed:
    """What one typed field of a tensor holds."""

    at: int
    packed_bytes: int = 0
    chunks: int = 0
    unpacked: int = 0
    start: int = 0
    stop: int = 0


@dataclass(slots=True)
class _Tensor:
    """A TensorProto as it stands in the file."""

    start: int
    stop: int
    dims: list[int] = field(default_factory=list)
    data_type: int | None = None
    type_at: int = 0
    name: str | None = None
    raw: tuple[int, int] | None = None
    typed: dict[int, _Typed] = field(default_factory=dict)
    location: int | None = None
    external: dict[str, str] = field(default_factory=dict)
    external_at: int = 0


class TensorReader:
    """Makes WeightRefs, one per message of the file; the same message gives the same object.

    Not thread-safe: the caller holds a lock.
    """

    def __init__(self, wire: Wire, file: Path, external: ExternalFiles, source: ArraySource) -> None:
        self.wire = wire
        self.file = file
        self.refs: dict[int, WeightRef] = {}
        self._external = external
        self._source = source

    def tensor(self, start: int, stop: int, scope: str, kind: str, name: str | None = None) -> WeightRef:
        """The TensorProto in ``[start, stop)``; ``name`` overrides its own.

        Raises:
            OnnxMalformed, OnnxUnsafePath, OnnxExternalMissing
        """
        known = self.refs.get(start)
        if known is None:
            known = self.refs[start] = self._make(self._read(start, stop), scope, kind, name)
        return known

    def sparse(self, start: int, stop: int, scope: str, name: str | None = None) -> WeightRef:
        """The SparseTensorProto in ``[start, stop)``, under the name of its values unless given."""
        known = self.refs.get(start)
        if known is not None:
            return known
        wire = self.wire
        values: WeightRef | None = None
        dims: list[int] = []
        for number, kind, value, end, at in wire.fields(start, stop):
            if number == 1:
                wire.expect(number, kind, BYTES, at)
                if values is not None:
                    wire.fail(at, "a sparse tensor has two sets of values")
                values = self.tensor(value, end, scope, "sparse")
            elif number == 3:
                self._dims(dims, kind, value, end, at)
        if values is None:
            wire.fail(start, "a sparse tensor has no values")
        count = self._count(dims, TYPES[2], start)
        ref = self.refs[start] = self.make(
            name=values.name if name is None else name,
            scope=scope,
            kind="sparse",
            dtype=values.dtype,
            shape=tuple(dims),
            count=count,
            nbytes=values.nbytes,
            payload=Payload("none", values.offset, values.offset),
        )
        return ref

    def make(
        self,
        *,
        name: str,
        scope: str,
        kind: str,
        dtype: str,
        shape: tuple[int, ...],
        count: int,
        nbytes: int,
        payload: Payload,
        file: Path | None = None,
        offset: int | None = None,
    ) -> WeightRef:
        """A reference without a key yet."""
        return WeightRef(
            name=name,
            key="",
            scope=scope,
            kind=kind,
            file=file or self.file,
            offset=payload.start if offset is None else offset,
            nbytes=nbytes,
            dtype=dtype,
            shape=shape,
            count=count,
            is_view=payload.form == "plain" and nbytes > 0,
            payload=payload,
            source=self._source,
        )

    def _read(self, start: int, stop: int) -> _Tensor:
        wire = self.wire
        tensor = _Tensor(start, stop)
        for number, kind, value, end, at in wire.fields(start, stop):
            if number == RAW_DATA:
                wire.expect(number, kind, BYTES, at)
                if tensor.raw is not None:
                    wire.fail(at, "a tensor has raw_data twice")
                tensor.raw = (value, end)
            elif number == 1:
                self._dims(tensor.dims, kind, value, end, at)
            elif number == 2:
                wire.expect(number, kind, VARINT, at)
                if tensor.data_type is not None:
                    wire.fail(at, "a tensor has two data types")
                tensor.data_type = value
                tensor.type_at = at
            elif number == 8:
                wire.expect(number, kind, BYTES, at)
                if tensor.name is not None:
                    wire.fail(at, "a tensor has two names")
                tensor.name = wire.text(value, end)
            elif number in FIELD_NAMES:
                self._typed(tensor, number, kind, value, end, at)
            elif number == 3:
                wire.fail(at, "a tensor is split into segments, which nothing writes or reads")
            elif number == 13:
                wire.expect(number, kind, BYTES, at)
                tensor.external_at = tensor.external_at or at
                self._entry(tensor.external, value, end, at)
            elif number == 14:
                wire.expect(number, kind, VARINT, at)
                if tensor.location is not None or value > 1:
                    wire.fail(at, "a tensor's data_location is there twice or unknown")
                tensor.location = value
        return tensor

    def _typed(self, tensor: _Tensor, number: int, kind: int, value: int, end: int, at: int) -> None:
        wire = self.wire
        entry = FIXED_ENTRY_BYTES.get(number, 0)
        if kind == BYTES and number != STRING_DATA:
            if value == end:
                return  # an empty packed list: no entries at all
            if entry and (end - value) % entry:
                wire.fail(at, f"{FIELD_NAMES[number]} has {end - value} bytes, not a multiple of {entry}")
            typed = tensor.typed.setdefault(number, _Typed(at))
            if not typed.chunks:
                typed.start, typed.stop = value, end
            typed.chunks += 1
            typed.packed_bytes += end - value
            return
        wire.expect(number, kind, BYTES if number == STRING_DATA else {4: FIXED32, 8: FIXED64, 0: VARINT}[entry], at)
        typed = tensor.typed.setdefault(number, _Typed(at))
        if not typed.chunks and not typed.unpacked:
            typed.start = at if kind == VARINT else value
        typed.unpacked += 1
        if number == STRING_DATA:
            typed.packed_bytes += end - value

    def _dims(self, dims: list[int], kind: int, value: int, end: int, at: int) -> None:
        for dim in self.wire.signed_varints(kind, value, end, at):
            if dim < 0:
                self.wire.fail(at, f"a tensor has the dimension {dim}")
            dims.append(dim)
            if len(dims) > MAX_RANK:
                self.wire.fail(at, f"a tensor has more than {MAX_RANK} dimensions")

    def _count(self, dims: list[int], dtype: DataType, at: int) -> int:
        """Elements of the shape; refuses shapes that no address space holds, also beside a 0."""
        volume = 1
        for dim in dims:
            volume *= dim or 1
        if volume * max(dtype.bits, 8) // 8 > _MAX_BYTES:
            self.wire.fail(at, f"a tensor's dimensions {dims} are more than 2**63 bytes")
        return 0 if 0 in dims else volume

    def _entry(self, entries: dict[str, str], start: int, stop: int, at: int) -> None:
        """Add one StringStringEntryProto."""
        wire = self.wire
        pair = {1: "", 2: ""}
        for number, kind, value, end, place in wire.fields(start, stop):
            if number in pair:
                wire.expect(number, kind, BYTES, place)
                pair[number] = wire.text(value, end)
        if pair[1] in entries:
            wire.fail(at, f"external_data has the key {pair[1]!r} twice")
        entries[pair[1]] = pair[2]

    def _make(self, tensor: _Tensor, scope: str, kind: str, name: str | None) -> WeightRef:
        wire = self.wire
        if tensor.data_type is None:
            wire.fail(tensor.start, "a tensor has no data type")
        dtype = TYPES.get(tensor.data_type)
        if dtype is None:
            wire.fail(tensor.type_at, f"a tensor has the unknown data type {tensor.data_type}")
        count = self._count(tensor.dims, dtype, tensor.start)
        file = None
        nbytes = dtype.byte_count(count)
        is_external = tensor.location == 1
        encodings = [FIELD_NAMES[number] for number in tensor.typed]
        if tensor.raw is not None and (encodings or tensor.raw[0] != tensor.raw[1]):
            encodings.append("raw_data")
        if is_external:
            encodings.append("external data")
        if len(encodings) > 1:
            wire.fail(tensor.start, f"a tensor has its payload several times: {', '.join(encodings)}")
        if is_external:
            payload, file = self._external_payload(tensor, dtype, nbytes)
        elif tensor.typed:
            payload, nbytes = self._typed_payload(tensor, dtype, count, nbytes)
        else:
            start, stop = tensor.raw or (tensor.stop, tensor.stop)
            if dtype is STRING and stop != start:
                wire.fail(start, "a string tensor has raw_data")
            if stop - start != nbytes or (dtype is STRING and count):
                wire.fail(
                    start, f"a {dtype.name} tensor of {tensor.dims} has {stop - start} bytes in place of {nbytes}"
                )
            payload = Payload("plain", start, stop)
        if dtype is STRING:
            payload = Payload("none", payload.start, payload.stop)
        return self.make(
            name=(tensor.name or "") if name is None else name,
            scope=scope,
            kind=kind,
            dtype=dtype.name,
            shape=tuple(tensor.dims),
            count=count,
            nbytes=nbytes,
            payload=payload,
            file=file,
            offset=payload.start if payload.form != "fields" else tensor.typed[payload.number].start,
        )

    def _typed_payload(self, tensor: _Tensor, dtype: DataType, count: int, nbytes: int) -> tuple[Payload, int]:
        """The payload in a typed field, and its decoded size."""
        wire = self.wire
        ((number, typed),) = tensor.typed.items()
        label = FIELD_NAMES[number]
        if number != dtype.field:
            wire.fail(typed.at, f"a {dtype.name} tensor has its payload in {label}")
        needed = dtype.entry_count(count)
        entry = FIXED_ENTRY_BYTES.get(number, 0)
        if number == STRING_DATA:
            if typed.unpacked != needed:
                wire.fail(typed.at, f"{label} has {typed.unpacked} entries where the shape needs {needed}")
            return Payload("none", typed.start, typed.start), typed.packed_bytes
        if entry:
            entries = typed.packed_bytes // entry + typed.unpacked
            if entries != needed:
                wire.fail(typed.at, f"{label} has {entries} entries where the shape needs {needed}")
            if typed.chunks == 1 and not typed.unpacked:
                return Payload("plain", typed.start, typed.stop), nbytes
        else:
            # exact only once decoded: a varint takes 1 to 10 bytes
            packed = needed - typed.unpacked
            if not packed <= typed.packed_bytes <= 10 * packed:
                wire.fail(typed.at, f"{label} cannot hold the {needed} entries that the shape needs")
        return Payload("fields", tensor.start, tensor.stop, number), nbytes

    def _external_payload(self, tensor: _Tensor, dtype: DataType, nbytes: int) -> tuple[Payload, Path]:
        wire = self.wire
        at = tensor.external_at or tensor.start
        if dtype is STRING:
            wire.fail(at, "a string tensor has external data")
        if "location" not in tensor.external:
            wire.fail(at, "external data has no location")
        start = self._number(tensor, "offset", at) or 0
        length = self._number(tensor, "length", at)
        if length is not None and length != nbytes:
            wire.fail(at, f"external data has length {length}, and a {dtype.name} tensor of {tensor.dims} has {nbytes}")
        location = tensor.external["location"]
        found = self._external.find(location, at)
        stop = start + nbytes
        if stop > found.size:
            wire.fail(at, f"bytes {start} to {stop} of {location!r} are wanted, and it has {found.size}")
        return Payload("plain", start, stop, external=location), found.path

    def _number(self, tensor: _Tensor, key: str, at: int) -> int | None:
        text = tensor.external.get(key)
        if text is None:
            return None
        # int() alone would take signs, spaces, underscores and other scripts' digits
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            self.wire.fail(at, f"external data has the {key} {text[:40]!r}")
        return int(text)
