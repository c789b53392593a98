"""The walk of the ONNX parser over a model: every weight and node, in the order in which it meets them.

Engine names are handed out along this walk, so its order is the whole secret of the numbered names.
Source: weight_naming sections 1, 2 (traversal order), 3 and 4.

    outputs, inputs, initializers of the main graph, then its nodes in topological order;
    If: then, else (only the chosen one if the condition is a constant); Loop, Scan: the body;
    a local function: its body, in listed order, again at every call (not if the parser has an
    importer of that name).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Sequence

from refit_agent.errors import WeightUnsupported
from refit_agent.weight_map.operators import IMPORTED
from refit_agent.weight_map.parsed import Visit, Walk, Weight
from refit_agent.weights.records import AttributeValue, Function, Graph, Node, OnnxModel, WeightRef

# Parser and refitter refuse deeper nesting (section 4), so no engine comes from it.
MAX_NESTING = 24
# Functions that call one another can ask for 2**24 visits in a file of a few kilobytes.
MAX_VISITS = 1_000_000


def walk(model: OnnxModel, path: str = "") -> Walk:
    """Walk ``model`` as the parser does; reads the values of constant If conditions, nothing else.

    Raises:
        WeightUnsupported: subgraphs and calls are nested deeper than the parser goes, or make more
            than MAX_VISITS nodes; names the node. ``path`` is for this message.
    """
    walker = _Walker(model, path)
    graph = model.graph
    for name in graph.outputs:
        walker.register_tensor(name)
    scope: _Scope = ChainMap()
    walker.graph(graph, scope, {}, depth=0, in_function=False)
    return walker.result


def parse_order(nodes: Sequence[Node]) -> list[int]:
    """Indices of ``nodes`` as the parser sorts them: post-order over producers, from the first node on.

    Section 2. Only explicit inputs are edges, not what subgraphs capture; sorted graphs keep their order.
    """
    producer: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for output in node.outputs:
            if output:
                producer.setdefault(output, i)
    order: list[int] = []
    seen = [False] * len(nodes)
    for root in range(len(nodes)):
        if seen[root]:
            continue
        seen[root] = True
        # An explicit stack: unsorted graphs are deeper than Python's recursion limit.
        stack = [(root, iter(nodes[root].inputs))]
        while stack:
            index, inputs = stack[-1]
            for name in inputs:
                found = producer.get(name) if name else None
                if found is not None and not seen[found]:
                    seen[found] = True
                    stack.append((found, iter(nodes[found].inputs)))
                    break
            else:
                order.append(index)
                stack.pop()
    return order


_Scope = ChainMap[str, "Weight | None"]
_Attributes = dict[str, AttributeValue]


class _Walker:
    def __init__(self, model: OnnxModel, path: str) -> None:
        self.result = Walk()
        self.path = path
        self.functions = model.functions
        self.order = 0

    def register_tensor(self, name: str) -> None:
        if name:
            self.result.names.add(name)
            self.order += 1

    def register(self, weight: Weight | None, name: str, scope: _Scope, nested: bool) -> None:
        """Bind ``name`` in ``scope`` to a weight, under this name from now on, or to a tensor (None)."""
        if not name:
            return
        if weight is not None:
            weight = Weight(
                name,
                weight.key,
                weight.dtype,
                weight.count,
                nested,
                self.order,
                name not in self.result.names,
                weight.ref,
                weight.numbers,
                weight.scalar,
            )
            self.result.by_name.setdefault(name, []).append(weight)
        self.register_tensor(name)
        scope[name] = weight

    def graph(self, graph: Graph, scope: _Scope, call: _Attributes, depth: int, in_function: bool) -> None:
        nested = depth > 0
        for name in graph.inputs:
            self.register(None, name, scope, nested)
        for name, ref in graph.initializers.items():
            if ref.kind != "sparse":  # the parser does not import sparse ones
                self.register(_of_ref(ref), name, scope, nested)
        order = parse_order(graph.nodes)
        self.nodes(graph.nodes, order, scope, call, depth, in_function)

    def nodes(
        self,
        nodes: Sequence[Node],
        order: Iterable[int],
        scope: _Scope,
        call: _Attributes,
        depth: int,
        in_function: bool,
    ) -> None:
        for index in order:
            node = nodes[index]
            attributes = {
                a.name: (call.get(a.ref) if a.ref else a.value)
                for a in node.attributes.values()
                if not a.ref or a.ref in call
            }
            inputs = tuple(scope.get(name) if name else None for name in node.inputs)
            visit = Visit(node, index, inputs, attributes, depth > 0, in_function, self.function(node) is not None)
            self.result.visits.append(visit)
            if len(self.result.visits) > MAX_VISITS:
                raise self.refusal(visit, f"the model's functions unfold to more than {MAX_VISITS} nodes")
            for weight in inputs:
                if weight is not None:
                    self.result.uses.setdefault(weight.identity, []).append(visit)
            outputs = self.node(visit, scope, call, depth)
            for position, name in enumerate(node.outputs):
                self.register(outputs[position] if position < len(outputs) else None, name, scope, depth > 0)

    def node(self, visit: Visit, scope: _Scope, call: _Attributes, depth: int) -> Sequence[Weight | None]:
        """Walk into a node's subgraphs; returns the weights that its outputs are, if any."""
        node = visit.node
        if node.op_type == "Constant":
            return (_of_constant(visit),)
        if depth >= MAX_NESTING and (node.op_type in ("If", "Loop", "Scan") or visit.calls_function):
            raise self.refusal(visit, f"subgraphs and function calls are nested more than {MAX_NESTING} deep")
        if node.op_type == "If":
            return self.conditional(visit, scope, call, depth)
        if node.op_type in ("Loop", "Scan"):
            body = visit.attributes.get("body")
            if isinstance(body, Graph):
                self.graph(body, scope.new_child(), call, depth + 1, visit.in_function)
            return ()
        return self.call(visit, depth)

    def conditional(self, visit: Visit, scope: _Scope, call: _Attributes, depth: int) -> Sequence[Weight | None]:
        branches = [visit.attributes.get("then_branch"), visit.attributes.get("else_branch")]
        condition = visit.weight(0)
        constant = condition is not None and condition.count == 1
        if condition is not None and constant:
            # The parser looks at the first byte alone and compares it with 1.
            branches = [branches[0 if condition.array().tobytes()[:1] == b"\x01" else 1]]
        for branch in branches:
            if isinstance(branch, Graph):
                inner = scope.new_child()
                self.graph(branch, inner, call, depth + 1, visit.in_function)
                if constant:
                    return [inner.get(name) for name in branch.outputs]
        return ()

    def refusal(self, visit: Visit, detail: str) -> WeightUnsupported:
        return WeightUnsupported(name=visit.layer_name, path=self.path, detail=detail)

    def function(self, node: Node) -> Function | None:
        if node.op_type in IMPORTED:
            return None
        return self.functions.get((node.domain, node.op_type, node.overload))

    def call(self, visit: Visit, depth: int) -> Sequence[Weight | None]:
        node = visit.node
        function = self.function(node)
        if function is None:
            return ()
        attributes: _Attributes = {a.name: a.value for a in function.defaults.values()}
        attributes.update(visit.attributes)
        scope: _Scope = ChainMap()
        for name, weight in zip(function.inputs, visit.inputs, strict=False):
            self.register(weight, name, scope, nested=True)
        self.nodes(function.nodes, range(len(function.nodes)), scope, attributes, depth + 1, in_function=True)
        return [scope.get(name) for name in function.outputs]


def _of_ref(ref: WeightRef) -> Weight:
    return Weight(ref.name, ref.key or ref.name, ref.dtype, ref.count, False, 0, False, ref)


def _of_constant(visit: Visit) -> Weight | None:
    """What a Constant node holds: ``value``, or the numbers of another attribute (section 3)."""
    name = visit.node.outputs[0] if visit.node.outputs else ""
    value = visit.attributes.get("value")
    if isinstance(value, WeightRef):
        return Weight(name, value.key or name, value.dtype, value.count, False, 0, False, value)
    for attribute, dtype in (("value_float", "float32"), ("value_int", "int64")):
        one = visit.attributes.get(attribute)
        if isinstance(one, (int, float)):
            return Weight(name, name, dtype, 1, False, 0, False, None, (one,), scalar=True)
        many = visit.attributes.get(attribute + "s")
        if isinstance(many, tuple):
            numbers = tuple(n for n in many if isinstance(n, (int, float)))
            return Weight(name, name, dtype, len(numbers), False, 0, False, None, numbers)
    return None
