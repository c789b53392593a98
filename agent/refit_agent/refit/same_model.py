"""Whether a caller's own weights belong to the bundle's model: the same graph, other values, and only where they are used.

A plan is made for one graph. The names and sizes that it asks for do not tell a transposed matrix from
a straight one, and what the builder folded or left in the plan is not asked for at all: an engine with
the new weights here and the old ones there would compute something that neither model does.
"""

from __future__ import annotations

from collections.abc import Iterable

from refit_agent.errors import WeightsMismatch
from refit_agent.weights import Attribute, Graph, Node, OnnxWeights, WeightRef


def require_same_model(bundle: OnnxWeights, own: OnnxWeights, used: Iterable[str]) -> None:
    """Check that ``own`` may stand in for ``bundle`` where ``used`` (keys) are all the tensors that the plan asks for.

    Raises:
        WeightsMismatch: another graph, another shape or type of a tensor, or another value of a tensor that
            the plan keeps and a refit does not replace.
        OnnxError: one of the models is not sound.
    """
    _require_equal(_graph(bundle.model.graph), _graph(own.model.graph), "the main graph")
    functions = [sorted(m.model.functions) for m in (bundle, own)]
    _require_equal(functions[0], functions[1], "the local functions")
    for identity, function in bundle.model.functions.items():
        other = own.model.functions[identity]
        _require_equal(_nodes(function.nodes), _nodes(other.nodes), f"the function {function.name!r}")
    if bundle.keys() != own.keys():
        raise WeightsMismatch(name=min(bundle.keys() ^ own.keys()), detail="only one of the two models has it")
    replaced = set(used)
    for key, ref in bundle.items():
        other_ref = own[key]
        if (ref.dtype, ref.shape) != (other_ref.dtype, other_ref.shape):
            detail = f"it is {other_ref.dtype} {other_ref.shape}, and the bundle's is {ref.dtype} {ref.shape}"
            raise WeightsMismatch(name=key, detail=detail)
        if key not in replaced and not _same_bytes(ref, other_ref):
            detail = "its value differs from the bundle's, and the plan keeps that one: a refit does not replace it"
            raise WeightsMismatch(name=key, detail=detail)


def _require_equal(one: object, other: object, what: str) -> None:
    if one != other:
        raise WeightsMismatch(name="(the whole model)", detail=f"{what} is not that of the bundle's model")


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
