"""The inverse of `strip_onnx`: the stripped copy, with the weights of the model that it was made from.

If nobody changed the copy, the result is the original bit for bit, external data included. If a tool wrote it anew,
renamed its graph, added a node, what it made of the copy stays, and every weight comes back by its key: the names
of the tensor and of what holds it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from refit_agent.authoring.errors import ModelUnsupported, NotRestorable
from refit_agent.authoring.stripping import forms
from refit_agent.authoring.stripping.external_outputs import ExternalOutputs
from refit_agent.authoring.stripping.input_files import InputFiles
from refit_agent.authoring.stripping.marker import Marker, body_sha256, read_marker
from refit_agent.authoring.stripping.output_files import OutputFiles
from refit_agent.authoring.stripping.rule import Rule
from refit_agent.authoring.stripping.splice import (
    Change,
    Copy,
    Piece,
    copy_range,
    splice,
    tag_bytes,
    total_size,
    write_pieces,
)
from refit_agent.authoring.stripping.survey import Survey, Tensor, list_count, survey
from refit_agent.authoring.stripping.tensors import FLOATS, OnnxFile, Place, TensorWalk
from refit_agent.digest import hash_file
from refit_agent.weights.dtypes import RAW_DATA, TYPES
from refit_agent.weights.wire import BYTES, VARINT, Wire
from refit_agent.weights.wire_writer import varint

OnProgress = Callable[[int, int], None]
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RestoredModel:
    """What was made.

    Attributes:
        path: the model.
        sha256: its hash.
        identical: whether it is the original, bit for bit; else a tool had changed the stripped copy.
        restored: tensors that got their values back.
        missing: weights of the original that the stripped copy has no more, by label.
        external: files of external data beside the model, by location; those that were there already included.
    """

    path: str
    sha256: str
    identical: bool
    restored: int
    missing: tuple[str, ...]
    external: tuple[str, ...]


def restore_onnx(
    stripped: str | os.PathLike[str],
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> RestoredModel:
    """Write the stripped copy ``stripped`` with the weights of ``model`` to ``target``.

    External data go where the original has them, seen from ``target``'s folder, and never out of it. A file that is
    there already stays, if it is the right one; a file at ``target`` is replaced, with ``force``, once everything else
    is whole. Folders that are missing are made.

    Raises:
        NotRestorable: ``model`` is not what ``stripped`` was made from, or a weight of it has another type or shape.
        OnnxError: one of the two is not sound, or the external data are not there.
        ModelUnsupported: one of the two cannot be read.
        OutputInTheWay: there is a file at ``target``, and not ``force``.
        OutputRefused, OutputUnwritable: ``target`` or a file of external data cannot be written.
    """
    return _restore(os.fspath(stripped), os.fspath(model), os.fspath(target), force, on_progress)


def _restore(stripped: str, model: str, target: str, force: bool, on_progress: OnProgress | None) -> RestoredModel:
    with (
        InputFiles([stripped, model]) as inputs,
        OnnxFile(stripped) as bare,
        OnnxFile(model) as full,
        OutputFiles(inputs, target, force=force) as outputs,
    ):
        marker, place = read_marker(bare.wire, model)
        rule = Rule(marker.keep_below, marker.integers)
        found = survey(full, rule)
        inputs.add(found.external.values())
        outputs.require_place(target)
        work = 2 * full.wire.size + bare.wire.size + sum(inputs.size(path) for path in found.external.values())
        progress = _progress(on_progress, work)
        _require_original(stripped, model, marker, found, progress)
        merge = _Merge(bare, full, found, rule, inputs)
        changes = list(merge.changes())
        identical = body_sha256(inputs, stripped, place, progress) == marker.body_sha256
        if identical:
            pieces: list[Piece] = [Copy(model, 0, full.wire.size)]
        else:
            drop = Change((), *place, [])
            pieces = splice(bare.wire, sorted([*changes, drop], key=lambda change: change.at))
        external = ExternalOutputs(stripped, model, target, outputs, progress)
        for location, original in external.plan(found, marker.external).items():
            external.copy(inputs, found.external[location], location, original)
        digest = hashlib.sha256()
        write_pieces(outputs.create(target), pieces, inputs, digest, progress)
        if identical and digest.hexdigest() != marker.model.sha256:
            raise NotRestorable(path=stripped, model=model, detail="the result is not the original, bit for bit")
        inputs.require_unchanged()
        outputs.commit()
    return RestoredModel(
        path=target,
        sha256=digest.hexdigest(),
        identical=identical,
        restored=merge.restored,
        missing=tuple(t.place.label for key, t in found.tensors.items() if not t.stays and key not in merge.seen),
        external=tuple(found.external),
    )


def _require_original(
    stripped: str, model: str, marker: Marker, found: Survey, progress: Callable[[int], None]
) -> None:
    try:
        digest, size = hash_file(model, progress)
    except OSError as error:
        raise ModelUnsupported(path=model, detail=f"it cannot be read: {error.strerror or error}") from error
    if (digest, size) != (marker.model.sha256, marker.model.size):
        detail = f"it was made from a file with the SHA-256 {marker.model.sha256}, and this one has {digest}"
        raise NotRestorable(path=stripped, model=model, detail=detail)
    if len(found.external) != len(marker.external):
        detail = (
            f"the mark in it lists {len(marker.external)} files of external data, and there are {len(found.external)}"
        )
        raise NotRestorable(path=stripped, model=model, detail=detail)


def _progress(callback: OnProgress | None, total: int) -> Callable[[int], None]:
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done = min(done + count, total)
        if callback is not None:
            callback(done, total)

    return step


@dataclass(frozen=True, slots=True)
class _Head:
    """What a tensor of the stripped copy says of itself; ``raw`` is the range of its raw_data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    external: bool
    raw: tuple[int, int] | None


