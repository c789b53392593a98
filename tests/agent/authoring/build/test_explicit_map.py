"""The map that a build writes says what the naming rules found, and is read as exactly that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refit_agent.authoring.build.explicit_map import explicit_entry, make_weight_map
from refit_agent.errors import WeightsMismatch, WeightsUncovered
from refit_agent.weight_map import Prototype, WeightSource, resolve
from refit_agent.weights import OnnxWeights

from .models import make_model, write

V86, V101, V1016 = (8, 6, 0, 12), (10, 1, 0, 0), (10, 16, 1, 11)
BASES = {V86: "tmp_weight", V101: "tmp_batch_norm_weight", V1016: "tmp_refittable_weight"}


def _wanted(*names: str, builder: tuple[int, ...], counts: dict[str, tuple[str, int]]) -> dict[str, Prototype]:
    return {name: Prototype(*(counts[name] if builder >= (10,) else (None, None))) for name in names}


@pytest.mark.parametrize("builder", [V86, V101, V1016])
def test_a_model_as_every_parser_names_it(tmp_path: Path, builder: tuple[int, ...]) -> None:
    """The numbered names are written out, and with the map a later reader needs no rule for them."""
    base = BASES[builder]
    counts = {
        "fc.w": ("float32", 768),
        "conv.w": ("float32", 648),
        base: ("float32", 24),
        f"{base}_0": ("float32", 24),
    }
    wanted = _wanted("fc.w", f"{base}_0", "conv.w", base, builder=builder, counts=counts)
    with OnnxWeights(make_model(tmp_path / "m.onnx")) as weights:
        made = make_weight_map(wanted, weights, builder=builder, rtx=False)
        fold = {"scale": "bn.scale", "bias": "bn.bias", "mean": "bn.mean", "variance": "bn.var"}
        epsilon = float(np.float32(1e-5))
        assert made.entries == {
            "fc.w": {"from": "fc.w"},
            f"{base}_0": {"batch_norm": "bias", **fold, "epsilon": epsilon},
            "conv.w": {"from": "conv.w"},
            base: {"batch_norm": "scale", **fold, "epsilon": epsilon},
        }
        assert list(made.sources) == list(wanted) and made.by_rule == ()
        # A builder that no rule knows: the map alone must do.
        typed = {name: Prototype(*counts[name]) for name in wanted}
        read = resolve(typed, weights, builder=(99, 0), explicit=made.entries)
        for name, source in made.sources.items():
            assert read[name].array().tobytes() == source.array().tobytes()


def test_what_the_plan_asks_for_and_the_model_does_not_have(tmp_path: Path) -> None:
    """The build fails with the error that the end user would have had."""
    with OnnxWeights(make_model(tmp_path / "m.onnx")) as weights:
        with pytest.raises(WeightsUncovered, match="stranger"):
            make_weight_map({"stranger": Prototype("float32", 4)}, weights, builder=V1016, rtx=False)
        with pytest.raises(WeightsMismatch, match="5 elements"):
            make_weight_map({"fc.b": Prototype("float32", 5)}, weights, builder=V1016, rtx=False)


def test_nested_weights_are_named_by_their_keys(tmp_path: Path) -> None:
    """Both branches of an If own a weight of one name: the entry says which."""
    arrays = {name: np.full(32, value, np.float32) for name, value in (("then", 1.0), ("else", 2.0))}
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Add", ["x", "w"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [32])],
            [numpy_helper.from_array(array, "w")],
        )
        for name, array in arrays.items()
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], name="if", **branches),
    ]
    write(tmp_path / "m.onnx", nodes, {}, {"x": [32]}, {"y": [32]})
    wanted = {"w": Prototype("float32", 32), "w_7": Prototype("float32", 32)}
    with OnnxWeights(tmp_path / "m.onnx") as weights:
        made = make_weight_map(wanted, weights, builder=V1016, rtx=False)
        assert made.entries["w"] == {"from": "w"} and made.entries["w_7"]["from"] != "w"
        values = {name: weights[entry["from"]].array()[0] for name, entry in made.entries.items()}
    assert values == {"w": 1.0, "w_7": 2.0}


def _source(array: Any, dtype: str, transform: str = "fill", sources: tuple[str, ...] = ()) -> WeightSource:
    return WeightSource("n", transform, sources, dtype, array.size, "words", lambda: array)


@pytest.mark.parametrize(
    ("array", "dtype", "entry"),
    [
        (np.full(3, 0.5, np.float32), "float32", {"fill": 0.5, "count": 3, "dtype": "float32"}),
        (np.full(2, 1.5, np.float16), "float16", {"fill": 1.5, "count": 2, "dtype": "float16"}),
        (np.full(2, 0x3F80, np.uint16), "bfloat16", {"fill": 1.0, "count": 2, "dtype": "bfloat16"}),
        (np.full(1, -7, np.int64), "int64", {"fill": -7, "count": 1, "dtype": "int64"}),
        (np.array([1.0, 2.0], np.float32), "float32", None),
        (np.full(2, np.inf, np.float32), "float32", None),
        (np.full(2, np.nan, np.float32), "float32", None),
        (np.zeros(0, np.float32), "float32", None),
        (np.zeros(1, np.uint8), "float8e4m3fn", None),
    ],
)
def test_fills(array: Any, dtype: str, entry: dict[str, Any] | None) -> None:
    """What the manifest's form cannot say is left to the rules."""
    assert explicit_entry(_source(array, dtype)) == entry


