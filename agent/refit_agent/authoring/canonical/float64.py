"""Step 4: float64 becomes float32, the weights and the whole computation with them.

TensorRT has no double. Types in casts, in nodes that make tensors, in nested graphs and in value_info
change together. Inputs and outputs of the model keep their declared type, behind a Cast: callers,
golden data and the CPU target go on unchanged, and TensorRT's parser takes a declared DOUBLE for FLOAT
and the Cast for nothing. A sequence or map of float64 at the border has no Cast, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import AttributeProto, NodeProto, SparseTensorProto, TensorProto, TypeProto, helper

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.narrowing import Narrowing
from refit_agent.authoring.canonical.scopes import all_graphs, all_nodes, child_graphs, is_standard, rename, uses
from refit_agent.authoring.canonical.values import raw_bytes
from refit_agent.authoring.errors import ModelUnsupported

#: Attributes of ONNX's own operators that hold an element type.
_TYPE_ATTRIBUTES = frozenset(
    {"to", "dtype", "output_datatype", "output_dtype", "stash_type", "precision", "softmax_precision"}
)
_CONVERTED_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def replace_float64(draft: Draft) -> Narrowing:
    """Rewrite the model; gives the record of what rounding did, which fills up while weights are written.

    Raises:
        ModelUnsupported: float64 stands where no Cast reaches it; later, from the weights: a number
            that float32 cannot hold.
    """
    return _Converter(draft).run()


class _Converter:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.graph = draft.graph
        self.narrowing = Narrowing(draft.path)
        self.changes = 0

    def run(self) -> Narrowing:
        inputs = [i.name for i in self.graph.input if self._at_border(i.type, f"input {i.name!r}")]
        known = {i.name for i in self.graph.input}
        outputs = [
            o.name for o in self.graph.output if self._at_border(o.type, f"output {o.name!r}") and o.name not in known
        ]
        for name, value in self.draft.weights.items():
            if value.dtype == "float64":
                self.draft.weights[name] = self.narrowing.of(name, value)
        border = self._border_casts(set(outputs))
        self._nodes(self.graph.node, border)
        for graph in all_graphs(self.graph):
            entries = list(graph.value_info)
            if graph is not self.graph:
                entries += [*graph.input, *graph.output]
            for entry in entries:
                self._type(entry.type)
        for name in dict.fromkeys(outputs):
            if name not in border:
                self._cast_output(name)
        for name in inputs:
            self._cast_input(name)
        self._conclude()
        return self.narrowing

    def _at_border(self, declared: TypeProto, label: str) -> bool:
        """Whether an input or output is a float64 tensor.

        Raises:
            ModelUnsupported: it is float64 in a form that cannot be cast.
        """
        if declared.WhichOneof("value") == "tensor_type":
            return bool(declared.tensor_type.elem_type == TensorProto.DOUBLE)
        probe = TypeProto()
        probe.CopyFrom(declared)
        before = self.changes
        self._type(probe)
        if self.changes != before:
            raise ModelUnsupported(path=self.draft.path, detail=f"the {label} is float64, and no plain tensor")
        return False

    def _border_casts(self, outputs: set[str]) -> set[str]:
        """The outputs that a cast to float64 makes which nothing else reads; these casts stay."""
        if not outputs:
            return set()
        counts = uses(self.graph)
        return {
            node.output[0]
            for node in self.graph.node
            if is_standard(node, "Cast")
            and node.output[0] in outputs
            and counts[node.output[0]] == 1
            and any(a.name == "to" and a.i == TensorProto.DOUBLE for a in node.attribute)
        }

    def _cast_output(self, name: str) -> None:
        """Make the output by a cast of what makes it now; all others read that, or where it is a weight, the weight."""
        self.changes += 1
        for node in self.graph.node:
            if name in node.output and is_standard(node, "Identity") and node.input[0] in self.draft.weights:
                cast = helper.make_node("Cast", [node.input[0]], [name], name=node.name, to=TensorProto.DOUBLE)
                node.CopyFrom(cast)
                return
        inner = self.draft.names.keep_or_fresh(f"{name}.float32")
        for node in self.graph.node:
            for position, output in enumerate(node.output):
                if output == name:
                    node.output[position] = inner
        rename(self.graph, {name: inner})
        self.graph.node.append(helper.make_node("Cast", [inner], [name], to=TensorProto.DOUBLE))

    def _cast_input(self, name: str) -> None:
        """Let all but casts read the input as float32."""
        inner = self.draft.names.keep_or_fresh(f"{name}.float32")
        rename(self.graph, {name: inner}, lambda node: not is_standard(node, "Cast"))
        if uses(self.graph)[inner]:
            self.graph.node.insert(0, helper.make_node("Cast", [name], [inner], to=TensorProto.FLOAT))
            self.changes += 1
        else:
            self.draft.names.let_go(inner)

    def _nodes(self, nodes: Iterable[NodeProto], border: set[str]) -> None:
        for node in nodes:
            if node.domain in _CONVERTED_DOMAINS and not border.intersection(node.output):
                for attribute in node.attribute:
                    self._attribute(node, attribute)
            for child in child_graphs(node):
                self._nodes(child.node, set())

    def _attribute(self, node: NodeProto, attribute: AttributeProto) -> None:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.DOUBLE and node.domain != "ai.onnx.ml":
            if node.op_type == "BitCast":
                detail = f"the BitCast {node.name or node.output[0]!r} makes float64 of other bits"
                raise ModelUnsupported(path=self.draft.path, detail=detail)
            attribute.i = TensorProto.FLOAT
            self.changes += 1
        elif attribute.name == "to" and attribute.s == b"DOUBLE":  # the form of operator set 5 and earlier
            attribute.s = b"FLOAT"
            self.changes += 1
        where = f"{attribute.name} of {node.op_type} {node.name or (node.output[0] if node.output else '')!r}"
        if attribute.type == AttributeProto.TYPE_PROTO:
            self._type(attribute.tp)
        for tensor in [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors:
            self._tensor(tensor, where)
        sparse: list[SparseTensorProto] = list(attribute.sparse_tensors)
        for tensor in [attribute.sparse_tensor, *sparse] if attribute.HasField("sparse_tensor") else sparse:
            self._tensor(tensor.values, where)

    def _tensor(self, tensor: TensorProto, where: str) -> None:
        """Convert a tensor that stays in an attribute."""
        if tensor.data_type == TensorProto.DOUBLE:
            value = self.narrowing.of(where, self.draft.source.value(tensor))
            raw = bytes(raw_bytes(value.make()))
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.data_type = TensorProto.FLOAT
            tensor.raw_data = raw

    def _type(self, declared: TypeProto) -> None:
        kind = declared.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            tensor = getattr(declared, kind)
            if tensor.elem_type == TensorProto.DOUBLE:
                tensor.elem_type = TensorProto.FLOAT
                self.changes += 1
        elif kind in ("sequence_type", "optional_type"):
            self._type(getattr(declared, kind).elem_type)
        elif kind == "map_type":
            self._type(declared.map_type.value_type)

    def _conclude(self) -> None:
        self.narrowing.changed = self.narrowing.changed or self.changes > 0
        if self.narrowing.changed:
            foreign = sorted({n.domain for n in all_nodes(self.graph) if n.domain not in _CONVERTED_DOMAINS})
            if foreign:
                self.draft.notes.append(
                    f"float64 became float32, and nobody knows what nodes of {', '.join(foreign)} make of it."
                )
