"""Where every tensor of an ONNX file stands: each TensorProto, whatever holds it, and the number lists of Constants.

The reader in ``weights`` lists what an engine can ask for. This walk misses nothing that can hold a value:
tensors in the attributes of every operator, in the defaults of local functions, in training graphs. It looks at
no value and tells for each place how deep in which messages it lies, so that a copy can be made around it.

Field numbers: onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, FunctionProto, TrainingInfoProto).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from refit_agent.authoring.errors import ModelUnsupported
from refit_agent.errors import OnnxMalformed
from refit_agent.weights.external import ExternalFiles, open_regular, release
from refit_agent.weights.parse import MAX_DEPTH
from refit_agent.weights.records import WeightRef
from refit_agent.weights.scan import scan_model
from refit_agent.weights.tensors import TensorReader
from refit_agent.weights.wire import BYTES, FIXED32, VARINT, Wire

if TYPE_CHECKING:
    from types import TracebackType

Key = tuple[str, ...]
#: A message that others lie in: offsets of its tag, of its content, and behind it.
Frame = tuple[int, int, int]

#: AttributeProto: the lists of numbers that a Constant node can hold in place of a tensor.
FLOATS, INTS = 7, 8
_TENSOR, _GRAPH, _TENSORS, _GRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23
#: Lists of numbers in the attributes of other operators are listed from this many bytes on.
LARGE_LIST_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor, or one list of numbers.

    Attributes:
        key: what finds it again in another copy of the model: names of nodes' outputs, attributes, functions and
            the tensor, none of which depend on the order in the file. Unique in the file.
        role: "initializer", "constant" (Constant node), "sparse" (values of a sparse tensor), "indices" (of a
            sparse tensor) or "attribute" (of any other node).
        frames: the messages around it, the outermost first.
        at: offset of the tag of its own field.
        start: offset of the TensorProto; for a list, of the AttributeProto.
        stop: offset behind that.
        number: `FLOATS` or `INTS` for a list of numbers, else 0.
    """

    key: Key
    role: str
    frames: tuple[Frame, ...]
    at: int
    start: int
    stop: int
    number: int = 0

    @property
    def label(self) -> str:
        """The key for people: ``w``, or ``y / then_branch / w``."""
        return " / ".join(part[2:] for part in self.key)


