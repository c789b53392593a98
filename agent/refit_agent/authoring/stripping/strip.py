"""A copy of an ONNX file without its weights, of any size, in little memory; no value is decoded.

Two forms:

- the small one: every weight becomes a reference to external data in a file that is not written,
  ``<name of the copy>.zeros``. The graph is all there is to send. Whoever makes a file of that name, with as many
  zero bytes as `StrippedModel.zeros_size` says, can load the copy with any tool.
- zeros: an ordinary ONNX model in which every weight is zero and stands in the same field as in the original:
  raw_data stays raw_data, external data stay external. TensorRT 8.6 names some weights by what it had to convert
  or to load before them, so an engine built from another form could ask for other names. Zeros are holes in the
  file where the disk has such.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from refit_agent.authoring.errors import ModelUnsupported, OutputRefused
from refit_agent.authoring.stripping import forms
from refit_agent.authoring.stripping.input_files import InputFiles
from refit_agent.authoring.stripping.marker import VERSION, Marker, OriginalFile, encode_marker, marker_ranges
from refit_agent.authoring.stripping.output_files import OutputFiles
from refit_agent.authoring.stripping.rule import KEEP_BELOW_BYTES, Rule
from refit_agent.authoring.stripping.splice import (
    Change,
    Copy,
    Fill,
    Piece,
    splice,
    tag_bytes,
    total_size,
    write_pieces,
)
from refit_agent.authoring.stripping.survey import Survey, Tensor, survey
from refit_agent.authoring.stripping.tensors import OnnxFile
from refit_agent.hash_files import hash_files
from refit_agent.weights.external import unsafe_reason
from refit_agent.weights.wire_writer import varint

#: Tools map external data in place where it begins on a page. No two weights share a range: TensorRT from 10.13
#: on maps the file, and does not give one address two names.
_ALIGNMENT = 4096
#: Called with the bytes done and the bytes to do; what it raises ends the work, and nothing is left of it.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StrippedModel:
    """What was made.

    Attributes:
        path: the copy.
        size: its bytes.
        stripped: the tensors that lost their values, in file order.
        kept: those that kept them; ``stays`` says why.
        zeros_location: the file, relative to the copy's folder, that the copy names as external data; "" if none.
        zeros_size: bytes that this file has or must have.
        zeros_path: the file, if it was written.
    """

    path: str
    size: int
    stripped: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    zeros_location: str
    zeros_size: int
    zeros_path: str | None


def strip_onnx(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    zeros: bool = False,
    keep_below: int = KEEP_BELOW_BYTES,
    integers: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> StrippedModel:
    """Write a copy of ``model`` without its weights to ``target``; `restore_onnx` puts them back.

    Small by default, an ordinary model of zeros with ``zeros``: see the module. `Rule` explains what counts as a
    weight, ``keep_below`` (bytes) and ``integers``. A file at ``target`` is replaced, with ``force``, once the copy is whole.
    Folders that are missing are made.

    Raises:
        OnnxError: the model is not sound, or its external data are not there.
        ModelUnsupported: it is a stripped copy already, or cannot be read.
        OutputInTheWay: one of the files to write is there, and not ``force``.
        OutputRefused, OutputUnwritable: ``target`` is one of the model's own files, or cannot be written.
    """
    return _strip(os.fspath(model), os.fspath(target), Rule(keep_below, integers), zeros, True, force, on_progress)


def zeroed_copy(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    keep_below: int = KEEP_BELOW_BYTES,
    integers: bool = False,
    on_progress: OnProgress | None = None,
) -> StrippedModel:
    """Write a copy of ``model`` whose weights are zero, to build an engine from: what `strip_onnx` writes with
    ``zeros``, without the mark that `restore_onnx` needs, and so without reading the weights."""
    return _strip(os.fspath(model), os.fspath(target), Rule(keep_below, integers), True, False, True, on_progress)


def _strip(
    model: str, target: str, rule: Rule, zeros: bool, marked: bool, force: bool, on_progress: OnProgress | None
) -> StrippedModel:
    location = os.path.basename(target) + ".zeros"
    reason = unsafe_reason(location) or ("" if _is_text(location) else "is not text")
    if reason:
        raise OutputRefused(path=target, detail=f"the copy would keep its data in {location!r}, which {reason}")
    # The files are identified before the first look at them: one that is replaced meanwhile is noticed at the end.
    with InputFiles([model]) as inputs, OnnxFile(model) as file, OutputFiles(inputs, target, force=force) as outputs:
        if marker_ranges(file.wire):
            raise ModelUnsupported(path=model, detail="it is a stripped copy already")
        found = survey(file, rule)
        inputs.add(found.external.values())
        copies = _ZeroCopies(file, location) if zeros else _SmallCopies(file, location)
        pieces = splice(file.wire, [change for tensor in found.tensors.values() for change in copies.change(tensor)])
        progress = _Progress(on_progress, _work(inputs, pieces, copies, marked))
        data_path = os.path.join(os.path.dirname(target), location)
        outputs.require_free(data_path)  # also where it is not written: the copy must not name a file of weights
        written = zeros and copies.used  # also if it is empty: a tensor without elements may lie in it
        outputs.require_place(target)
        if written:
            write_pieces(outputs.create(data_path), copies.data(), inputs, None, progress)
        out = outputs.create(target)
        digest = hashlib.sha256() if marked else None
        write_pieces(out, pieces, inputs, digest, progress)
        size = total_size(pieces)
        if digest is not None:
            marker = _marker(model, found, rule, inputs, digest.hexdigest(), progress)
            out.write(marker)
            size += len(marker)
        inputs.require_unchanged()
        outputs.commit()
    tensors = found.tensors.values()
    return StrippedModel(
        path=target,
        size=size,
        stripped=tuple(t for t in tensors if not t.stays),
        kept=tuple(t for t in tensors if t.stays),
        zeros_location=location if copies.used else "",
        zeros_size=copies.size,
        zeros_path=data_path if written else None,
    )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _work(inputs: InputFiles, pieces: Sequence[Piece], copies: _Copies, marked: bool) -> int:
    hashed = sum(inputs.size(path) for path in inputs.paths) if marked else 0
    return hashed + total_size(pieces) + total_size(copies.data())


class _Progress:
    """Adds up bytes for a callback."""

    def __init__(self, callback: OnProgress | None, total: int) -> None:
        self._callback = callback
        self._done = 0
        self._total = total

    def __call__(self, count: int) -> None:
        if self._callback is not None:
            self._done = min(self._done + count, self._total)
            self._callback(self._done, self._total)


@dataclass(slots=True)
class _Copies:
    """Makes the changes, and lays out the file of external data that they refer to."""

    file: OnnxFile
    location: str
    size: int = 0
    used: bool = False
    _shared: dict[tuple[Copy | None, bool], int] = field(default_factory=dict)
    _values: list[tuple[int, Copy]] = field(default_factory=list)

    def change(self, tensor: Tensor) -> list[Change]:
        """What becomes of the tensor: one change, or none."""
        pieces = self.form(tensor)
        if pieces is None:
            return []
        place, wire = tensor.place, self.file.wire
        frames, at = place.frames, place.at
        head = tag_bytes(wire, at) + varint(total_size(pieces))
        return [Change(frames, at, place.stop, [head, *pieces])]

    def form(self, tensor: Tensor) -> list[Piece] | None:
        """The content of the tensor's message in the copy; None where it is the original's."""
        raise NotImplementedError

    def data(self) -> list[Piece]:
        """The content of the file of external data, zeros but for the values that stay."""
        out: list[Piece] = []
        position = 0
        for offset, values in self._values:
            out += [Fill(b"\0", offset - position), values]
            position = offset + values.stop - values.start
        return [*out, Fill(b"\0", self.size - position)]

    def _place(self, tensor: Tensor) -> int:
        """Room for the tensor; weights that were one and the same range of a file stay one."""
        self.used = True
        payload = _external_copy(tensor)
        known = self._shared.get((payload, bool(tensor.stays)))
        if known is not None:
            return known
        offset = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        self.size = offset + tensor.nbytes
        if payload is not None:
            self._shared[payload, bool(tensor.stays)] = offset
            if tensor.stays:
                self._values.append((offset, payload))
        return offset


class _SmallCopies(_Copies):
    """References to a file that is not written; what stays is inside."""

    def form(self, tensor: Tensor) -> list[Piece] | None:
        wire = self.file.wire
        if not tensor.stays:
            if tensor.place.number:
                return forms.zeroed_form(wire, tensor)  # a list cannot be external; it is short in any known model
            return forms.external_form(wire, tensor, self.location, self._place(tensor))
        payload = _external_copy(tensor)
        return None if payload is None else forms.inline_form(wire, tensor, payload)

    def data(self) -> list[Piece]:
        return []


class _ZeroCopies(_Copies):
    """Zeros where the values were; external data in one file beside the copy."""

    def form(self, tensor: Tensor) -> list[Piece] | None:
        if _external_copy(tensor) is not None:
            return forms.moved_form(self.file.wire, tensor, self.location, self._place(tensor))
        return None if tensor.stays else forms.zeroed_form(self.file.wire, tensor)


def _external_copy(tensor: Tensor) -> Copy | None:
    ref = tensor.ref
    if ref is None or ref.payload.external is None:
        return None
    return Copy(str(ref.file), ref.payload.start, ref.payload.stop)


def _marker(model: str, found: Survey, rule: Rule, inputs: InputFiles, body: str, progress: _Progress) -> bytes:
    hashes = {}
    for path, result in zip(inputs.paths, hash_files(inputs.paths, progress), strict=True):
        if isinstance(result, OSError):
            raise ModelUnsupported(path=path, detail=f"it cannot be read: {result.strerror or result}") from result
        hashes[path] = OriginalFile(result.size, result.digest)
    return encode_marker(
        Marker(
            version=VERSION,
            model=hashes[model],
            external=tuple(hashes[path] for path in found.external.values()),
            keep_below=rule.keep_below,
            integers=rule.integers,
            body_sha256=body,
        )
    )
