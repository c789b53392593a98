"""float64 becomes float32: weights, casts, types; inputs and outputs of the model keep theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from refit_agent.authoring.errors import ModelUnsupported

from .models import I64, B, D, F, branches, canonical, constant, graph, graphs, model, node, nodes, tensor, value

X = np.array([1.0, -2.0])
_X, _Y = value("x", [2], D), value("y", [2], D)


def _types(made: onnx.ModelProto) -> set[int]:
    """Every element type that the nodes and nested graphs of the model name."""
    found: set[int] = set()
    for n in nodes(made.graph):
        found.update(a.i for a in n.attribute if a.name in ("to", "dtype"))
        found.update(a.t.data_type for a in n.attribute if a.HasField("t"))
    for inner in list(graphs(made.graph))[1:]:
        found.update(v.type.tensor_type.elem_type for v in [*inner.input, *inner.output, *inner.value_info])
    return found | {t.data_type for t in made.graph.initializer}


def test_weights_are_rounded_and_the_border_stays(tmp_path: Path) -> None:
    """Inputs and outputs are float64 as before, behind casts; the report says what rounding did."""
    third = np.array([1 / 3, 1e-320])
    source = model([node("Mul", ["x", "w"], ["m"]), node("Add", ["m", "c"], ["y"]), constant("c", 0.5, np.float64)], [_X], [_Y], [tensor("w", third, np.float64)])  # fmt: skip
    made = canonical(tmp_path, source, {"x": X})
    assert made.nodes == ["Cast", "Mul", "Add", "Cast"]
    assert made.weights["w"].dtype == made.weights["c"].dtype == np.float32
    assert made.weights["w"].tolist() == third.astype(np.float32).tolist()
    assert [v.type.tensor_type.elem_type for v in (*made.model.graph.input, *made.model.graph.output)] == [D, D]
    float64 = made.report.float64
    assert float64 is not None and (float64.weights, float64.of, float64.underflows) == (2, "w", 1)
    assert float64.largest_relative_error == abs(float(np.float32(1 / 3)) - 1 / 3) * 3


def test_a_model_without_float64_says_nothing(tmp_path: Path) -> None:
    """And has no cast that it had not before."""
    source = model([node("Mul", ["x", "w"], ["y"])], [value("x", [2])], [value("y", [2])], [tensor("w", [1, 2])])
    made = canonical(tmp_path, source)
    assert made.nodes == ["Mul"] and made.report.float64 is None


def test_casts_and_nodes_that_make_float64(tmp_path: Path) -> None:
    """Whatever has an element type in an attribute; the stated shapes too."""
    parts = [
        node("Cast", ["i"], ["a"], to=D),
        node("ConstantOfShape", ["s"], ["b"], value=tensor("v", [2.0], np.float64)),
        node("Shape", ["x"], ["s"]),
        node("EyeLike", ["m"], ["e"], dtype=D),
        node("RandomNormal", [], ["r"], dtype=D, shape=[2], seed=1.0),
        node("Mul", ["r", "zero"], ["r0"]),
        node("ReduceSum", ["e"], ["e1"], keepdims=0),
        node("CastLike", ["i", "x"], ["l"]),
        node("Sum", ["x", "a", "b", "e1", "r0", "l"], ["y"]),
    ]
    weights = [tensor("m", np.zeros((2, 2)), np.float64), tensor("zero", 0.0, np.float64)]
    source = model(parts, [_X, value("i", [2], I64)], [_Y], weights)
    source.graph.value_info.append(value("a", [2], D))
    made = canonical(tmp_path, source, {"x": X, "i": np.array([3, 4])})
    inner = [n for n in made.model.graph.node if n.output[0] != "y"]
    assert D not in {a.i for n in inner for a in n.attribute}
    assert [v.type.tensor_type.elem_type for v in made.model.graph.value_info] == [F]


def test_nested_graphs(tmp_path: Path) -> None:
    """Types of a loop's state and of what branches give change together."""
    body = graph(
        [constant("f", 1.5, np.float64), node("Mul", ["s", "f"], ["s2"]), node("Identity", ["c"], ["c2"])],
        [value("i", [], I64), value("c", [], B), value("s", [2], D)],
        [value("c2", [], B), value("s2", [2], D)],
    )
    then = graph([node("Add", ["l", "x"], ["o"])], [], [value("o", [2], D)])
    other = graph([node("Cast", ["x"], ["h"], to=F), node("Cast", ["h"], ["o2"], to=D)], [], [value("o2", [2], D)])
    parts = [
        constant("n", 3, np.int64),
        constant("t", True, bool),
        node("Loop", ["n", "t", "x"], ["l"], body=body),
        branches(then, other),
        node("Neg", ["z"], ["y"]),
    ]
    source = model(parts, [_X, value("k", [], B)], [_Y])
    for k in (True, False):
        made = canonical(tmp_path, source, {"x": X, "k": np.array(k)})
    del made.model.graph.node[-1]
    assert D not in _types(made.model)


