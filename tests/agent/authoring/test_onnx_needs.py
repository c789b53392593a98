"""The oldest ONNX Runtime for a graph: told for what it is known to run, and for nothing else."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from refit_agent.authoring.onnx_needs import why_newer
from refit_agent.weights.wire import Wire

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
RELU = helper.make_node("Relu", ["x"], ["y"])
OWN = helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")


def why(
    *nodes: onnx.NodeProto,
    opsets: tuple[tuple[str, int], ...] = (("", 17),),
    ir: int = 8,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> str:
    graph = helper.make_graph(nodes, "g", [X], [Y])
    imports = [helper.make_opsetid(name, version) for name, version in opsets]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir)
    model.functions.extend(functions)
    return why_newer(Wire(model.SerializeToString(), "m"))


def test_standard_operators_run_on_the_oldest() -> None:
    """Whatever else the model imports and does not use, as ONNX Runtime's own files do."""
    assert why(RELU) == ""
    assert why(RELU, opsets=(("", 17), ("ai.onnx.training", 1), ("com.microsoft", 1), ("ai.onnx.ml", 99))) == ""
    assert why(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx"), opsets=(("ai.onnx", 20),)) == ""


@pytest.mark.parametrize(
    ("ir", "opset", "says"),
    [
        (10, 20, ""),
        (3, 7, ""),
        (11, 20, "its IR version is 11, above 10"),
        (10, 21, "its opset is 21, above 20"),
        (14, 28, "its opset is 28, above 20"),
    ],
)
def test_what_the_oldest_may_not_read_is_not_promised(ir: int, opset: int, says: str) -> None:
    assert why(RELU, ir=ir, opsets=(("", opset),)) == says
    # An opset counts that no operator uses: who loads the model judges each that it names.
    assert why(ir=ir, opsets=(("", opset),)) == says


def test_a_model_without_an_opset_is_not_promised() -> None:
    """ONNX Runtime writes its own newest in its place."""
    assert why(opsets=()) == why(RELU, opsets=(("ai.onnx.ml", 3),)) == "it names no opset"


def test_a_runtime_s_own_operators_are_of_its_release() -> None:
    """On the top level, in a branch of a branch, in a list of graphs."""
    says = "it has operators of com.microsoft"
    both = (("", 17), ("com.microsoft", 1))
    assert why(OWN, opsets=both) == why(OWN) == says
    branch = helper.make_graph([OWN], "inner", [], [Y])
    inner = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    outer = helper.make_node("Loop", ["n", "c"], ["y"], body=helper.make_graph([inner], "outer", [], [Y]))
    assert why(outer, opsets=both) == says
    assert why(helper.make_node("Many", ["x"], ["y"], graphs=[branch, branch]), opsets=both) == says


def test_other_standards_operators_are_not_promised() -> None:
    """The classical ones among them: 1.18 lacks some."""
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    assert why(scaler, RELU, opsets=(("", 17), ("ai.onnx.ml", 3))) == "it has operators of ai.onnx.ml"


@pytest.mark.parametrize(
    "operator",
    ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"],
)  # fmt: skip
def test_quantised_operators_are_told_wherever_they_are(operator: str) -> None:
    node = helper.make_node(operator, ["x", "s"], ["y"])
    assert why(node) == "it has quantised operators"
    branch = helper.make_graph([node], "inner", [], [Y])
    assert why(RELU, helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    function = helper.make_function("", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    assert why(RELU, functions=(function,)) == "it has quantised operators"


def test_local_functions_are_read_and_not_promised() -> None:
    """They have opsets of their own, and what they call counts as used."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    body = [helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft")]
    function = helper.make_function("local", "F", ["a"], ["b"], body, imports)
    call = helper.make_node("F", ["x"], ["y"], domain="local")
    assert why(call, functions=(function,)) == "it has operators of com.microsoft, local"
    newer = helper.make_function("", "F", ["a"], ["b"], [], [helper.make_opsetid("", 99)])
    assert why(RELU, functions=(newer,)) == "it has functions of its own"
