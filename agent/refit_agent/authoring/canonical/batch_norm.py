"""Step 3: BatchNormalization with constant parameters becomes part of its Conv, or one Mul and one Add.

TensorRT's parser folds it as well, but names the folded weights after counters that differ from
version to version; folded here, they are initializers with names.

It goes into the Conv or ConvTranspose that makes its input, if nothing else reads that tensor. Any
other becomes Mul and Add with weights of shape [channels, 1, ...], for which the rank of the tensor must
be known. Left as it is, with a note: the training form, the form of operator set 6 and earlier unless
it can go into a Conv, and whatever cannot be folded in finite numbers of its type.
"""

from __future__ import annotations

from collections import Counter

from onnx import GraphProto, NodeProto, helper

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.fold import (
    Affine,
    Kernel,
    affine,
    channel_vectors,
    folded_bias,
    folded_kernel,
)
from refit_agent.authoring.canonical.inferred import Inferred, inferred_model, known_tensors, tensor_behind
from refit_agent.authoring.canonical.scopes import child_graphs, is_standard, replace_nodes, uses
from refit_agent.authoring.canonical.values import FLOATS, Value
from refit_agent.weights.batch_norms import DEFAULT_EPSILON

#: Mul and Add broadcast as numpy does since this operator set; before it, they need an axis.
_BROADCASTING = 7
#: From this one on the parameters may have another type than the tensor.
_MIXED_TYPES = 15
_WITH_TRAINING_MODE = 14


def fold_batch_norms(draft: Draft) -> None:
    """Fold what can be folded; every BatchNormalization that stays is named in the notes, with its reason."""
    if any(_has_batch_norm(node) for node in draft.graph.node):
        _Folder(draft).graph(draft.graph, inferred_model(draft).graph)


def _has_batch_norm(node: NodeProto) -> bool:
    return is_standard(node, "BatchNormalization") or any(
        _has_batch_norm(inner) for child in child_graphs(node) for inner in child.node
    )


