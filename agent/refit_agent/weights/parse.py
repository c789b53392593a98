"""GraphProto, NodeProto, AttributeProto, FunctionProto -> records.

Field numbers and attribute types: onnx.proto. A field that may occur once, and says what a tensor or
a node is, must not occur twice: protobuf would merge the two or let the last one win, and which one
the author meant is a guess.
"""

from __future__ import annotations

import struct
from typing import cast

from refit_agent.weights.constants import constant_ref
from refit_agent.weights.parts import DEFAULTS, FIELD_OF, VALUES, read_floats, read_opsets, value_name
from refit_agent.weights.records import (
    Attribute,
    AttributeValue,
    Function,
    Graph,
    Node,
    OnnxModel,
    WeightRef,
)
from refit_agent.weights.scan import Layout
from refit_agent.weights.tensors import TensorReader
from refit_agent.weights.wire import BYTES, FIXED32, VARINT, Wire, signed64

# Graphs inside graphs; TensorRT's ONNX parser stops at the same depth.
MAX_DEPTH = 24


class GraphReader:
    """Reads graphs, nodes and functions; not thread-safe: the caller holds a lock.

    Every method raises OnnxMalformed, and what TensorReader raises.
    """

    def __init__(self, wire: Wire, tensors: TensorReader) -> None:
        self.wire = wire
        self.tensors = tensors
        self._scopes: dict[int, str] = {}
        self._taken: set[str] = {""}

    def model(self, layout: Layout) -> OnnxModel:
        """The whole model."""
        functions: dict[tuple[str, str, str], Function] = {}
        for start, stop in layout.functions:
            function = self.function(start, stop)
            key = (function.domain, function.name, function.overload)
            if key in functions:
                self.wire.fail(start, f"the function {key} is there twice")
            functions[key] = function
        return OnnxModel(
            ir_version=signed64(layout.ir_version),
            opsets=read_opsets(self.wire, layout.opsets),
            graph=self.graph(*layout.graph, "", 1),
            functions=functions,
        )

    def graph(self, start: int, stop: int, scope: str, depth: int) -> Graph:
        """The GraphProto in the range; ``depth`` is 1 for the main graph."""
        wire = self.wire
        if depth > MAX_DEPTH:
            wire.fail(start, f"graphs are nested more than {MAX_DEPTH} deep")
        name = ""
        dense: dict[str, WeightRef] = {}
        sparse: dict[str, WeightRef] = {}
        nodes: list[Node] = []
        inputs: list[str] = []
        outputs: list[str] = []
        names: set[str] = set()
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in (1, 2, 5, 11, 12, 15):
                wire.expect(number, kind, BYTES, at)
            if number == 1:
                nodes.append(self.node(value, end, scope, len(nodes), depth))
                self._claim_constant(nodes[-1], names, at)
            elif number == 5:
                ref = self.tensors.tensor(value, end, scope, "initializer")
                self._claim(ref.name, names, at)
                dense[ref.name] = ref
            elif number == 15:
                ref = self.tensors.sparse(value, end, scope)
                self._claim(ref.name, names, at)
                sparse[ref.name] = ref
            elif number == 11:
                inputs.append(value_name(wire, value, end))
            elif number == 12:
                outputs.append(value_name(wire, value, end))
            elif number == 2:
                name = wire.text(value, end)
        return Graph(name, scope, {**dense, **sparse}, tuple(nodes), tuple(inputs), tuple(outputs))

    def function(self, start: int, stop: int) -> Function:
        """The FunctionProto in the range."""
        wire = self.wire
        texts = {1: "", 10: "", 13: ""}
        lists: dict[int, list[str]] = {4: [], 5: [], 6: []}
        bodies: list[tuple[int, int, int]] = []
        opsets: list[tuple[int, int]] = []
        proto_defaults: list[tuple[int, int]] = []
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in (1, 4, 5, 6, 7, 9, 10, 11, 13):
                wire.expect(number, kind, BYTES, at)
            if number in texts:
                if texts[number]:
                    wire.fail(at, f"a function has its field {number} twice")
                texts[number] = wire.text(value, end)
            elif number in lists:
                lists[number].append(wire.text(value, end))
            elif number == 7:
                bodies.append((value, end, at))
            elif number == 9:
                opsets.append((value, end))
            elif number == 11:
                proto_defaults.append((value, end))
        name, domain, overload = texts[1], texts[10], texts[13]
        label = ":".join(part for part in (f"{domain}.{name}" if domain else name, overload) if part)
        scope = self._scope(start, f"function {label}")
        defaults: dict[str, Attribute] = {}
        for place, end in proto_defaults:
            attribute = self.attribute(place, end, scope, 1, None)
            defaults[attribute.name] = attribute
        nodes: list[Node] = []
        names: set[str] = set()
        for place, end, at in bodies:
            nodes.append(self.node(place, end, scope, len(nodes), 1))
            self._claim_constant(nodes[-1], names, at)
        return Function(
            domain=domain,
            name=name,
            overload=overload,
            scope=scope,
            inputs=tuple(lists[4]),
            outputs=tuple(lists[5]),
            nodes=tuple(nodes),
            attributes=tuple(lists[6]),
            defaults=defaults,
            opsets=read_opsets(wire, opsets),
        )

    def node(self, start: int, stop: int, scope: str, index: int, depth: int) -> Node:
        """The NodeProto in the range, which is number ``index`` of its graph."""
        wire = self.wire
        texts = {3: "", 4: "", 7: "", 8: ""}
        inputs: list[str] = []
        outputs: list[str] = []
        ranges: list[tuple[int, int]] = []
        seen: set[int] = set()
        for number, kind, value, end, at in wire.fields(start, stop):
            if number == 1 or number == 2:
                wire.expect(number, kind, BYTES, at)
                (inputs if number == 1 else outputs).append(wire.text(value, end))
            elif number == 5:
                wire.expect(number, kind, BYTES, at)
                ranges.append((value, end))
            elif number in texts:
                wire.expect(number, kind, BYTES, at)
                if number in seen:
                    wire.fail(at, f"a node has its field {number} twice")
                seen.add(number)
                texts[number] = wire.text(value, end)
        name, op_type, domain, overload = texts[3], texts[4], texts[7], texts[8]
        if not op_type:
            wire.fail(start, "a node has no operator")
        is_constant = op_type == "Constant" and domain in ("", "ai.onnx")
        if is_constant and not (outputs and outputs[0]):
            wire.fail(start, "a Constant node has no output")
        label = f"{scope}/{name or op_type}[{index}]" if scope else f"{name or op_type}[{index}]"
        attributes: dict[str, Attribute] = {}
        constant: WeightRef | None = None
        for place, end in ranges:
            attribute = self.attribute(place, end, label, depth, outputs[0] if is_constant else None, scope)
            if attribute.name in attributes:
                wire.fail(place, f"a node has the attribute {attribute.name!r} twice")
            attributes[attribute.name] = attribute
            if is_constant:
                if constant is not None:
                    wire.fail(place, f"the Constant {outputs[0]!r} has several values")
                constant = constant_ref(self.tensors, attribute, place, end, scope, outputs[0])
        if is_constant and constant is None and not any(a.ref for a in attributes.values()):
            wire.fail(start, f"the Constant {outputs[0]!r} has no value")
        return Node(op_type, domain, name, tuple(inputs), tuple(outputs), attributes, overload, constant)

    def constant_output(self, start: int, stop: int) -> str | None:
        """Output 0 if the node in the range is a Constant node, else None; looks at nothing more."""
        wire = self.wire
        op_type = domain = output = None
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in (2, 4, 7):
                wire.expect(number, kind, BYTES, at)
            if number == 4:
                if op_type is not None:
                    wire.fail(at, "a node has its field 4 twice")
                op_type = wire.text(value, end)
            elif number == 7:
                domain = wire.text(value, end)
            elif number == 2 and output is None:
                output = wire.text(value, end)
        if op_type != "Constant" or (domain or "") not in ("", "ai.onnx"):
            return None
        if not output:
            wire.fail(start, "a Constant node has no output")
        return output

    def attribute(
        self, start: int, stop: int, label: str, depth: int, constant: str | None, scope: str | None = None
    ) -> Attribute:
        """The AttributeProto in the range.

        Args:
            label: scope path of the node or function it belongs to.
            depth: of the graph that the node is in.
            constant: output 0 of the Constant node it belongs to, if it is one.
            scope: scope that its tensors are in; ``label`` if None.
        """
        wire = self.wire
        name = ref = ""
        type_ = 0
        found = 0  # field number of the value
        single: tuple[int, int] = (0, 0)
        ranges: list[tuple[int, int]] = []
        numbers: list[int] = []
        floats: list[float] = []
        for number, kind, value, end, at in wire.fields(start, stop):
            if number in VALUES:
                is_list = VALUES[number][1]
                if found and (found != number or not is_list):
                    wire.fail(at, "an attribute has several values")
                found = number
                if number == 8:
                    numbers.extend(wire.signed_varints(kind, value, end, at))
                elif number == 7:
                    floats.extend(read_floats(wire, kind, value, end, at))
                else:
                    wire.expect(number, kind, {2: FIXED32, 3: VARINT}.get(number, BYTES), at)
                    single = (value, end)
                    if is_list:
                        ranges.append(single)
            elif number == 1 or number == 21:
                wire.expect(number, kind, BYTES, at)
                text = wire.text(value, end)
                if number == 1:
                    if name:
                        wire.fail(at, "an attribute has two names")
                    name = text
                else:
                    if ref:
                        wire.fail(at, "an attribute refers to two others")
                    ref = text
            elif number == 20:
                wire.expect(number, kind, VARINT, at)
                if type_:
                    wire.fail(at, "an attribute has two types")
                type_ = value
        if not name:
            wire.fail(start, "an attribute has no name")
        if type_ and type_ not in FIELD_OF:
            wire.fail(start, f"the attribute {name!r} has the unknown type {type_}")
        if found and type_ and FIELD_OF[type_] != found:
            wire.fail(start, f"the attribute {name!r} has a value that is not of its type {type_}")
        if found and ref:
            wire.fail(start, f"the attribute {name!r} has a value and refers to {ref!r} too")
        if not found:
            if type_ and not ref and type_ not in DEFAULTS and type_ not in (13, 14):
                wire.fail(start, f"the attribute {name!r} has no value")
            return Attribute(name, type_, None if ref else DEFAULTS.get(type_), ref)
        type_ = VALUES[found][0]
        home = label if scope is None else scope
        tensor_kind = "attribute" if constant is None else "constant"
        result: AttributeValue
        if found == 2:
            result = cast(float, struct.unpack_from("<f", wire.data, single[0])[0])
        elif found == 3:
            result = signed64(single[0])
        elif found == 4:
            result = bytes(wire.data[single[0] : single[1]])
        elif found == 5:
            result = self.tensors.tensor(*single, home, tensor_kind, constant)
        elif found == 6:
            result = self.graph(*single, self._scope(single[0], f"{label}.{name}"), depth + 1)
        elif found == 7:
            result = tuple(floats)
        elif found == 8:
            result = tuple(numbers)
        elif found == 9:
            result = tuple(bytes(wire.data[place:end]) for place, end in ranges)
        elif found == 10:
            result = tuple(self.tensors.tensor(*place, home, "attribute") for place in ranges)
        elif found == 11:
            result = tuple(
                self.graph(*place, self._scope(place[0], f"{label}.{name}[{index}]"), depth + 1)
                for index, place in enumerate(ranges)
            )
        elif found == 22:
            result = self.tensors.sparse(*single, home, constant)
        elif found == 23:
            result = tuple(self.tensors.sparse(*place, home) for place in ranges)
        else:
            result = None
        return Attribute(name, type_, result, ref)

    def _claim(self, name: str, names: set[str], at: int) -> None:
        if not name:
            self.wire.fail(at, "an initializer has no name")
        if name in names:
            self.wire.fail(at, f"the tensor {name!r} is there twice in one graph")
        names.add(name)

    def _claim_constant(self, node: Node, names: set[str], at: int) -> None:
        if node.constant is not None:
            self._claim(node.constant.name, names, at)

    def _scope(self, start: int, wanted: str) -> str:
        """A scope path nobody else has; the same place in the file always gets the same one."""
        known = self._scopes.get(start)
        if known is None:
            known = wanted
            number = 1
            while known in self._taken:  # two paths can read alike: names may contain any character
                number += 1
                known = f"{wanted}~{start}" if number == 2 else f"{wanted}~{start}~{number}"
            self._scopes[start] = known
            self._taken.add(known)
        return known
