"""Files made to break a reader: a clear error with path and offset, and no memory."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

from refit_agent.errors import OnnxMalformed
from refit_agent.weights import OnnxWeights

from .onnx_bytes import graph, model, node, num, sub, tensor, varint

F8 = b"\0" * 8
GOOD = tensor("w", (2,), 1, F8)


def nest(depth: int, innermost: bytes) -> bytes:
    inner = innermost
    for _ in range(depth):
        inner = graph(nodes=(node("If", sub(1, "b") + sub(6, inner)),))
    return inner


def one(data: bytes) -> bytes:
    return model(graph(data))


OPENING = {
    "no graph": num(1, 8),
    "two graphs": model(graph(GOOD), sub(7, graph())),
    "two ir_versions": model(graph(GOOD), num(1, 8)),
    "graph as varint": num(7, 5),
    "function as varint": model(graph(GOOD), num(25, 5)),
    "opset as varint": model(graph(GOOD), num(8, 5)),
    "cut graph": model(graph(GOOD))[:-3],
    "cut varint": model(graph(GOOD)) + b"\x08\xff",
    "overlong varint": model(graph(GOOD)) + b"\x08" + b"\x80" * 10 + b"\x00",
    "group": model(graph(more=b"\x33\x34")),
    "type 6": model(graph(more=b"\x36")),
    "type 7": model(graph(more=b"\x37")),
    "field 0": model(graph(more=b"\x02\x00")),
    "initializer as varint": model(graph(more=num(5, 1))),
    "node as varint": model(graph(more=num(1, 1))),
    "sparse as varint": model(graph(more=num(15, 1))),
    "initializer runs out": model(b"\x2a\x7f" + GOOD),
    "initializer without length": model(b"\x2a"),
    "initializer length cut": model(b"\x2a\x80"),
    "initializer length huge": model(b"\x2a" + varint(2**64 - 1)),
    "initializer length overlong": model(b"\x2a" + b"\x80" * 10 + b"\x00"),
    "node runs out": model(b"\x0a\x7f"),
    "node length cut": model(b"\x0a\x80"),
    "node length huge": model(b"\x0a" + varint(2**64 - 1)),
    "node length overlong": model(b"\x0a" + b"\x80" * 10 + b"\x00"),
    "node runs into the next field of the model": num(1, 8) + sub(7, b"\x0a\x05") + sub(2, "aaaaaaaaaa"),
    "duplicate initializer": model(graph(GOOD, GOOD)),
    "duplicate in other field order": model(graph(GOOD, sub(8, "w") + GOOD[: -len(F8) - 2 - 3] + sub(9, F8))),
    "duplicate of a constant": model(graph(GOOD, nodes=(node("Constant", sub(1, "value") + sub(5, GOOD), outputs=("w",)),))),
    "two constants": model(graph(nodes=(node("Constant", sub(1, "value") + sub(5, GOOD)),) * 2)),
    "duplicate in a nested graph": model(nest(2, graph(GOOD, GOOD))),
    "duplicate constants in a nested graph": model(nest(1, graph(nodes=(node("Constant", sub(1, "value_int") + num(3, 1)),) * 2))),
    "duplicate in a function": model(graph(), sub(25, sub(7, node("Constant", sub(1, "value_int") + num(3, 1))) * 2)),
    "name without end": model(b"\x2a\x06\x10\x01\x42\x7fab"),
    "name not utf-8": one(num(2, 1) + sub(8, b"a\xff")),
    "name not utf-8, other order": one(sub(8, b"a\xff") + num(2, 1)),
    "no name": one(num(1, 2) + num(2, 1) + sub(9, F8)),
    "empty name": one(tensor("", (2,), 1, F8)),
    "two names": one(sub(8, "a") + sub(8, "b") + GOOD),
    "name as varint": one(num(8, 3)),
    "nesting bomb": model(nest(24, graph(GOOD))),
    "deep nesting bomb": model(nest(3000, graph(GOOD))),
    "nested tensor of no type": model(nest(1, graph(tensor("w", (2,), None, F8), GOOD))),
    "nested wrong size": model(nest(1, graph(tensor("w", (3,), 1, F8)))),
    "constant without output": model(graph(nodes=(node("Constant", sub(1, "value") + sub(5, GOOD), outputs=()),))),
    "constant with empty output": model(graph(nodes=(node("Constant", sub(1, "value") + sub(5, GOOD), outputs=("",)),))),
    "node with two operators": model(graph(nodes=(node("Constant") + sub(4, "If"),))),
}  # fmt: skip

TENSOR = {
    "no data type": tensor("w", (2,), None, F8),
    "data type 0": tensor("w", (2,), 0, F8),
    "unknown data type": tensor("w", (2,), 29, F8),
    "huge data type": tensor("w", (2,), 2**63, F8),
    "two data types": GOOD + num(2, 1),
    "two names": GOOD + sub(8, "v"),
    "two raw_data": GOOD + sub(9, F8),
    "data type as bytes": num(1, 2) + sub(2, b"\x01") + sub(8, "w") + sub(9, F8),
    "raw_data as varint": tensor("w", (2,), 1, more=num(9, 1)),
    "float_data as varint": tensor("w", (2,), 1, more=num(4, 1) * 2),
    "float_data as 64 bits": tensor("w", (1,), 1, more=b"\x21" + F8),
    "int32_data as 32 bits": tensor("w", (1,), 6, more=b"\x2d\0\0\0\0"),
    "dims as 32 bits": tensor("w", (), 1, F8, more=b"\x0d\0\0\0\0"),
    "negative dim": tensor("w", (-1,), 1, F8),
    "two negative dims": tensor("w", (-1, -2), 1, F8),
    "negative packed dim": sub(1, varint(-2)) + tensor("w", (), 1, F8),
    "overflow": tensor("w", (2**62, 2**62), 1, F8),
    "overflow beside 0": tensor("w", (2**62, 2**62, 0), 1),
    "wraps to the right size": tensor("w", (2**32, 2**32, 1), 1, b""),
    "huge": tensor("w", (2**40,), 1, F8),
    "too many dims": tensor("w", (1,) * 33, 1, b"\0" * 4),
    "short raw": tensor("w", (2,), 1, F8[:7]),
    "long raw": tensor("w", (2,), 1, F8 + b"\0"),
    "no payload": tensor("w", (2,), 1),
    "payload of an empty tensor": tensor("w", (0,), 1, F8),
    "int4 short": tensor("w", (5,), 22, b"\0\0"),
    "raw and typed": GOOD + sub(4, F8),
    "empty raw and typed": tensor("w", (2,), 1, b"", sub(4, F8)),
    "two typed": tensor("w", (2,), 1, more=sub(4, F8) + sub(5, b"\0\0")),
    "wrong typed": tensor("w", (2,), 1, more=sub(5, b"\0\0")),
    "float_data uneven": tensor("w", (2,), 1, more=sub(4, F8[:7])),
    "float_data short": tensor("w", (2,), 1, more=sub(4, F8[:4])),
    "double_data long": tensor("w", (1,), 11, more=sub(10, F8 * 2)),
    "complex with one float": tensor("w", (1,), 14, more=sub(4, F8[:4])),
    "int32_data hopelessly short": tensor("w", (2**40,), 6, more=sub(5, b"\0\0")),
    "int32_data hopelessly long": tensor("w", (1,), 6, more=sub(5, b"\0" * 11)),
    "strings missing": tensor("w", (2,), 8, more=sub(6, "a")),
    "no strings": tensor("w", (2,), 8),
    "raw strings": tensor("w", (2,), 8, F8),
    "strings as varint": tensor("w", (1,), 8, more=num(6, 1)),
    "segment": GOOD + sub(3, num(1, 0)),
    "cut inside": tensor("w", (2,), 1, more=b"\x4a\x09" + F8),
    "group inside": GOOD + b"\x7b",
}  # fmt: skip

CONSTANT = {
    "no value": (),
    "two values": (sub(1, "value_int") + num(3, 1), sub(1, "value_float") + b"\x15\0\0\0\0"),
    "unknown attribute": (sub(1, "valve") + num(3, 1),),
    "wrong type": (sub(1, "value") + num(3, 1),),
    "type and value disagree": (sub(1, "value_int") + num(3, 1) + num(20, 1),),
    "unknown type": (sub(1, "value_int") + num(3, 1) + num(20, 99),),
    "two tensors in one attribute": (sub(1, "value") + sub(5, GOOD) * 2,),
    "tensor and graph": (sub(1, "value") + sub(5, GOOD) + sub(6, graph(GOOD)),),
    "value left out": (sub(1, "value_int") + num(20, 2),),
    "reference at top level": (sub(1, "value") + sub(21, "v"),),
    "reference and value": (sub(1, "value") + sub(5, GOOD) + sub(21, "v"),),
    "no name": (num(3, 1),),
    "two names": (sub(1, "value_int") + num(3, 1) + sub(1, "value_int"),),
    "two types": (sub(1, "value_int") + num(3, 1) + num(20, 2) * 2,),
    "two references": (sub(1, "value") + sub(21, "v") * 2,),
    "same attribute twice": (sub(1, "value_int") + num(3, 1),) * 2,
    "float as varint": (sub(1, "value_float") + num(2, 1),),
    "uneven floats": (sub(1, "value_floats") + sub(7, F8[:7]),),
    "ints as 32 bits": (sub(1, "value_ints") + b"\x45\0\0\0\0",),
    "sparse without values": (sub(1, "sparse_value") + sub(22, num(3, 4)),),
    "two sparse values": (sub(1, "sparse_value") + sub(22, sub(1, GOOD) * 2),),
    "name not utf-8": (sub(1, b"\xff") + num(3, 1),),
}  # fmt: skip

NODES = {
    "no operator": sub(2, "y"),
    "input as varint": num(1, 1) + sub(4, "Relu"),
    "group": sub(4, "Relu") + b"\x0b",
    "output not utf-8": sub(2, b"\xff") + sub(4, "Relu"),
    "attribute twice": node("Relu", *(sub(1, "a") + num(3, 1),) * 2),
    "two names": node("Relu", name="a") + sub(3, "b"),
    "nesting bomb without tensors": node("If", sub(1, "b") + sub(6, nest(24, graph()))),
    "deep nesting bomb without tensors": node("If", sub(1, "b") + sub(6, nest(2000, graph()))),
}


def refused(path, action) -> None:
    with pytest.raises(OnnxMalformed) as caught:
        action()
    facts = caught.value.facts
    assert facts["path"] == str(path)
    assert isinstance(facts["offset"], int) and 0 <= facts["offset"] <= path.stat().st_size
    assert str(facts["offset"]) in str(caught.value)


def model_of(path) -> object:
    with OnnxWeights(path) as weights:
        return weights.model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("name", OPENING)
def test_refused_on_opening(path, name):
    path.write_bytes(OPENING[name])
    refused(path, lambda: OnnxWeights(path))


@pytest.mark.parametrize("name", TENSOR)
@pytest.mark.parametrize("where", ["initializer", "constant", "nested"])
def test_bad_tensors_are_refused_before_they_are_handed_out(path, name, where):
    data = TENSOR[name]
    if where == "constant":
        path.write_bytes(model(graph(nodes=(node("Constant", sub(1, "value") + sub(5, data), outputs=("w",)),))))
    else:
        path.write_bytes(model(graph(data) if where == "initializer" else nest(1, graph(data))))

    def read() -> None:
        with OnnxWeights(path) as weights:
            weights["w"]

    if where == "nested" and name in ("no data type", "huge data type", "data type as bytes"):
        refused(path, lambda: model_of(path))  # the fast walk may pass over what names no type: it is not listed
    else:
        refused(path, read)


@pytest.mark.parametrize("name", CONSTANT)
def test_bad_constants(path, name):
    path.write_bytes(model(graph(nodes=(node("Constant", *CONSTANT[name]),))))

    def read() -> None:
        with OnnxWeights(path) as weights:
            weights["y"]

    refused(path, read)


@pytest.mark.parametrize("name", NODES)
def test_bad_nodes_are_refused_when_the_graph_is_read(path, name):
    path.write_bytes(model(graph(nodes=(NODES[name],))))
    refused(path, lambda: model_of(path))


def test_duplicate_functions(path):
    for function in (sub(25, sub(1, "F")) * 2, sub(25, sub(1, "F") * 2)):
        path.write_bytes(model(graph(), function))
        refused(path, lambda: model_of(path))


def test_24_graphs_deep_are_allowed(path):
    path.write_bytes(model(nest(23, graph(GOOD))))
    with OnnxWeights(path) as weights:
        assert weights["w"].array().tolist() == [0, 0]
        assert weights["w"].scope.count("/") == 22


def test_every_truncation_is_refused(path):
    good = model(graph(GOOD, tensor("v", (3,), 7, more=sub(7, b"\x01\x02\x03")), nodes=(node("Relu"),)))
    for size in range(1, len(good)):
        path.write_bytes(good[:size])
        refused(path, lambda: OnnxWeights(path))


@pytest.mark.parametrize(
    "data",
    [
        tensor("w", (2**40,), 1, F8),
        tensor("w", (2**40,), 6, more=sub(5, b"\0\0")),
        tensor("w", (2**33, 2**20), 14, F8),
        tensor("w", (20,), 7, more=sub(7, b"\x80" * 100)),
        tensor("w", (1000,), 7, more=sub(7, b"\0" * 999 + b"\x80" * 2)),
        num(1, 1) * 200_000 + tensor("w", (), 1, F8),
        sub(1, b"\x01" * 200_000) + tensor("w", (), 1, F8),
    ],
    ids=["raw", "varints", "complex", "no ends", "one too few", "rank", "packed rank"],
)
def test_hostile_sizes_allocate_nothing(path, data):
    path.write_bytes(one(data))
    np.zeros(1)  # what numpy allocates on first use is not the file's doing

    def read() -> None:
        with OnnxWeights(path) as weights:
            weights["w"].array()

    refused(path, read)
    tracemalloc.start()
    try:
        refused(path, read)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_decoding_takes_8_times_the_payload_at_most(path):
    count = 1 << 20
    path.write_bytes(one(tensor("w", (count,), 7, more=sub(7, b"\x01" * count))))
    with OnnxWeights(path) as weights:
        ref = weights["w"]
        tracemalloc.start()
        try:
            array = ref.array()
            assert tracemalloc.get_traced_memory()[1] < 8 * count + (6 << 20)
        finally:
            tracemalloc.stop()
        assert array.sum() == count


def test_a_low_recursion_limit_suffices(path):
    path.write_bytes(model(nest(23, graph(GOOD))))
    depth = len(__import__("inspect").stack())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 220)
    try:
        with OnnxWeights(path) as weights:
            assert "w" in weights
    finally:
        sys.setrecursionlimit(limit)