def test_an_output_that_others_read_as_well(tmp_path: Path) -> None:
    """They read the float32 tensor, in nested graphs too; the output is cast once."""
    then = graph([node("Add", ["y", "x"], ["o"])], [], [value("o", [2], D)])
    other = graph([node("Neg", ["y"], ["o2"])], [], [value("o2", [2], D)])
    parts = [node("Mul", ["x", "x"], ["y"]), branches(then, other)]
    source = model(parts, [_X, value("k", [], B)], [_Y, value("z", [2], D)])
    for k in (True, False):
        made = canonical(tmp_path, source, {"x": X, "k": np.array(k)})
    assert made.nodes == ["Cast", "Mul", "If", "Cast", "Cast"]


def test_casts_at_the_border_stay_what_they_are(tmp_path: Path) -> None:
    """A cast to float64 that only makes an output, and one from an input, need no second one."""
    parts = [node("Cast", ["x"], ["f"], to=F), node("Neg", ["f"], ["n"]), node("Cast", ["n"], ["y"], to=D)]
    made = canonical(tmp_path, model(parts, [_X], [_Y]), {"x": X})
    assert made.nodes == ["Cast", "Neg", "Cast"]
    parts = [node("Cast", ["x"], ["y"], to=D), node("Neg", ["y"], ["z"])]
    made = canonical(tmp_path, model(parts, [value("x", [2], I64)], [_Y, value("z", [2], D)]), {"x": np.array([1, 2])})
    assert made.nodes == ["Cast", "Neg", "Cast", "Cast"]


def test_an_output_that_is_an_input_or_a_weight(tmp_path: Path) -> None:
    """What goes straight through stays float64; a weight is cast behind its Identity."""
    parts = [node("Neg", ["x"], ["y"])]
    outputs = [_Y, value("x", [2], D), value("w", [2], D)]
    made = canonical(tmp_path, model(parts, [_X], outputs, [tensor("w", [0.5, 2], np.float64)]), {"x": X})
    assert made.weights["w.1"].dtype == np.float32


def test_the_form_that_casts_had_once(tmp_path: Path) -> None:
    """Before operator set 6 the type was a word."""
    parts = [node("Cast", ["x"], ["d"], to="DOUBLE"), node("Abs", ["d"], ["y"])]
    made = canonical(tmp_path, model(parts, [value("x", [2])], [_Y], opset=5))
    assert made.model.graph.node[0].attribute[0].s == b"FLOAT"


def test_numbers_that_float32_cannot_hold(tmp_path: Path) -> None:
    """Named, with the weight, and nothing is written; infinities and NaNs are what they were."""
    source = model([node("Add", ["x", "mask"], ["y"])], [_X], [_Y], [tensor("mask", [0, -1.7e308], np.float64)])
    with pytest.raises(ModelUnsupported, match=r"'mask' has the number -1\.7e\+308"):
        canonical(tmp_path, source)
    assert list((tmp_path / "out").iterdir()) == []
    source = model([node("Add", ["x", "mask"], ["y"])], [_X], [_Y], [tensor("mask", [np.inf, np.nan], np.float64)])
    assert np.array_equal(canonical(tmp_path, source).weights["mask"], [np.inf, np.nan], equal_nan=True)


def test_forms_without_a_cast_are_refused(tmp_path: Path) -> None:
    """A sequence of float64 at the border, and bits that are taken for a float64."""
    sequence = helper.make_tensor_sequence_value_info("s", D, [2])
    source = model([node("SequenceConstruct", ["x"], ["s"])], [_X], [sequence])
    with pytest.raises(ModelUnsupported, match="output 's' is float64"):
        canonical(tmp_path, source)
    source = model([node("BitCast", ["x"], ["y"], to=D)], [value("x", [2], I64)], [_Y], opset=26)
    with pytest.raises(ModelUnsupported, match="BitCast 'y'"):
        canonical(tmp_path, source)


def test_foreign_nodes_are_mentioned(tmp_path: Path) -> None:
    """Nobody knows whether they take float32."""
    source = model([node("Thing", ["x"], ["y"], domain="org.example")], [_X], [_Y], domains={"org.example": 1})
    assert canonical(tmp_path, source).report.notes == (
        "float64 became float32, and nobody knows what nodes of org.example make of it.",
    )


def test_tensors_in_attributes(tmp_path: Path) -> None:
    """Of ONNX's machine-learning operators too, whose types follow their input's."""
    keys = helper.make_tensor("k", I64, [2], [1, 2])
    values = helper.make_tensor("v", D, [2], [0.5, 1.5])
    default = helper.make_tensor("d", D, [1], [9.0])
    encoder = node("LabelEncoder", ["i"], ["y"], domain="ai.onnx.ml", keys_tensor=keys, values_tensor=values, default_tensor=default)  # fmt: skip
    source = model([encoder], [value("i", [2], I64)], [_Y], domains={"ai.onnx.ml": 4}, opset=21)
    made = canonical(tmp_path, source, {"i": np.array([2, 7])})
    assert {a.t.data_type for a in made.model.graph.node[0].attribute} == {I64, TensorProto.FLOAT}
