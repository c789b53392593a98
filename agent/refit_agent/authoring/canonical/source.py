"""The model as it is read: its graph with the onnx package, without the weights, which stay in the file.

``onnx.load`` would copy every weight into the memory. Here the file is mapped, and a copy of the
message is made in which each large tensor is a reference (external data with a number for a
location) and each small one holds its bytes as raw_data, wherever the source kept them.

Field numbers: onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, SparseTensorProto, FunctionProto).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from refit_agent.authoring.canonical.values import Value, of_bytes, raw_bytes
from refit_agent.errors import OnnxMalformed
from refit_agent.weights import OnnxWeights
from refit_agent.weights import wire_writer as pb
from refit_agent.weights.dtypes import TYPES
from refit_agent.weights.external import ExternalFiles, open_regular
from refit_agent.weights.tensors import TensorReader
from refit_agent.weights.wire import BYTES, Wire

#: Tensors up to this size keep their bytes in the graph, where shape inference and we can look at them.
SMALL_BYTES = 1024
_TRAINING_INFO = 20
# The fields to descend into: message -> field -> message.
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}

_TYPES = {
    "f": AttributeProto.FLOAT,
    "i": AttributeProto.INT,
    "s": AttributeProto.STRING,
    "t": AttributeProto.TENSOR,
    "g": AttributeProto.GRAPH,
    "floats": AttributeProto.FLOATS,
    "ints": AttributeProto.INTS,
    "strings": AttributeProto.STRINGS,
    "tensors": AttributeProto.TENSORS,
    "graphs": AttributeProto.GRAPHS,
    "sparse_tensor": AttributeProto.SPARSE_TENSOR,
}


class Source:
    """An ONNX file of any size, open for rewriting. Use it as a context manager.

    Attributes:
        model: its ModelProto without large tensors; the caller may change it. Training information is left out.
        has_training: whether there was any.
        files: the model and every file of its external data.

    Raises:
        OnnxError: the file is damaged or hostile, or its external data is missing.
    """

    def __init__(self, path: str) -> None:
        self._weights = OnnxWeights(path)
        try:
            graph = self._weights.model  # checks all there is, nested graphs and external files too
            del graph
            self.path = path
            self.files: tuple[Path, ...] = (Path(path), *self._weights.external_files())
            self.has_training = False
            self._values: list[Value] = []
            self._map = _map(path)
            try:
                self._wire = Wire(self._map, path)
                files = ExternalFiles(path, os.path.dirname(path) or ".")
                self._tensors = TensorReader(self._wire, Path(path), files, self._weights)
                self.model = ModelProto()
                self._parse()
            except BaseException:
                self._map.close()
                raise
        except BaseException:
            self._weights.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
        self._weights.close()

    def value(self, tensor: TensorProto) -> Value:
        """The weight that a dense tensor of ``model`` stands for; not for strings."""
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._values[int(tensor.external_data[0].value)]
        if not tensor.raw_data and 0 not in tensor.dims:  # made by the onnx package since
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
        return of_bytes(tensor.raw_data, TYPES[tensor.data_type].name, tuple(tensor.dims))

    def restore(self, tensor: TensorProto) -> None:
        """Give a tensor that has stayed where it was its bytes back."""
        if tensor.data_location == TensorProto.EXTERNAL:
            raw = bytes(raw_bytes(self.value(tensor).make()))
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = raw

    def _parse(self) -> None:
        data = b"".join(self._message("model", 0, self._wire.size))
        try:
            self.model.ParseFromString(data)
        except DecodeError as error:
            raise OnnxMalformed(path=self.path, offset=0, detail=f"protobuf says: {error}") from error
        _settle(self.model.graph.node)
        for function in self.model.functions:
            _settle(function.node)

    def _message(self, message: str, start: int, end: int) -> Iterator[bytes]:
        inside = _INSIDE[message]
        for number, kind, value, stop, at in self._wire.fields(start, end):
            child = inside.get(number) if kind == BYTES else None
            if child == "tensor":
                yield pb.blob(number, self._tensor(value, stop))
            elif child is not None:
                yield pb.blob(number, b"".join(self._message(child, value, stop)))
            elif message == "model" and number == _TRAINING_INFO:
                self.has_training = True
            else:
                yield bytes(self._wire.data[at:stop])

    def _tensor(self, start: int, stop: int) -> bytes:
        ref = self._tensors.tensor(start, stop, "", "attribute")
        if ref.dtype == "string":
            return bytes(self._wire.data[start:stop])
        if ref.nbytes <= SMALL_BYTES:
            return pb.tensor(ref.name, ref.dtype, ref.shape, bytes(raw_bytes(ref.array())))
        self._values.append(Value(ref.dtype, ref.shape, ref.array))
        number = str(len(self._values) - 1)
        return pb.external_tensor(ref.name, ref.dtype, ref.shape, number, 0, ref.nbytes)


def _settle(nodes: Iterable[NodeProto]) -> None:
    """Give attributes their type where an old writer left it out."""
    for node in nodes:
        for attribute in node.attribute:
            if not attribute.type:
                held = [f.name for f, _ in attribute.ListFields() if f.name in _TYPES]
                attribute.type = _TYPES[held[0]] if held else AttributeProto.UNDEFINED
            if attribute.type == AttributeProto.GRAPH:
                _settle(attribute.g.node)
            for graph in attribute.graphs:
                _settle(graph.node)


def _map(path: str) -> mmap.mmap:
    handle, _ = open_regular(path)
    if handle is None:
        raise OnnxMalformed(path=path, offset=0, detail="it is not a regular file")
    try:
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
