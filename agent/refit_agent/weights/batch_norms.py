"""The BatchNormalization nodes that a builder can fold into constants."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from refit_agent.weights.records import BatchNorm, Graph, Node

# The operator's default, as the float32 that it is.
DEFAULT_EPSILON: float = struct.unpack("<f", struct.pack("<f", 1e-5))[0]


def node_graphs(node: Node) -> Iterator[Graph]:
    """The graphs in a node's attributes, in file order; an If's then branch before its else branch,
    although ONNX's own helper writes attributes by alphabet: TensorRT's parser goes that way."""
    attributes = list(node.attributes.values())
    if node.op_type == "If" and node.is_standard:
        attributes.sort(key=lambda attribute: attribute.name != "then_branch")
    for attribute in attributes:
        value = attribute.value
        if isinstance(value, Graph):
            yield value
        elif isinstance(value, tuple):
            for entry in value:
                if isinstance(entry, Graph):
                    yield entry


def graph_batch_norms(graph: Graph, outer: frozenset[str]) -> Iterator[BatchNorm]:
    """The foldable BatchNormalizations of a graph and those nested in it."""
    own = {name for name, ref in graph.initializers.items() if ref.kind != "sparse"}
    own.update(node.outputs[0] for node in graph.nodes if node.constant and node.constant.kind != "sparse")
    computed = set(graph.inputs)
    for node in graph.nodes:
        computed.update(node.outputs)
    visible = frozenset(outer - computed | own)
    for node in graph.nodes:
        for nested in node_graphs(node):
            yield from graph_batch_norms(nested, visible)
        if node.op_type != "BatchNormalization" or not node.is_standard or len(node.inputs) < 5:
            continue
        if not visible.issuperset(node.inputs[1:5]):
            continue
        epsilon = node.attributes.get("epsilon")
        value = epsilon.value if epsilon else DEFAULT_EPSILON
        if not isinstance(value, float):
            continue  # comes from the call of a function, so it cannot be folded here
        _, scale, bias, mean, var = node.inputs[:5]
        output = node.outputs[0] if node.outputs else ""
        yield BatchNorm(node.name, graph.scope, scale, bias, mean, var, value, output)
