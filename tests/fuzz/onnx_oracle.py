"""What the onnx package makes of a model, held against what `OnnxWeights` makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from refit_agent.weights import Graph, OnnxWeights
from refit_agent.weights.dtypes import FIXED_ENTRY_BYTES, TYPES

_BY_NAME = {dtype.name: dtype for dtype in TYPES.values()}


def require_same(weights: OnnxWeights, proto: onnx.ModelProto, folder: str) -> int:
    """Compare the open model with ``proto``, read from the same bytes; ``folder`` has its external data. All of it:
    the tensors with their values, in their order, and the graph. Gives the number of tensors whose values were
    compared."""
    theirs = list(_their_graph(proto.graph))
    for function in proto.functions:
        theirs.extend(entry for node in function.node for entry in _their_node(node))
    assert [ref.name for ref in weights.values()] == [name for name, _ in theirs], "another list of tensors than onnx's"
    compared = 0
    for ref, (name, tensor) in zip(weights.values(), theirs, strict=True):
        if tensor is None:
            continue
        assert ref.kind in ("initializer", "constant")
        assert (ref.dtype, ref.shape) == (TYPES[tensor.data_type].name, tuple(tensor.dims)), name
        if ref.dtype == "string":
            assert ref.nbytes == sum(map(len, tensor.string_data))
            continue
        wanted = _their_bytes(tensor, folder)
        if wanted is not None:
            assert _same(ref.dtype, ref.array().tobytes(), wanted), f"other values of {name!r} than onnx's"
            compared += 1
    _compare_graph(weights.model.graph, proto.graph)
    return compared


def has_untyped_nothing(proto: onnx.ModelProto) -> bool:
    """Whether an attribute has neither a type nor a value, so that nobody knows what it is."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while nodes:
        for attribute in nodes.pop().attribute:
            if {field.name for field, _ in attribute.ListFields()} <= {"name", "doc_string"}:
                return True
            for graph in (attribute.g, *attribute.graphs):
                nodes.extend(graph.node)
    return False


def _their_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto | None]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    yield from ((sparse.values.name, None) for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from _their_node(node)


def _their_node(node: onnx.NodeProto) -> Iterator[tuple[str, TensorProto | None]]:
    standard = node.domain in ("", "ai.onnx")
    if node.op_type == "Constant" and standard:
        if not any(attribute.ref_attr_name for attribute in node.attribute):
            yield node.output[0], next((a.t for a in node.attribute if a.HasField("t")), None)
        return
    is_if = node.op_type == "If" and standard
    for attribute in sorted(node.attribute, key=lambda a: is_if and a.name != "then_branch"):
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _their_graph(graph)


def _their_bytes(tensor: TensorProto, folder: str) -> bytes | None:
    """The tensor as raw_data would have it, by onnx's own decoder; None where that has no opinion."""
    if tensor.data_location == TensorProto.EXTERNAL and "length" not in {e.key for e in tensor.external_data}:
        return None  # it then takes the rest of the file, and we what the shape needs
    dtype = TYPES[tensor.data_type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = numpy_helper.to_array(tensor, folder)
    except (OverflowError, ValueError, TypeError, onnx.checker.ValidationError):
        # Entries that do not fit their type: protobuf cuts those of 64 bits, onnx refuses some of the rest. And
        # locations that are written in a way that onnx forbids.
        return None
    if dtype.bits >= 8:
        return array.tobytes()
    values = array.view(np.uint8).ravel() & ((1 << dtype.bits) - 1)
    bits = np.unpackbits(values[:, None], axis=1, count=dtype.bits, bitorder="little")
    return np.packbits(bits.ravel(), bitorder="little").tobytes()


def _same(dtype: str, ours: bytes, theirs: bytes) -> bool:
    if ours == theirs:
        return True
    if len(ours) != len(theirs):
        return False
    kind = _BY_NAME[dtype]
    if kind.field in FIXED_ENTRY_BYTES:
        # A signalling NaN does not survive the way through Python's floats.
        part = {4: "<f4", 8: "<f8"}[FIXED_ENTRY_BYTES[kind.field]]
        return np.array_equal(np.frombuffer(ours, part), np.frombuffer(theirs, part), equal_nan=True)
    # Bits behind the last element are nobody's.
    return kind.bits < 8 and ours[:-1] == theirs[:-1]


def _compare_graph(ours: Graph, theirs: onnx.GraphProto) -> None:
    assert ours.name == theirs.name
    assert ours.inputs == tuple(value.name for value in theirs.input)
    assert ours.outputs == tuple(value.name for value in theirs.output)
    assert len(ours.nodes) == len(theirs.node)
    for node, proto in zip(ours.nodes, theirs.node, strict=True):
        told = (node.op_type, node.domain, node.name, node.inputs, node.outputs, node.overload)
        wanted = (proto.op_type, proto.domain, proto.name, tuple(proto.input), tuple(proto.output), proto.overload)
        assert told == wanted
        assert list(node.attributes) == [attribute.name for attribute in proto.attribute]
        for attribute, other in zip(node.attributes.values(), proto.attribute, strict=True):
            assert attribute.ref == other.ref_attr_name
            _compare_attribute(attribute.value, other)


def _compare_attribute(value: Any, proto: onnx.AttributeProto) -> None:
    if isinstance(value, float):
        assert np.float32(value).tobytes() == np.float32(proto.f).tobytes() or (value != value and proto.f != proto.f)
    elif isinstance(value, int):
        assert value == proto.i
    elif isinstance(value, bytes):
        assert value == proto.s
    elif isinstance(value, Graph):
        _compare_graph(value, proto.g)
    elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
        for graph, other in zip(value, proto.graphs, strict=True):
            _compare_graph(graph, other)
    elif isinstance(value, tuple) and value and isinstance(value[0], (int, bytes)):
        assert value == tuple(proto.ints if isinstance(value[0], int) else proto.strings)