class _Folder:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.opset = draft.opset()
        self.node_names: set[str] = set()  # of the graph that is worked on
        self.weight_uses = uses(draft.graph)  # names of weights are unique, so this holds for every scope

    def graph(self, graph: GraphProto, inferred: GraphProto) -> None:
        """Fold in ``graph`` and those nested in it; ``inferred`` is the same graph with the inferred types."""
        for node, twin in zip(graph.node, inferred.node, strict=True):
            if is_standard(node):
                for child, other in zip(child_graphs(node), child_graphs(twin), strict=True):
                    self.graph(child, other)
        known = known_tensors(inferred)
        makers = {name: node for node in graph.node for name in node.output}
        counts = uses(graph)
        self.node_names = {node.name for node in graph.node if node.name}
        nodes: list[NodeProto] = []
        for node in graph.node:
            if is_standard(node, "BatchNormalization"):
                done = self._fold(node, makers, counts, known)
                if isinstance(done, str):
                    label = node.name or (node.output[0] if node.output else "")
                    self.draft.notes.append(f"BatchNormalization {label!r} stays: {done}.")
                    self.draft.count("batch_norms_left")
                else:
                    nodes += done
                    continue
            nodes.append(node)
        replace_nodes(graph, nodes)

    def _fold(
        self, node: NodeProto, makers: dict[str, NodeProto], counts: Counter[str], known: dict[str, Inferred]
    ) -> list[NodeProto] | str:
        """The nodes in place of ``node`` (none where a Conv has taken it in), or why it stays."""
        obstacle = self._obstacle(node)
        if obstacle:
            return obstacle
        parameters = [self.draft.weights[name] for name in node.input[1:5]]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), DEFAULT_EPSILON)
        change = affine(parameters[0], parameters[1], parameters[2], parameters[3], epsilon)
        if change is None:
            return "its parameters give numbers that are not finite"
        read, made = node.input[0], node.output[0]
        maker = makers.get(read)
        kernel = self._kernel(maker) if maker is not None else None
        if maker is not None and kernel is not None and counts[read] == 1 and self._into_conv(maker, kernel, change):
            maker.output[0] = made
            makers[made] = maker
            self.draft.count("folded")
            return []
        if self.opset < _BROADCASTING:
            return f"it cannot go into a Conv, and operator set {self.opset} has no broadcasting"
        dtype, rank = tensor_behind(read, makers, known, self.draft.weights)
        if self.opset < _MIXED_TYPES:
            dtype = parameters[0].dtype
        if dtype not in FLOATS or rank is None or rank < 2:
            return f"the tensor {read!r} has no known type and rank"
        vectors = channel_vectors(change, dtype, rank)
        if vectors is None:
            return f"{dtype} cannot hold the folded parameters"
        self.draft.count("scaled")
        return self._mul_add(node, vectors)

    def _obstacle(self, node: NodeProto) -> str:
        """Why the node is not one that computes with constants, or ""."""
        numbers = {a.name: a.i for a in node.attribute}
        if len(node.input) < 5 or not node.output or not node.output[0]:
            return "it has too few inputs or outputs"
        if any(node.output[1:]) or (self.opset >= _WITH_TRAINING_MODE and numbers.get("training_mode")):
            return "it is in its training form"
        if self.opset < _BROADCASTING and not numbers.get("is_test"):
            return "it is in its training form (is_test is 0)"
        if self.opset < 9 and numbers.get("spatial", 1) != 1:
            return "it has parameters for every element (spatial is 0)"
        parameters = [self.draft.weights.get(name) for name in node.input[1:5]]
        shapes = {None if p is None else p.shape for p in parameters}
        if None in shapes:
            return "its parameters are computed"
        if len(shapes) != 1 or len(shapes.pop() or ()) != 1:
            return "its parameters are no four lists of one length"
        if any(p is not None and p.dtype not in FLOATS for p in parameters):
            return "its parameters are of a type that is not folded"
        return ""

    def _kernel(self, maker: NodeProto) -> Kernel | None:
        """The constant weight of a Conv or ConvTranspose; None for any other node, or a bias that is computed."""
        if not is_standard(maker, "Conv", "ConvTranspose") or len(maker.input) < 2:
            return None
        value = self.draft.weights.get(maker.input[1])
        if value is None or value.dtype not in FLOATS:
            return None
        bias = maker.input[2] if len(maker.input) > 2 else ""
        if bias and bias not in self.draft.weights:
            return None
        group = next((a.i for a in maker.attribute if a.name == "group"), 1)
        return Kernel(value, maker.op_type == "ConvTranspose", group)

    def _into_conv(self, conv: NodeProto, kernel: Kernel, change: Affine) -> bool:
        """Put new weights into ``conv``; False, and nothing changed, if they do not fit or their type cannot hold them."""
        if kernel.channels != len(change.factor):
            return False
        bias = conv.input[2] if len(conv.input) > 2 else ""
        old = self.draft.weights[bias] if bias else None
        if old is not None and old.count != len(change.factor):
            return False
        weight = folded_kernel(kernel, change.factor)
        shift = folded_bias(old, change, kernel.value.dtype)
        if weight is None or shift is None:
            return False
        name = conv.input[1]
        conv.input[1] = self._replace(name, weight)
        if bias:
            conv.input[2] = self._replace(bias, shift)
            return True
        base = name.removesuffix("weight") + "bias" if name.endswith("weight") else name + ".bias"
        made = self.draft.add_weight(base, shift)
        self.weight_uses[made] = 1
        del conv.input[2:]
        conv.input.append(made)
        return True

    def _replace(self, name: str, value: Value) -> str:
        """Put ``value`` under ``name`` if only one node reads that, otherwise under a new name; gives the name."""
        if self.weight_uses[name] <= 1:
            self.draft.weights[name] = value
            return name
        self.weight_uses[name] -= 1
        copy = self.draft.add_weight(name, value)
        self.weight_uses[copy] = 1
        self.draft.renamed[copy] = name
        return copy

    def _mul_add(self, node: NodeProto, vectors: tuple[Value, Value]) -> list[NodeProto]:
        factor = self.draft.add_weight(f"{node.input[1]}.folded", vectors[0])
        shift = self.draft.add_weight(f"{node.input[2]}.folded", vectors[1])
        self.weight_uses.update((factor, shift))
        between = self.draft.names.keep_or_fresh(f"{node.output[0]}.scaled")
        return [
            helper.make_node("Mul", [node.input[0], factor], [between], name=self._node_name(node, "mul")),
            helper.make_node("Add", [between, shift], [node.output[0]], name=self._node_name(node, "add")),
        ]

    def _node_name(self, node: NodeProto, kind: str) -> str:
        """A name for a node in place of ``node``: ONNX Runtime refuses two nodes of one name in a graph."""
        if not node.name:
            return ""
        found, number = f"{node.name}.{kind}", 0
        while found in self.node_names:
            number += 1
            found = f"{node.name}.{kind}.{number}"
        self.node_names.add(found)
        return found
