"""The manifest's explicit weight map."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from refit_agent.errors import ManifestInvalid, WeightsMismatch, WeightsUncovered

from .models import V8_6, V10_9, ask, chain, f32, folded, save, tensor

FOLD = {"batch_norm": "scale", "scale": "bn0.g", "bias": "bn0.b", "mean": "bn0.m", "variance": "bn0.v"}


@pytest.fixture
def opened(tmp_path):
    nodes, weights = chain([4])
    nodes.append(helper.make_node("Add", ["x1", "w"], ["y"]))
    return save(tmp_path, nodes, [*weights, tensor("w", [1, 2]), tensor("n", [2**40], np.int64)])


@pytest.mark.parametrize("builder", [V8_6, V10_9, (12, 0, 0, 0), (7, 2, 0, 0)])
def test_an_entry_overrides_the_rules(builder, opened):
    sources = ask(opened, ["w", "odd"], builder, explicit={"odd": {"from": "w"}, "w": {"from": "bn0.g"}})
    assert sources["odd"].array().tolist() == [1, 2]
    assert sources["w"].sources == ("bn0.g",)
    assert list(ask(opened, ["bn0.b", "odd"], builder, explicit={"odd": {"from": "w"}})) == ["bn0.b", "odd"]


def test_from_converts_as_the_parser_does(opened):
    source = ask(opened, ["odd"], V8_6, explicit={"odd": {"from": "n"}})["odd"]
    assert (source.transform, source.array().tolist()) == ("cast", [2**31 - 1])


@pytest.mark.parametrize("builder", [V8_6, V10_9, (12, 0, 0, 0)])
def test_a_fold_by_hand(builder, opened):
    explicit = {"s": FOLD, "b": {**FOLD, "batch_norm": "bias", "epsilon": 0.5}}
    sources = ask(opened, f32(s=4, b=4), builder, explicit=explicit)
    assert sources["s"].array().tobytes() == folded(opened, "bn0")[0].tobytes()
    assert sources["b"].array().tobytes() == folded(opened, "bn0", 0.5)[1].tobytes()


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.0, "float32"), (1.5, "float16"), (7, "int64"), (1, "bool"), (-3, "int8")]
)
def test_fill(value, dtype, opened):
    entry = {"fill": value, "count": 3, "dtype": dtype}
    source = ask(opened, {"odd": (dtype, 3)}, V10_9, explicit={"odd": entry})["odd"]
    assert source.array().tolist() == [value] * 3
    assert source.array().dtype == np.dtype(dtype)


def test_an_entry_for_a_name_that_nobody_wants_is_an_error(opened):
    with pytest.raises(WeightsMismatch, match=r"'odd'.*asks for no weight of that name"):
        ask(opened, ["w"], V10_9, explicit={"odd": {"from": "w"}})


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ("w", "must be an object"),
        ({}, "'from', 'batch_norm' and 'fill'"),
        ({"from": 3}, "'from' must be a string, not 3"),
        ({"from": "w", "count": 2}, "'count' does not belong beside 'from'"),
        ({**FOLD, "batch_norm": "mean"}, "'batch_norm' must be 'scale' or 'bias'"),
        ({k: v for k, v in FOLD.items() if k != "variance"}, "'variance' must be a string"),
        ({**FOLD, "epsilon": "1e-5"}, "'epsilon' must be a number"),
        ({**FOLD, "epsilon": -1.0}, "'epsilon' must be a float32 that is not negative"),
        ({**FOLD, "eps": 1.0}, "'eps' does not belong"),
        ({"fill": True, "count": 1, "dtype": "float32"}, "'fill' must be a number"),
        ({"fill": float("nan"), "count": 1, "dtype": "float32"}, "'fill' must be a number"),
        ({"fill": 0, "count": -1, "dtype": "float32"}, "'count' must be a whole number"),
        ({"fill": 0, "count": 1.5, "dtype": "float32"}, "'count' must be a whole number"),
        ({"fill": 0, "count": 1, "dtype": "fp32"}, "'dtype' must be one of"),
        ({"fill": 300, "count": 1, "dtype": "int8"}, "'fill' is 300"),
        ({"fill": 0.5, "count": 1, "dtype": "int32"}, "'fill' is 0.5"),
        ({"fill": 1e6, "count": 1, "dtype": "float16"}, "'fill' is 1000000.0"),
    ],
)
def test_a_malformed_entry_says_where(entry, where, opened):
    with pytest.raises(ManifestInvalid) as caught:
        ask(opened, ["w"], V10_9, explicit={"w": entry})
    assert "entry 'w'" in str(caught.value)
    assert where in str(caught.value)


def test_an_unknown_onnx_name_leaves_the_weight_uncovered(opened):
    with pytest.raises(WeightsUncovered, match="the model has no weight 'gone'"):
        ask(opened, ["w", "odd"], V10_9, explicit={"odd": {"from": "gone"}})


@pytest.mark.parametrize(
    "entry",
    [{"from": "w"}, {"fill": 0, "count": 3, "dtype": "float16"}, {"fill": 0, "count": 2, "dtype": "float32"}, FOLD],
)
def test_types_and_counts_are_checked(entry, opened):
    with pytest.raises(WeightsMismatch, match=r"'odd'.*explicit weight map"):
        ask(opened, {"odd": ("float32", 3)}, V10_9, explicit={"odd": entry})
