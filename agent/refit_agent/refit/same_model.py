"""Whether a caller's own weights belong to the bundle's model: the same graph, other values, and only where they are used.

A plan is made for one graph. The names and sizes that it asks for do not tell a transposed matrix from
a straight one, and what the builder folded or left in the plan is not asked for at all: an engine with
the new weights here and the old ones there would compute something that neither model does.
"""

from __future__ import annotations

from collections.abc import Iterable

from refit_agent.errors import OwnWeightsInvalid, WeightsMismatch
from refit_agent.weights import Attribute, Graph, Node, OnnxWeights, WeightRef


def require_same_model(bundle: OnnxWeights, own: OnnxWeights) -> None:
    """Check that ``own`` is the model ``bundle`` with other values. No plan bears on that: it is the file that is wrong.

    Raises:
        OwnWeightsInvalid: another graph, or another shape or type of a tensor.
        OnnxError: one of the models is not sound.
    """
    if _graph(bundle.model.graph) != _graph(own.model.graph):
        raise _another(own, "its main graph is not that of the bundle's model")
    if sorted(bundle.model.functions) != sorted(own.model.functions):
        raise _another(own, "its local functions are not those of the bundle's model")
    for identity, function in bundle.model.functions.items():
        if _nodes(function.nodes) != _nodes(own.model.functions[identity].nodes):
            raise _another(own, f"its function {function.name!r} is not that of the bundle's model")
    if bundle.keys() != own.keys():
        raise _another(own, f"only one of it and the bundle's model has the tensor {min(bundle.keys() ^ own.keys())!r}")
    for key, ref in bundle.items():
        other = own[key]
        if (ref.dtype, ref.shape) != (other.dtype, other.shape):
            words = f"{_described(other)}, and in the bundle's model it is {_described(ref)}"
            raise _another(own, f"its tensor {key!r} is {words}")


def require_kept_values(bundle: OnnxWeights, own: OnnxWeights, used: Iterable[str]) -> None:
    """Check that ``own``, which is the model ``bundle`` with other values, has them only where ``used`` (keys) says that
    the plan asks for them.

    Raises:
        WeightsMismatch: another value of a tensor that the plan keeps and a refit does not replace.
        OnnxError: one of the models is not sound.
    """
    replaced = set(used)
    for key, ref in bundle.items():
        if key not in replaced and not _same_bytes(ref, own[key]):
            detail = "its value differs from the bundle's, and the plan keeps that one: a refit does not replace it"
            raise WeightsMismatch(name=key, detail=detail)


def _another(own: OnnxWeights, detail: str) -> OwnWeightsInvalid:
    return OwnWeightsInvalid(path=str(own.path), detail=f"{detail}.")


def _described(ref: WeightRef) -> str:
    return f"{ref.dtype} {list(ref.shape)}"


def _graph(graph: Graph) -> tuple[object, ...]:
    return (graph.inputs, graph.outputs, tuple(sorted(graph.initializers)), _nodes(graph.nodes))


def _nodes(nodes: Iterable[Node]) -> tuple[object, ...]:
    return tuple((n.domain, n.op_type, n.inputs, n.outputs, _attributes(n)) for n in nodes)


def _attributes(node: Node) -> tuple[object, ...]:
    return tuple(sorted(((name, _value(a)) for name, a in node.attributes.items()), key=lambda pair: pair[0]))


def _value(attribute: Attribute) -> object:
    value = attribute.value
    if isinstance(value, Graph):
        return _graph(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Graph):
        return tuple(_graph(g) for g in value if isinstance(g, Graph))
    if isinstance(value, WeightRef):
        # A Constant node's tensor is in the mapping and compared there; any other is part of the graph.
        described = (value.dtype, value.shape)
        return described if value.kind == "constant" else (*described, value.array().tobytes())
    return (attribute.type, value, attribute.ref)


def _same_bytes(one: WeightRef, other: WeightRef) -> bool:
    if one.kind == "sparse" or one.dtype == "string":
        return False  # cannot be looked at: better refused than mixed
    import numpy as np

    return bool(np.array_equal(one.array().reshape(-1).view(np.uint8), other.array().reshape(-1).view(np.uint8)))