class _Merge:
    """Puts the original's tensors in place of the stripped ones.

    Attributes:
        seen: keys of the stripped copy's tensors.
        restored: how many were given values.
    """

    def __init__(self, bare: OnnxFile, full: OnnxFile, original: Survey, rule: Rule, inputs: InputFiles) -> None:
        self._bare = bare.wire
        self._full = full.wire
        self._original = original
        self._rule = rule
        self._inputs = inputs
        self.seen: set[tuple[str, ...]] = set()
        self.restored = 0

    def changes(self) -> Iterator[Change]:
        """One for each tensor that lost its values, or whose values lie in another file in one of the two."""
        for place in TensorWalk(self._bare).places():
            self.seen.add(place.key)
            head = self._head(place)
            tensor = self._original.tensors.get(place.key)
            if tensor is None:
                self._require_own_values(place, head)
            elif not tensor.stays or head.external or (tensor.external is not None and self._is_same(tensor, head)):
                self._require_same_type(tensor, place, head)
                content = self._content(tensor, place, head)
                self.restored += not tensor.stays
                lead = tag_bytes(self._bare, place.at) + varint(total_size(content))
                yield Change(place.frames, place.at, place.stop, [lead, *content])

    def _head(self, place: Place) -> _Head:
        wire = self._bare
        if place.number:
            return _Head("", "float32" if place.number == FLOATS else "int64", (list_count(wire, place),), False, None)
        name, dtype, external = "", "", False
        raw: tuple[int, int] | None = None
        shape: list[int] = []
        for number, kind, value, end, at in wire.fields(place.start, place.stop):
            if number == 1:
                shape.extend(wire.signed_varints(kind, value, end, at))
            elif number == 2:
                wire.expect(number, kind, VARINT, at)
                dtype = TYPES[value].name if value in TYPES else f"type {value}"
            elif number == 8:
                wire.expect(number, kind, BYTES, at)
                name = wire.text(value, end)
            elif number == RAW_DATA:
                wire.expect(number, kind, BYTES, at)
                raw = (value, end)
            elif number == forms.DATA_LOCATION:
                external = kind == VARINT and value == 1
        return _Head(name, dtype, tuple(shape), external, raw)

    def _require_own_values(self, place: Place, head: _Head) -> None:
        """A tensor that the original does not have, such as a tool may add, must not be a weight: its values would
        have been computed from zeros, or are zeros under another name."""
        if head.external:
            self._fail(f"{place.label!r} has its values in another file, and there is no such tensor")
        bits = next((dtype.bits for dtype in TYPES.values() if dtype.name == head.dtype), 0)
        if not self._rule.reason_to_stay(head.dtype, math.prod(head.shape) * bits // 8, place.role):
            self._fail(f"{place.label!r} is a weight of the stripped copy, and there is no such tensor")

    def _require_same_type(self, tensor: Tensor, place: Place, head: _Head) -> None:
        for what, ours, theirs in (("type", tensor.dtype, head.dtype), ("shape", tensor.shape, head.shape)):
            if ours != theirs:
                self._fail(f"{place.label!r} has the {what} {ours} there, and {theirs} in the stripped copy")
        if tensor.place.number != place.number:
            self._fail(f"{place.label!r} is a tensor in one of the two, and a list of numbers in the other")

    def _is_same(self, tensor: Tensor, head: _Head) -> bool:
        """Whether a tensor that kept its values, and was taken in from another file, still has them."""
        assert tensor.ref is not None
        if head.raw is None or head.raw[1] - head.raw[0] != tensor.nbytes:
            return False
        payload = tensor.ref.payload
        position = head.raw[0]
        for chunk in self._inputs.chunks(str(tensor.ref.file), payload.start, payload.stop, bytearray(_CHUNK_BYTES)):
            if chunk != self._bare.data[position : position + len(chunk)]:
                return False
            position += len(chunk)
        return True

    def _content(self, tensor: Tensor, place: Place, head: _Head) -> list[Piece]:
        """The original's message; where the tensor has another name inside, as after a tool has turned a Constant
        node into an initializer, the copy's message with the original's payload."""
        full = self._full
        out: list[Piece] = []
        if place.number or head.name == _inner_name(full, tensor.place):
            copy_range(out, full.path, tensor.place.start, tensor.place.stop)
            return out
        start = place.start
        for at, end in forms.payload_fields(self._bare, place.start, place.stop):
            copy_range(out, self._bare.path, start, at)
            start = end
        copy_range(out, self._bare.path, start, place.stop)
        for at, end in forms.payload_fields(full, tensor.place.start, tensor.place.stop):
            copy_range(out, full.path, at, end)
        return out

    def _fail(self, detail: str) -> None:
        raise NotRestorable(path=self._bare.path, model=self._full.path, detail=detail)


def _inner_name(wire: Wire, place: Place) -> str:
    for number, _, value, end, _ in wire.fields(place.start, place.stop):
        if number == 8:
            return wire.text(value, end)
    return ""
