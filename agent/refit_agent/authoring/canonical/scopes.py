"""Which names a graph uses, defines and captures: the scoping rules of nested graphs.

A name in a nested graph (a branch of If, the body of Loop or Scan) means the tensor of that graph if
there is one, otherwise that of the nearest graph around it. Order does not matter here: ONNX Runtime
takes unsorted graphs too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto


def is_standard(node: NodeProto, *op_types: str) -> bool:
    """Whether the node is of ONNX's own domain and one of the given operators, or any if none is given."""
    return node.domain in ("", "ai.onnx") and (not op_types or node.op_type in op_types)


def child_graphs(node: NodeProto) -> list[GraphProto]:
    """The graphs in a node's attributes; an If's then branch first, wherever it stands in the file."""
    found = [a for a in node.attribute if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)]
    found.sort(key=lambda a: a.name != "then_branch")
    return [g for a in found for g in ([a.g] if a.type == AttributeProto.GRAPH else a.graphs)]


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, of nested graphs too."""
    for node in graph.node:
        yield node
        for child in child_graphs(node):
            yield from all_nodes(child)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every one nested in it."""
    yield graph
    for node in graph.node:
        for child in child_graphs(node):
            yield from all_graphs(child)


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor in the graph and those nested in it: initializers, and those in attributes and sparse tensors."""
    for inner in all_graphs(graph):
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in all_nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)


def definitions(graph: GraphProto) -> list[str]:
    """Every name that the graph itself defines, an initializer that is an input too only once."""
    names = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    known = set(names)
    names += [i.name for i in graph.input if i.name not in known]
    names += [o for node in graph.node for o in node.output if o]
    return names


def uses(graph: GraphProto) -> Counter[str]:
    """How often each tensor that the graph can see is read, by nested graphs and as an output too."""
    found: Counter[str] = Counter()
    for node in graph.node:
        found.update(name for name in node.input if name)
        for child in child_graphs(node):
            found.update(captures(child))
    found.update(o.name for o in graph.output if o.name)
    for annotation in graph.quantization_annotation:
        found.update(pair.value for pair in annotation.quant_parameter_tensor_names)
    return found


def captures(graph: GraphProto) -> Counter[str]:
    """How often a nested graph reads each tensor of the graphs around it."""
    own = set(definitions(graph))
    return Counter({name: count for name, count in uses(graph).items() if name not in own})


def rename(graph: GraphProto, names: Mapping[str, str], wanted: Callable[[NodeProto], bool] = lambda _: True) -> None:
    """Let nodes read other tensors: ``names`` maps old to new, of this graph or those around it.

    Nested graphs are changed where the name is not one of their own. What a nested graph hands out
    must not be in ``names``. Outputs of ``graph`` itself stay; so do nodes that are not ``wanted``.
    """
    for node in graph.node:
        if wanted(node):
            for position, name in enumerate(node.input):
                if name in names:
                    node.input[position] = names[name]
        for child in child_graphs(node):
            own = set(definitions(child))
            left = {old: new for old, new in names.items() if old not in own}
            if left:
                rename(child, left, wanted)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make ``nodes``, some of them the graph's own, the nodes of the graph."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def in_reading_order(graph: GraphProto) -> Iterator[str]:
    """The names of the tensors that nodes read, in file order, nested graphs at their node; with repetitions."""
    for node in graph.node:
        yield from node.input
        for child in child_graphs(node):
            yield from in_reading_order(child)
