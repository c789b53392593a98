"""The oldest ONNX Runtime for a graph: told for the standard's own operators, and for nothing else."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from refit_agent.authoring.onnx_needs import OLDEST, OnnxNeeds, read_needs
from refit_agent.weights.wire import Wire

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])


def needs(
    *nodes: onnx.NodeProto, ir: int = 8, functions: tuple[onnx.FunctionProto, ...] = (), **opsets: int
) -> OnnxNeeds:
    imports = [helper.make_opsetid(name.replace("_", "."), version) for name, version in opsets.items()]
    graph = helper.make_graph(nodes or [helper.make_node("Relu", ["x"], ["y"])], "g", [X], [Y])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), *imports] if "" not in opsets else imports, ir_version=ir
    )
    model.functions.extend(functions)
    return read_needs(Wire(model.SerializeToString(), "m"))


def test_standard_operators_run_on_the_oldest() -> None:
    """Whatever else the model imports and does not use, as ONNX Runtime's own files do."""
    assert needs() == ({""}, OLDEST)
    assert needs(ai_onnx_training=1, com_microsoft=1, ai_onnx_ml=99) == ({""}, OLDEST)
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    assert needs(scaler, ai_onnx_ml=5) == ({"ai.onnx.ml"}, OLDEST)
    assert needs(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")) == ({""}, OLDEST)


@pytest.mark.parametrize(("ir", "opset", "told"), [(10, 21, True), (11, 21, False), (10, 22, False), (3, 7, True)])
def test_what_the_oldest_does_not_read_is_not_promised(ir: int, opset: int, told: bool) -> None:
    assert needs(ir=ir, **{"": opset}).onnxruntime == (OLDEST if told else None)


def test_a_runtime_s_own_operators_are_of_its_release() -> None:
    """On the top level, in a branch of a branch, and where no import names them."""
    own = helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    assert needs(own, com_microsoft=1) == ({"com.microsoft"}, None)
    assert needs(own).onnxruntime is None
    branch = helper.make_graph([own], "inner", [], [Y])
    inner = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    outer = helper.make_node("Loop", ["n", "c"], ["y"], body=helper.make_graph([inner], "outer", [], [Y]))
    assert needs(outer, com_microsoft=1) == ({"", "com.microsoft"}, None)
    listed = helper.make_node("Many", ["x"], ["y"], graphs=[branch, branch])
    assert needs(listed, com_microsoft=1) == ({"", "com.microsoft"}, None)


def test_unknown_opset_of_the_classical_operators_is_not_promised() -> None:
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    assert needs(scaler, ai_onnx_ml=6).onnxruntime is None
    assert needs(scaler).onnxruntime is None


def test_local_functions_are_read_and_not_promised() -> None:
    """What a function calls counts as used."""
    body = [helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft")]
    function = helper.make_function(
        "local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    )
    call = helper.make_node("F", ["x"], ["y"], domain="local")
    assert needs(call, functions=(function,), local=1) == ({"local", "com.microsoft"}, None)
    newer = helper.make_function("ai.onnx.ml", "F", ["a"], ["b"], [], [helper.make_opsetid("", 99)])
    call = helper.make_node("F", ["x"], ["y"], domain="ai.onnx.ml")
    assert needs(call, functions=(newer,), ai_onnx_ml=3) == ({"ai.onnx.ml"}, None)
