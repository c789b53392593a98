"""Step 2: every weight becomes an initializer of the main graph, under a unique name.

Constant nodes, ConstantOfShape nodes with a known shape and the initializers of nested graphs are
hoisted; Identity nodes that only give a weight a second name go. A weight keeps its name where no
other tensor of any scope has it; if several weights share one, the first keeps it (the main graph
before nested ones, then file order), and the others get .1, .2, ... Renamed are also names that
TensorRT's parser gives to weights of its own.

Left as they are: strings and sparse tensors (no TensorRT takes them), everything in the graphs of
nodes that are not ONNX's own, and ConstantOfShape nodes whose shape is computed.

An initializer that is an input too (IR version 3, or a default that a caller may override) is one no
longer: TensorRT knows no such inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.fills import Fills
from refit_agent.authoring.canonical.naming import Names
from refit_agent.authoring.canonical.scopes import child_graphs, definitions, is_standard, rename, replace_nodes
from refit_agent.authoring.canonical.values import Value, of_array
from refit_agent.authoring.errors import ModelUnsupported

_NUMBERS = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
_LEFT = ("sparse_value", "value_string", "value_strings")
#: The first IR version in which initializers need not be inputs.
_FIRST_IR_VERSION = 4


def hoist_constants(draft: Draft) -> None:
    """Move every dense weight of the model to ``draft.weights`` and rewrite all that reads it.

    Raises:
        ModelUnsupported: a Constant node without a value, or an initializer of a nested graph that
            is one of the inputs of that graph.
    """
    census = _Census()
    census.take(draft.graph)
    draft.names = Names(census.fixed)
    _Hoister(draft, census).graph(draft.graph, {}, "")
    draft.model.ir_version = max(draft.model.ir_version, _FIRST_IR_VERSION)


class _Census:
    """Counts all tensors of a model by name: in all, and those that are not weights we move."""

    def __init__(self) -> None:
        self.all: Counter[str] = Counter()
        self.fixed: set[str] = set()

    def take(self, graph: GraphProto, standard: bool = True) -> None:
        """Count the tensors of ``graph`` and those nested in it; ``standard`` is false inside of foreign nodes."""
        names = definitions(graph)
        self.all.update(names)
        moved: set[str] = set()
        if standard:
            moved = {t.name for t in graph.initializer if _is_dense(t)}
            moved.update(node.output[0] for node in graph.node if _is_constant(node))
        self.fixed.update(name for name in names if name not in moved)
        # Outputs that no node makes have to be made by one: then the name is a tensor's, not the weight's.
        self.fixed.update(o.name for o in graph.output)
        for node in graph.node:
            for child in child_graphs(node):
                self.take(child, standard and is_standard(node))


def _is_dense(tensor: TensorProto) -> bool:
    return bool(tensor.data_type != TensorProto.STRING)


def _is_constant(node: NodeProto) -> bool:
    """Whether it is a Constant node that is hoisted."""
    if not is_standard(node, "Constant"):
        return False
    return not any(
        a.name in _LEFT or (a.name == "value" and a.t.data_type == TensorProto.STRING) for a in node.attribute
    )


class _Hoister:
    def __init__(self, draft: Draft, census: _Census) -> None:
        self.draft = draft
        self.census = census
        self.fills = Fills(draft)

    def graph(self, graph: GraphProto, outer: Mapping[str, str], where: str) -> None:
        """Hoist the weights of ``graph``; ``outer`` maps all names around it to what they are now.

        ``where`` names the graph in messages; it is "" for the main graph.
        """
        outputs = {o.name for o in graph.output}
        names = {name: name for name in definitions(graph)}
        self._initializers(graph, names, where)
        gone = self._constants(graph, names)
        gone |= self._derived(graph, names, outer, outputs)
        visible = {**outer, **names}
        kept = []
        for node in graph.node:
            if node.output and node.output[0] in gone:
                if node.output[0] not in outputs or where:
                    continue  # those that are outputs of a nested graph come back in `_outputs`
                node = _identity(names[node.output[0]], node.output[0], node.name)
            else:
                self._rewrite(node, visible)
            kept.append(node)
        kept += self._outputs(graph, names, visible, kept, nested=bool(where))
        replace_nodes(graph, kept)
        for annotation in graph.quantization_annotation:
            for pair in annotation.quant_parameter_tensor_names:
                pair.value = visible.get(pair.value, pair.value)

    def _place(self, name: str, value: Value, hoisted: bool) -> str:
        final = self.draft.add_weight(name, value)
        if final != name:
            self.draft.renamed[final] = name
        self.draft.count("hoisted", int(hoisted))
        return final

    def _initializers(self, graph: GraphProto, names: dict[str, str], where: str) -> None:
        dense = [t for t in graph.initializer if _is_dense(t)]
        known = {t.name for t in dense}
        both = [i.name for i in graph.input if i.name in known]
        if both and where:
            detail = f"the initializer {both[0]!r} of {where} is one of the inputs of that graph, too"
            raise ModelUnsupported(path=self.draft.path, detail=detail)
        if both:
            self.draft.removed_inputs += both
            inputs = [i for i in graph.input if i.name not in known]
            del graph.input[:]
            graph.input.extend(inputs)
        for tensor in dense:
            names[tensor.name] = self._place(tensor.name, self.draft.source.value(tensor), bool(where))
        strings = [t for t in graph.initializer if not _is_dense(t)]
        del graph.initializer[:]
        graph.initializer.extend(strings)
        if strings or graph.sparse_initializer:
            self.draft.count("left_tensors", len(strings) + len(graph.sparse_initializer))

    def _constants(self, graph: GraphProto, names: dict[str, str]) -> set[str]:
        """Hoist the Constant nodes; gives their outputs."""
        gone = set()
        for node in graph.node:
            if _is_constant(node):
                name = node.output[0]
                names[name] = self._place(name, self._constant(node), hoisted=True)
                gone.add(name)
            elif is_standard(node, "Constant"):
                self.draft.count("left_tensors")
        return gone

    def _constant(self, node: NodeProto) -> Value:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                return self.draft.source.value(attribute.t)
            dtype = _NUMBERS.get(attribute.name)
            if dtype is not None and not attribute.ref_attr_name:
                return of_array(np.array(helper.get_attribute_value(attribute), dtype), dtype)
        raise ModelUnsupported(path=self.draft.path, detail=f"the Constant {node.output[0]!r} has no value")

    def _derived(
        self, graph: GraphProto, names: dict[str, str], outer: Mapping[str, str], outputs: set[str]
    ) -> set[str]:
        """Follow Identity and ConstantOfShape nodes from weight to weight; gives the outputs that became weights."""
        gone: set[str] = set()
        readers: dict[str, list[NodeProto]] = {}
        ready: list[NodeProto] = []
        weights = self.draft.weights
        for node in graph.node:
            if is_standard(node, "Identity", "ConstantOfShape") and len(node.input) == 1 and len(node.output) == 1:
                name = node.input[0]
                if names.get(name, outer.get(name, "")) in weights:
                    ready.append(node)
                else:
                    readers.setdefault(name, []).append(node)
        ready.reverse()
        while ready:
            node = ready.pop()
            read, made = node.input[0], node.output[0]
            final = names.get(read, outer.get(read, ""))
            if node.op_type == "ConstantOfShape":
                value = self.fills.value(node, weights[final])
                if value is None:
                    continue
                if made not in outputs and self.census.all[made] == 1:
                    self.draft.names.let_go(made)
                final = self._place(made, value, hoisted=True)
                self.draft.count("filled")
            else:
                self.draft.count("identities_removed", int(made not in outputs))
            names[made] = final
            gone.add(made)
            ready += reversed(readers.pop(made, []))
        return gone

    def _rewrite(self, node: NodeProto, visible: Mapping[str, str]) -> None:
        for position, name in enumerate(node.input):
            node.input[position] = visible.get(name, name)
        for child in child_graphs(node):
            if is_standard(node):
                where = f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"
                self.graph(child, visible, where)
            else:
                own = set(definitions(child))
                changed = {old: new for old, new in visible.items() if old != new and old not in own}
                rename(child, changed)
                for output in child.output:
                    output.name = changed.get(output.name, output.name)
                self.draft.count("foreign_graphs")

    def _outputs(
        self,
        graph: GraphProto,
        names: dict[str, str],
        visible: Mapping[str, str],
        nodes: list[NodeProto],
        nested: bool,
    ) -> list[NodeProto]:
        """Identity nodes for outputs that no node makes: weights, and for nested graphs tensors around them."""
        made = {name for node in nodes for name in node.output} | {i.name for i in graph.input}
        made |= {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        added: list[NodeProto] = []
        for output in graph.output:
            name = output.name
            source = visible.get(name, "")
            if name in made or not source:
                continue
            if nested and (name not in names or self.census.all[name] > 1):
                # the name belongs to a tensor around this graph, and must not be defined again
                output.name = self.draft.names.keep_or_fresh(name)
            added.append(_identity(source, output.name, ""))
            made.add(output.name)
        return added


def _identity(source: str, output: str, name: str) -> NodeProto:
    return helper.make_node("Identity", [source], [output], name=name)