def test_a_constant_of_shape(tmp_path: Path) -> None:
    """From 10.14 on its value is a weight, which has no name in the model."""
    value = numpy_helper.from_array(np.array([2.5], np.float32), "v")
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["c"], name="cos", value=value),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    write(tmp_path / "m.onnx", nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with OnnxWeights(tmp_path / "m.onnx") as weights:
        wanted = {"tmp_refittable_weight": Prototype("float32", 1)}
        made = make_weight_map(wanted, weights, builder=V1016, rtx=False)
    assert made.entries == {"tmp_refittable_weight": {"fill": 2.5, "count": 1, "dtype": "float32"}}


def test_what_no_entry_can_say_is_found_by_rule(tmp_path: Path) -> None:
    """An infinite fill stays with the naming rules, and is named."""
    value = numpy_helper.from_array(np.array([-np.inf], np.float32), "v")
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["c"], name="cos", value=value),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    write(tmp_path / "m.onnx", nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with OnnxWeights(tmp_path / "m.onnx") as weights:
        wanted = {"tmp_refittable_weight": Prototype("float32", 1)}
        made = make_weight_map(wanted, weights, builder=(1, 7, 1, 116), rtx=True)
    assert made.entries == {} and made.by_rule == ("tmp_refittable_weight",)


def test_an_entry_that_would_be_read_as_another_weight_is_left_out(tmp_path: Path) -> None:
    """A constant that comes from the call of a function has no key of its own, and here the model has its name."""
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value_float", ref_attr_name="number", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "local",
        "Shift",
        ["a"],
        ["b"],
        [constant, helper.make_node("Add", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 17)],
        ["number"],
    )
    nodes = [
        helper.make_node("Add", ["x", "c"], ["m"]),
        helper.make_node("Shift", ["m"], ["y"], domain="local", number=2.0),
    ]
    graph = helper.make_graph(
        nodes,
        "sample",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.array([9.0], np.float32), "c")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    wanted = {"c": Prototype("float32", 1), "c_5": Prototype("float32", 1)}
    with OnnxWeights(tmp_path / "m.onnx") as weights:
        made = make_weight_map(wanted, weights, builder=V1016, rtx=False)
        assert {name: float(source.array().item()) for name, source in made.sources.items()} == {"c": 9.0, "c_5": 2.0}
    assert (made.entries, made.by_rule) == ({"c": {"from": "c"}}, ("c_5",))
