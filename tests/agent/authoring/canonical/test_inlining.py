"""Local functions are put in at their calls; each call has constants of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, FunctionProto, helper

from refit_agent.authoring.canonical import inlining
from refit_agent.authoring.errors import ModelUnsupported

from .models import LOCAL, B, branches, canonical, constant, graph, model, node, tensor, value

X = np.array([1.0, -2.0], np.float32)
_X, _Y, _K = value("x", [2]), value("y", [2]), value("k", [], B)


def _function(name, nodes, inputs=("a",), outputs=("b",), opset=17, attributes=(), defaults=(), overload=""):
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(LOCAL, 1)]
    made = helper.make_function(LOCAL, name, list(inputs), list(outputs), list(nodes), opsets, list(attributes), list(defaults))  # fmt: skip
    made.overload = overload
    return made


def _call(name, inputs, outputs, **attributes):
    return node(name, inputs, outputs, domain=LOCAL, **attributes)


def _by_attribute(output: str, reference: str) -> onnx.NodeProto:
    made = node("Constant", [], [output])
    made.attribute.append(AttributeProto(name="value_float", type=AttributeProto.FLOAT, ref_attr_name=reference))
    return made


def test_every_call_has_its_own_weights(tmp_path: Path) -> None:
    """A function that is called twice, once by another one, gives two weights."""
    functions = [
        _function("Shift", [constant("c", [3, 4]), node("Add", ["a", "c"], ["b"])]),
        _function("Twice", [_call("Shift", ["a"], ["m"]), _call("Shift", ["m"], ["b"])]),
    ]
    made = canonical(tmp_path, model([_call("Twice", ["x"], ["y"])], [_X], [_Y], functions=functions), {"x": X})
    assert made.nodes == ["Add", "Add"] and made.report.inlined_calls == 1
    assert [a.tolist() for a in made.weights.values()] == [[3, 4], [3, 4]]


def test_attributes_of_the_call_and_their_defaults(tmp_path: Path) -> None:
    """What the call leaves out has the function's default, in a nested graph too."""
    default = helper.make_attribute("alpha", 3.5)
    functions = [_function("F", [_by_attribute("c", "alpha"), node("Add", ["a", "c"], ["b"])], defaults=[default])]
    then = graph([_call("F", ["x"], ["o"], alpha=2.0)], [], [value("o", [2])])
    other = graph([_call("F", ["x"], ["o2"])], [], [value("o2", [2])])
    nodes = [_call("F", ["x"], ["f"]), branches(then, other), node("Add", ["f", "z"], ["y"])]
    for k, sum_ in ((True, 5.5), (False, 7.0)):
        feeds = {"x": X, "k": np.array(k)}
        made = canonical(
            tmp_path, model(nodes, [_X, _K], [_Y], functions=functions), feeds, expected=[2 * X + np.float32(sum_)]
        )
        assert sorted(float(a) for a in made.weights.values()) == [2.0, 3.5, 3.5]


def test_overloads_are_told_apart(tmp_path: Path) -> None:
    """Two functions of one name, one to add and one to multiply."""
    functions = [
        _function("F", [constant("c", [3, 4]), node("Add", ["a", "c"], ["b"])]),
        _function("F", [constant("c", [5, 6]), node("Mul", ["a", "c"], ["b"])], overload="times"),
    ]
    times = _call("F", ["x"], ["y"])
    times.overload = "times"
    made = canonical(
        tmp_path, model([times], [_X], [_Y], functions=functions), {"x": X}, expected=[X * np.array([5, 6], np.float32)]
    )
    assert made.nodes == ["Mul"]


def test_a_function_for_another_version_of_the_same_operators(tmp_path: Path) -> None:
    """Where its operators are the same in both versions it is taken as it is, also where onnx could not convert it."""
    functions = [_function("F", [constant("c", [3, 4]), node("Add", ["a", "c"], ["b"])], opset=14)]
    then = graph([_call("F", ["x"], ["o"])], [], [value("o", None)])
    other = graph([_call("F", ["f"], ["o2"])], [], [value("o2", None)])
    nodes = [_call("F", ["x"], ["f"]), branches(then, other), node("Add", ["f", "z"], ["y"])]
    made = canonical(tmp_path, model(nodes, [_X, _K], [_Y], opset=17, functions=functions))
    assert made.nodes == ["Add", "If", "Add"] and made.report.hoisted == 3


def test_a_function_for_operators_that_have_changed(tmp_path: Path) -> None:
    """It is converted or refused, never taken for what it is not: Squeeze had its axes in an attribute once."""
    functions = [_function("F", [node("Squeeze", ["a"], ["b"], axes=[0])], opset=11)]
    source = model([_call("F", ["x"], ["y"])], [value("x", [1, 2])], [_Y], functions=functions)
    feeds = {"x": X.reshape(1, 2)}
    try:
        made = canonical(tmp_path, source, feeds, expected=[X])
    except ModelUnsupported as error:
        assert "function" in str(error)
    else:
        assert len(made.model.graph.node[0].input) == 2


def test_functions_that_call_one_another_in_a_circle(tmp_path: Path) -> None:
    """Refused."""
    functions = [_function("F", [_call("G", ["a"], ["b"])]), _function("G", [_call("F", ["a"], ["b"])])]
    with pytest.raises(ModelUnsupported, match="circle"):
        canonical(tmp_path, model([_call("F", ["x"], ["y"])], [_X], [_Y], functions=functions))


def test_functions_that_unfold_to_a_billion_nodes(tmp_path: Path) -> None:
    """Refused before anything is unfolded."""
    functions = [_function("F0", [node("Neg", ["a"], ["b"])])]
    functions += [
        _function(f"F{i}", [_call(f"F{i - 1}", ["a"], ["m"]), _call(f"F{i - 1}", ["m"], ["b"])]) for i in range(1, 31)
    ]
    with pytest.raises(ModelUnsupported, match=f"more than {inlining.MAX_NODES} nodes"):
        canonical(tmp_path, model([_call("F30", ["x"], ["y"])], [_X], [_Y], functions=functions))


def test_functions_that_nobody_calls_go(tmp_path: Path) -> None:
    """With their constants."""
    functions = [_function("F", [constant("c", [3, 4]), node("Add", ["a", "c"], ["b"])])]
    made = canonical(tmp_path, model([node("Neg", ["x"], ["y"])], [_X], [_Y], functions=functions), {"x": X})
    assert made.nodes == ["Neg"] and not made.weights and made.report.data == ""


def test_what_a_function_brings_for_its_own_domain(tmp_path: Path) -> None:
    """Operator sets that only the function imports are imported by the model then."""
    inner: FunctionProto = _function("F", [node("Gelu", ["a"], ["b"], domain="com.microsoft")])
    inner.opset_import.add(domain="com.microsoft", version=1)
    source = model([_call("F", ["x"], ["m"]), node("Add", ["m", "w"], ["y"])], [_X], [_Y], [tensor("w", [1, 2])], functions=[inner])  # fmt: skip
    source.opset_import.add(domain="com.microsoft", version=1)
    made = canonical(tmp_path, source, {"x": X})
    assert made.nodes == ["Gelu", "Add"]
