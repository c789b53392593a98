"""The reader of ONNX files, whole: index, graph, arrays. What it takes, the onnx package must read the same way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from refit_agent.errors import RefitAgentError, WeightUnsupported
from refit_agent.weights import Graph, Node, OnnxWeights, WeightRef, node_graphs

from .. import mutators, onnx_oracle, sandbox

#: Bytes that each file of external data has.
EXTERNAL_BYTES = 4096

_FOLDER = sandbox.folder("onnx")
#: One of the tensors of a model: key, plain name, kind, type, shape, and the array's bytes if it has an array.
_Read = tuple[str, str, str, str, tuple[int, ...], "bytes | None"]

for _name in ("w.bin", "data/more.bin"):
    (_FOLDER / _name).parent.mkdir(exist_ok=True)
    (_FOLDER / _name).write_bytes(random.Random(_name).randbytes(EXTERNAL_BYTES))


def check(data: bytes) -> bool:
    """Read everything of the model ``data``; see the module."""
    first = _read(data, graph_first=True)
    second = _read(data, graph_first=False)
    assert (first is None) == (second is None), "whether it is sound depends on what is asked for first"
    if first is None:
        return False
    assert first == second, "what is in it depends on what is asked for first"
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        return True  # about what we do not look at: documentation, types of values, training graphs
    with OnnxWeights(_FOLDER / "m.onnx") as weights:
        onnx_oracle.require_same(weights, proto, str(_FOLDER))
    if onnx_oracle.has_untyped_nothing(proto):
        return True  # an empty list that its field alone told apart; protobuf leaves the field out
    again = _read(proto.SerializeToString(), graph_first=True)
    assert again is not None, "sound, but not as protobuf writes it"
    assert [entry[1:] for entry in again] == [entry[1:] for entry in first], "another model as protobuf writes it"
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One message turned into another."""
    return mutators.protobuf(data, rng)


def _read(data: bytes, *, graph_first: bool) -> list[_Read] | None:
    """The tensors; None if the model was refused."""
    path = _FOLDER / "m.onnx"
    path.write_bytes(data)
    try:
        with OnnxWeights(path) as weights:
            if graph_first:
                _walk(weights)
            found = [_tensor(key, weights[key], len(data)) for key in weights]
            if not graph_first:
                _walk(weights)
            for key, name, *_ in found:
                assert weights[key] in weights.definitions(name), "a definition is not among those of its name"
            return found
    except RefitAgentError as error:
        assert str(error)
        offset = error.facts.get("offset", 0)
        assert isinstance(offset, int) and 0 <= offset <= max(len(data), EXTERNAL_BYTES), f"at byte {offset}?"
        return None


def _walk(weights: OnnxWeights) -> None:
    """The graph in detail: it has the tensors that the index lists, neither more nor fewer."""
    model = weights.model
    found = list(_of_graph(model.graph))
    for function in model.functions.values():
        found.extend(ref for node in function.nodes for ref in _of_node(node))
    assert len(found) == len(weights), f"the walk found {len(weights)} tensors and the graph has {len(found)}"
    assert {id(ref) for ref in found} == {id(ref) for ref in weights.values()}, "two references to one tensor"
    names = {ref.name for ref in found}
    for norm in weights.batch_norms:
        assert names.issuperset((norm.scale, norm.bias, norm.mean, norm.var))


def _tensor(key: str, ref: WeightRef, size: int) -> _Read:
    assert ref.key == key
    try:
        array = ref.array()
    except WeightUnsupported:
        assert ref.kind == "sparse" or ref.dtype == "string"
        return key, ref.name, ref.kind, ref.dtype, ref.shape, None
    assert array.nbytes == ref.nbytes
    assert not array.flags.writeable
    # The smallest entry of a typed field is a byte, and the largest element that one makes has 8.
    assert ref.nbytes <= 8 * max(size, EXTERNAL_BYTES), f"{ref.nbytes} bytes out of {size}"
    if ref.is_view:
        assert Path(ref.file).read_bytes()[ref.offset : ref.offset + ref.nbytes] == array.tobytes()
    return key, ref.name, ref.kind, ref.dtype, ref.shape, array.tobytes()


def _of_graph(graph: Graph) -> Iterator[WeightRef]:
    yield from graph.initializers.values()
    for node in graph.nodes:
        yield from _of_node(node)


def _of_node(node: Node) -> Iterator[WeightRef]:
    if node.constant is not None:
        yield node.constant
    else:
        for graph in node_graphs(node):
            yield from _of_graph(graph)
