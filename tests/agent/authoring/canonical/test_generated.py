"""Random small graphs: weights of every form in nested scopes, with names that are used again and again.

Many of them ONNX Runtime refuses, since it wants a name to be used once in nested scopes; the values are
therefore computed here. Their canonical forms it has to take.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import ChainMap
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, helper, numpy_helper

from .models import B, branches, canonical, constant, graph, model, node, tensor, value

X = np.array([1.0, -2.0], np.float32)
_NAMES = ("a", "b", "c", "c.1", "a.1", "tmp_weight")


def evaluate(start: GraphProto, outer: ChainMap[str, Any], k: bool) -> list[Any]:
    """The outputs of a graph of the operators that are generated here: a name means the nearest tensor outward."""
    scope = outer.new_child({t.name: numpy_helper.to_array(t) for t in start.initializer})
    for n in start.node:
        read = [scope[name] for name in n.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
        if n.op_type == "Constant":
            made = numpy_helper.to_array(attributes["value"])
        elif n.op_type == "ConstantOfShape":
            made = np.full(read[0], numpy_helper.to_array(attributes["value"])[0])
        elif n.op_type == "If":
            (made,) = evaluate(attributes["then_branch" if k else "else_branch"], scope, k)
        elif n.op_type == "Add":
            made = read[0] + read[1]
        else:
            made = -read[0] if n.op_type == "Neg" else read[0]
        scope[n.output[0]] = made
    return [scope[o.name] for o in start.output]


class _Grower:
    """Grows graphs whose tensors all have two elements, but shapes.

    Weights may have any name that their own graph has not. Computed tensors must not have one of an
    outer scope or of a nested scope that was closed before: no rewriting of weights could mend that.
    """

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.count = 0

    def grow(self, visible: list[str], outer: set[str], depth: int) -> tuple[list[Any], list[Any], list[str], set[str]]:
        """Nodes, initializers, the names that can be read at the end, and those of computed tensors."""
        nodes: list[Any] = []
        weights: list[Any] = []
        known = list(visible)
        own: set[str] = set()
        computed: set[str] = set()
        for _ in range(self.draw(st.integers(1, 5))):
            kind = self.draw(st.sampled_from(["weight", "weight", "constant", "identity", "add", "add", "fill", "if"]))
            if kind == "weight":
                # hides the outer tensor from the nodes before it too, so none may have read that
                name = self._name(own | {i for n in nodes for i in _reads(n)})
                weights.append(tensor(name, [self._number(), self._number()]))
            elif kind == "constant":
                name = self._name(own | outer)
                nodes.append(constant(name, [self._number(), self._number()]))
            else:
                name = self._name(own | outer | computed)
                nodes += self._computed(kind, name, known, own | outer | {name}, computed, depth)
                computed.add(name)
            own.add(name)
            known.append(name)
        return nodes, weights, known, computed

    def _computed(self, kind: str, name: str, known: list[str], outer: set[str], computed: set[str], depth: int) -> list[Any]:  # fmt: skip
        if kind == "fill":
            shape = self._fresh("shape")
            fill = node("ConstantOfShape", [shape], [name], value=tensor("v", [self._number()]))
            return [constant(shape, [2], np.int64), fill]
        if kind == "identity":
            return [node("Identity", [self._read(known)], [name])]
        if kind == "if" and depth < 2:
            sides = []
            for _ in range(2):
                inner, held, readable, made = self.grow(known, outer, depth + 1)
                sides.append(graph(inner, [], [value(self._read(readable), [2])], held))
                computed |= made
            return [branches(*sides, name, "k")]
        return [node("Add", [self._read(known), self._read(known)], [name])]

    def _read(self, known: list[str]) -> str:
        return str(self.draw(st.sampled_from(known)))

    def _name(self, taken: set[str]) -> str:
        free = [n for n in _NAMES if n not in taken]
        return str(self.draw(st.sampled_from(free))) if free and self.draw(st.integers(0, 3)) else self._fresh("t")

    def _fresh(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def _number(self) -> float:
        return float(self.draw(st.integers(-4, 4)))


def _reads(start: Any) -> set[str]:
    found = set(start.input)
    for attribute in start.attribute:
        for inner in attribute.g.node:
            found |= _reads(inner)
        found |= {o.name for o in attribute.g.output}
    return found


@st.composite
def _models(draw: Any) -> Any:
    nodes, weights, known, computed = _Grower(draw).grow(["x"], {"x", "k"}, 0)
    own = {n.output[0] for n in nodes if n.op_type != "Constant"}
    # a weight that is an output is made by a node then, and must not have the name of a nested tensor either
    made = [n for n in dict.fromkeys(known) if n != "x" and (n in own or n not in computed)] or ["last"]
    nodes.append(node("Neg", ["x"], ["last"]))
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, unique=True))
    values = [value(n, [2]) for n in dict.fromkeys([*outputs, made[-1]])]
    return model(nodes, [value("x", [2]), value("k", [], B)], values, weights)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_models(), st.booleans())
def test_generated_graphs_compute_the_same(source: Any, k: bool) -> None:
    """Bit for bit, since no arithmetic changes; and all that `canonical` checks of every model."""
    expected = evaluate(source.graph, ChainMap({"x": X, "k": k}), k)
    folder = Path(tempfile.mkdtemp())
    try:
        canonical(folder, source, {"x": X, "k": np.array(k)}, tolerance=0.0, expected=expected)
    finally:
        shutil.rmtree(folder)