class OnnxFile:
    """An ONNX file, mapped for reading. Close it; nobody may truncate it meanwhile.

    Raises:
        ModelUnsupported: it cannot be read.
        OnnxMalformed: it is empty, or not a regular file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            handle, info = open_regular(path)
            if handle is None:
                raise OnnxMalformed(path=path, offset=0, detail="it is not a regular file")
            try:
                if info.st_size == 0:
                    raise OnnxMalformed(path=path, offset=0, detail="it is empty")
                self._map = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
        except OSError as error:
            raise ModelUnsupported(path=path, detail=f"it cannot be read: {error.strerror or error}") from error
        self.wire = Wire(self._map, path)
        self._external = ExternalFiles(path, os.path.dirname(path) or ".")
        self._reader = TensorReader(self.wire, Path(path), self._external, self)

    def __enter__(self) -> OnnxFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._external.close()
        self.wire.data = b""
        release(self._map)

    def ref(self, place: Place) -> WeightRef:
        """Type, shape and payload of a TensorProto, checked against each other.

        Raises:
            OnnxMalformed, OnnxUnsafePath, OnnxExternalMissing
        """
        return self._reader.tensor(place.start, place.stop, "", place.role, place.label)

    def read_array(self, ref: WeightRef) -> NoReturn:
        """Never called: nothing here decodes a value."""
        raise NotImplementedError(ref.name)


class TensorWalk:
    """One walk through a model, in file order.

    Attributes:
        quantization: names of the scales and zero points that Quantize and DequantizeLinear nodes were seen to use.

    Raises OnnxMalformed from `places` when the file is not sound.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._seen: set[Key] = set()
        self.quantization: set[str] = set()

    def places(self) -> Iterator[Place]:
        """Every place, once."""
        wire = self._wire
        scan_model(wire)
        trainings = 0
        for number, kind, value, end, at in wire.fields(0, wire.size):
            frame = (at, value, end)
            if number == 7:
                yield from self._graph((), (frame,), 1)
            elif number == 25:
                yield from self._function(frame)
            elif number == 20:
                wire.expect(number, kind, BYTES, at)
                for inner, inner_kind, place, stop, tag in wire.fields(value, end):
                    if inner in (1, 2):
                        wire.expect(inner, inner_kind, BYTES, tag)
                        yield from self._graph((f"t:training {trainings}.{inner}",), (frame, (tag, place, stop)), 1)
                trainings += 1

    def _graph(self, scope: Key, frames: tuple[Frame, ...], depth: int) -> Iterator[Place]:
        wire = self._wire
        _, start, stop = frames[-1]
        if depth > MAX_DEPTH:
            wire.fail(start, f"graphs are nested more than {MAX_DEPTH} deep")
        nodes = 0
        for number, kind, value, end, at in wire.fields(start, stop):
            if number not in (1, 5, 15):
                continue
            wire.expect(number, kind, BYTES, at)
            if number == 1:
                yield from self._node(scope, (*frames, (at, value, end)), nodes, depth)
                nodes += 1
            elif number == 5:
                name = self._name(value, end, at)
                yield self._claim(Place((*scope, f"w:{name}"), "initializer", frames, at, value, end))
            else:
                yield from self._sparse(scope, None, "sparse", (*frames, (at, value, end)))

    def _function(self, frame: Frame) -> Iterator[Place]:
        wire = self._wire
        _, start, stop = frame
        texts = {1: "", 10: "", 13: ""}
        parts: list[tuple[int, Frame]] = []
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in (1, 7, 10, 11, 13):
                wire.expect(number, kind, BYTES, at)
                if number in texts:
                    texts[number] = wire.text(value, end)
                else:
                    parts.append((number, (at, value, end)))
        scope = (f"f:{texts[10]}.{texts[1]}:{texts[13]}",)
        nodes = 0
        for number, part in parts:
            if number == 7:
                yield from self._node(scope, (frame, part), nodes, 1)
                nodes += 1
            else:
                yield from self._attribute((*scope, "n:default"), None, (frame, part), 1)

    def _node(self, scope: Key, frames: tuple[Frame, ...], index: int, depth: int) -> Iterator[Place]:
        wire = self._wire
        _, start, stop = frames[-1]
        op_type = domain = output = ""
        inputs: list[tuple[int, int]] = []
        attributes: list[Frame] = []
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in (1, 2, 4, 5, 7):
                wire.expect(number, kind, BYTES, at)
            if number == 1:
                inputs.append((value, end))
            elif number == 2:
                output = output or wire.text(value, end)
            elif number == 4:
                op_type = wire.text(value, end)
            elif number == 5:
                attributes.append((at, value, end))
            elif number == 7:
                domain = wire.text(value, end)
        if op_type.lower().endswith("quantizelinear"):  # Dequantize too, and TRT_INT4QuantizeLinear and its kin
            self.quantization.update(wire.text(*place) for place in inputs[1:3])
        is_constant = op_type == "Constant" and domain in ("", "ai.onnx")
        if is_constant and not output:
            wire.fail(start, "a Constant node has no output")
        owner = scope if is_constant else (*scope, f"n:{output}" if output else f"x:{index}")
        for frame in attributes:
            yield from self._attribute(owner, output if is_constant else None, (*frames, frame), depth)

    def _attribute(self, owner: Key, constant: str | None, frames: tuple[Frame, ...], depth: int) -> Iterator[Place]:
        """The places in an attribute of a Constant node with the output ``constant``, or of another node."""
        wire = self._wire
        at, start, stop = frames[-1]
        name = ""
        lists = {FLOATS: 0, INTS: 0}
        parts: list[tuple[int, Frame]] = []
        for number, kind, value, end, place in wire.fields(start, stop):
            if number == 1:
                wire.expect(number, kind, BYTES, place)
                name = wire.text(value, end)
            elif number in lists:
                if kind != BYTES:
                    wire.expect(number, kind, FIXED32 if number == FLOATS else VARINT, place)
                lists[number] += end - value if kind == BYTES else 4
            elif number in (_TENSOR, _GRAPH, _TENSORS, _GRAPHS, _SPARSE, _SPARSES):
                wire.expect(number, kind, BYTES, place)
                parts.append((number, (place, value, end)))
        for number, size in lists.items():
            if size and (constant is not None or size >= LARGE_LIST_BYTES):
                key = (*owner, f"a:{name}") if constant is None else (*owner, f"w:{constant}")
                role = "attribute" if constant is None else "constant"
                yield self._claim(Place(key, role, frames[:-1], at, start, stop, number))
        for index, (number, frame) in enumerate(parts):
            part = (
                (*owner, f"a:{name}") if number in (_TENSOR, _GRAPH, _SPARSE) else (*owner, f"a:{name}", f"k:{index}")
            )
            if number in (_GRAPH, _GRAPHS):
                yield from self._graph(part, (*frames, frame), depth + 1)
            elif number in (_TENSOR, _TENSORS):
                key = part if constant is None else (*owner, f"w:{constant}")
                role = "attribute" if constant is None else "constant"
                yield self._claim(Place(key, role, frames, *frame))
            elif constant is None:
                yield from self._sparse(part, None, "attribute", (*frames, frame))
            else:
                yield from self._sparse(owner, constant, "sparse", (*frames, frame))

    def _sparse(self, scope: Key, name: str | None, role: str, frames: tuple[Frame, ...]) -> Iterator[Place]:
        """Values and indices of the SparseTensorProto in the last frame, which has its name from its values."""
        wire = self._wire
        _, start, stop = frames[-1]
        parts: dict[int, Frame] = {}
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in (1, 2):
                wire.expect(number, kind, BYTES, at)
                if number in parts:
                    wire.fail(at, f"a sparse tensor has its field {number} twice")
                parts[number] = (at, value, end)
        if 1 not in parts:
            wire.fail(start, "a sparse tensor has no values")
        if name is None:
            at, value, end = parts[1]
            name = self._name(value, end, at, optional=role == "attribute")
        for number, frame in sorted(parts.items(), key=lambda part: part[1]):
            key = (*scope, f"w:{name}") if number == 1 else (*scope, f"w:{name}", "i:indices")
            yield self._claim(Place(key, role if number == 1 else "indices", frames, *frame))

    def _name(self, start: int, stop: int, at: int, *, optional: bool = False) -> str:
        name = ""
        for number, kind, value, end, place in self._wire.fields(start, stop):
            if number == 8:
                self._wire.expect(number, kind, BYTES, place)
                name = self._wire.text(value, end)
        if not name and not optional:
            self._wire.fail(at, "an initializer has no name")
        return name

    def _claim(self, place: Place) -> Place:
        if place.key in self._seen:
            self._wire.fail(place.at, f"the tensor {place.label!r} is there twice in one graph")
        self._seen.add(place.key)
        return place
