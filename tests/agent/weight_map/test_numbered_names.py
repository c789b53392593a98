"""BatchNormalization and ConstantOfShape names of TensorRT 10 and later."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from refit_agent.errors import WeightsAmbiguous, WeightsMismatch, WeightsUncovered

from .models import (
    V8_6,
    V9_3,
    V10_0_EA,
    V10_0_GA,
    V10_9,
    V10_14,
    V11,
    ask,
    batch_norm,
    chain,
    f32,
    folded,
    parameters,
    save,
    subgraph,
    tensor,
)


def shape_constant(name: str, value: object = None, dtype: type = np.float32) -> object:
    attributes = {} if value is None else {"value": tensor("", value, dtype)}
    return helper.make_node("ConstantOfShape", ["shape"], [name], name=name, **attributes)


@pytest.mark.parametrize(
    ("builder", "rtx", "base"),
    [
        (V10_0_GA, False, "tmp_batch_norm_weight"),
        ((10, 0, 1), False, "tmp_batch_norm_weight"),
        (V10_9, False, "tmp_batch_norm_weight"),
        ((10, 13, 0, 35), False, "tmp_batch_norm_weight"),
        (V10_14, False, "tmp_refittable_weight"),
        ((10, 16, 1, 11), False, "tmp_refittable_weight"),
        (V11, False, "tmp_refittable_weight"),
        ((11, 4, 0, 106), False, "tmp_refittable_weight"),
        ((1, 7, 1, 116), True, "tmp_refittable_weight"),
    ],
)
def test_family_of_each_generation(builder, rtx, base, tmp_path):
    weights = save(tmp_path, *chain([4, 4, 4]), outputs=["x3"])
    names = [base, *(f"{base}_{i}" for i in range(5))]

    sources = ask(weights, f32(**dict.fromkeys(names, 4)), builder, rtx=rtx)

    expected = [a for i in range(3) for a in folded(weights, f"bn{i}")]
    assert [sources[n].array().tobytes() for n in names] == [a.tobytes() for a in expected]
    assert sources[names[3]].transform == "batch-norm-bias"
    assert sources[names[3]].sources == ("bn1.g", "bn1.b", "bn1.m", "bn1.v")


@pytest.mark.parametrize(
    ("builder", "rtx", "name"),
    [
        (V8_6, False, "tmp_batch_norm_weight"),
        (V9_3, False, "tmp_refittable_weight"),
        (V10_9, False, "tmp_refittable_weight"),
        (V10_14, False, "tmp_batch_norm_weight"),
        (V10_14, False, "tmp_weight"),
        (V10_0_GA, False, "node_trt_batch_norm_0_scale_weight"),
        (V10_0_EA, False, "tmp_batch_norm_weight"),
        ((12, 0, 0, 0), False, "tmp_refittable_weight"),
        ((8, 3, 0, 0), False, "tmp_weight"),
        ((2, 0, 0, 0), True, "tmp_refittable_weight"),
    ],
)
def test_names_of_another_generation_are_uncovered(builder, rtx, name, tmp_path):
    weights = save(tmp_path, *chain([4]), outputs=["x1"])
    with pytest.raises(WeightsUncovered) as caught:
        ask(weights, f32(**{name: 4}), builder, rtx=rtx)
    assert caught.value.facts["names"] == name


def test_dropped_batch_norms_do_not_move_the_others(tmp_path):
    weights = save(tmp_path, *chain([4, 4, 4]), outputs=["x3"])
    sources = ask(weights, f32(tmp_batch_norm_weight_3=4, tmp_batch_norm_weight_4=4), V10_9)
    assert sources["tmp_batch_norm_weight_3"].array().tobytes() == folded(weights, "bn2")[0].tobytes()
    assert sources["tmp_batch_norm_weight_4"].array().tobytes() == folded(weights, "bn2")[1].tobytes()


def test_constant_of_shape_takes_one_name_from_10_14_on(tmp_path):
    nodes, weights = chain([4, 4])
    nodes[1:1] = [shape_constant("c0"), shape_constant("c1", [7], np.int64)]
    opened = save(tmp_path, nodes, weights, inputs=["x", "shape"], outputs=["x2"])
    b = "tmp_refittable_weight"
    wanted = {**f32(**{b: 4, f"{b}_0": 4, f"{b}_1": 1, f"{b}_3": 4, f"{b}_4": 4}), f"{b}_2": ("int64", 1)}

    sources = ask(opened, wanted, V10_14)

    assert sources[f"{b}_1"].transform == "constant-of-shape"
    assert sources[f"{b}_1"].array().tolist() == [0.0]
    assert (sources[f"{b}_2"].array().tolist(), sources[f"{b}_2"].array().dtype) == ([7], np.int64)
    assert sources[f"{b}_3"].array().tobytes() == folded(opened, "bn1")[0].tobytes()
    old = "tmp_batch_norm_weight"
    assert ask(opened, f32(**{f"{old}_1": 4}), V10_9)[f"{old}_1"].sources[0] == "bn1.g"


def test_a_count_that_does_not_fit_is_a_mismatch(tmp_path):
    weights = save(tmp_path, *chain([4, 5]), outputs=["x2"])
    with pytest.raises(WeightsMismatch, match=r"tmp_batch_norm_weight_1.*4 elements.* has 5"):
        ask(weights, f32(tmp_batch_norm_weight_1=4), V10_9)


def test_a_name_beyond_the_simulation_condemns_the_family(tmp_path):
    weights = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    names = ["tmp_refittable_weight", "tmp_refittable_weight_3"]
    with pytest.raises(WeightsUncovered) as caught:
        ask(weights, f32(**dict.fromkeys(names, 4)), V11)
    assert caught.value.facts["count"] == 2
    with pytest.raises(WeightsUncovered) as caught:  # also where the explicit map covers that very name
        entry = {"fill": 0.0, "count": 4, "dtype": "float32"}
        ask(weights, f32(**dict.fromkeys(names, 4)), V11, explicit={names[1]: entry})
    assert caught.value.facts["names"] == names[0]


def test_both_families_at_once_are_refused(tmp_path):
    weights = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    with pytest.raises(WeightsAmbiguous, match="two parser generations"):
        ask(weights, f32(tmp_refittable_weight=4, tmp_batch_norm_weight=4), (10, 12, 0, 1))


def test_a_batch_norm_with_a_computed_parameter_takes_no_name(tmp_path):
    nodes, weights = chain([4, 4])
    nodes.insert(0, helper.make_node("Abs", ["bn0.v"], ["computed"]))
    nodes[1].input[4] = "computed"
    opened = save(tmp_path, nodes, weights, outputs=["x2"])
    sources = ask(opened, f32(tmp_batch_norm_weight=4, tmp_batch_norm_weight_0=4, **{"bn0.g": 4}), V10_9)
    assert ask(opened, f32(tmp_weight_3=1), V10_9)["tmp_weight_3"].transform == "fill"
    assert sources["tmp_batch_norm_weight"].array().tobytes() == folded(opened, "bn1")[0].tobytes()
    assert sources["bn0.g"].transform == "identity"


def test_strongly_typed_fallback_shows_by_its_parameters(tmp_path):
    nodes, weights = chain([4, 4])
    weights[:4] = parameters("bn0", 4, np.float16)
    opened = save(tmp_path, nodes, weights, outputs=["x2"])
    wanted = {"bn0.g": ("float16", 4), **f32(tmp_refittable_weight=4, tmp_refittable_weight_0=4)}
    sources = ask(opened, wanted, V10_14)
    assert sources["tmp_refittable_weight"].array().tobytes() == folded(opened, "bn1")[0].tobytes()


def test_a_parameter_of_a_float32_network_under_its_own_name_contradicts(tmp_path):
    opened = save(tmp_path, *chain([4, 4, 4]), outputs=["x3"])
    wanted = f32(**{"bn0.g": 4, "tmp_refittable_weight_1": 4, "tmp_refittable_weight_2": 4})
    with pytest.raises(WeightsAmbiguous, match="should have folded"):
        ask(opened, wanted, V10_14)


def test_missing_last_names_with_mixed_types_are_ambiguous(tmp_path):
    nodes, weights = chain([4, 4])
    nodes.insert(0, helper.make_node("Cast", ["half"], ["x"], to=TensorProto.FLOAT16))
    opened = save(tmp_path, nodes, weights, inputs=["half"], outputs=["x2"])
    wanted = f32(tmp_refittable_weight=4, tmp_refittable_weight_0=4)
    with pytest.raises(WeightsAmbiguous, match="may not have been folded"):
        ask(opened, wanted, V10_14)
    complete = f32(tmp_refittable_weight=4, tmp_refittable_weight_2=4)
    assert len(ask(opened, complete, V10_14)) == 2


def test_early_access_counts_nodes(tmp_path):
    nodes, weights = chain([4, 5])
    nodes.insert(1, helper.make_node("Relu", ["x1"], ["unused"]))
    opened = save(tmp_path, nodes, weights, outputs=["x2"])
    names = {"node_trt_batch_norm_0_scale_weight": 4, "node_trt_batch_norm_2_bias_weight": 5}
    sources = ask(opened, f32(**names), V10_0_EA)
    assert sources["node_trt_batch_norm_2_bias_weight"].array().tobytes() == folded(opened, "bn1")[1].tobytes()
    with pytest.raises(WeightsUncovered, match="node 1 of its graph"):
        ask(opened, f32(node_trt_batch_norm_1_scale_weight=4), V10_0_EA)


def test_early_access_clash_of_two_branches_is_ambiguous_unless_equal(tmp_path):
    def model(second):
        branches = [
            subgraph("then", [batch_norm("a", "x", "out")], parameters("a", 4)),
            subgraph("else", [batch_norm("b", "x", "out")], second),
        ]
        node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
        return save(tmp_path, [node], inputs=["x", "c"])

    name = "node_trt_batch_norm_0_scale_weight"
    with pytest.raises(WeightsAmbiguous, match=r"'a' or .*'b'"):
        ask(model(parameters("b", 4)), f32(**{name: 4}), V10_0_EA)
    same = parameters("a", 4)
    for t in same:
        t.name = "b" + t.name[1:]
    assert ask(model(same), f32(**{name: 4}), V10_0_EA)[name].count == 4


@pytest.mark.parametrize(
    ("builder", "dtype", "wanted", "error"),
    [
        (V10_9, np.float16, "float16", None),
        (V10_9, np.float16, "float32", None),
        (V10_9, np.float32, "float16", WeightsMismatch),
        (V10_9, np.float64, "float32", None),
        (V10_9, np.int32, "float32", WeightsUncovered),
    ],
)
def test_the_prototype_decides_the_precision(builder, dtype, wanted, error, tmp_path):
    opened = save(tmp_path, [batch_norm("bn", "x", "y")], parameters("bn", 4, dtype))
    prototypes = {"tmp_batch_norm_weight": (wanted, 4)}
    if error:
        with pytest.raises(error):
            ask(opened, prototypes, builder)
        return
    got = ask(opened, prototypes, builder)["tmp_batch_norm_weight"]
    assert (got.dtype, got.array().dtype) == (wanted, np.dtype(wanted))
    if wanted == "float32":
        assert got.array().tobytes() == folded(opened, "bn")[0].tobytes()


def test_half_results_need_half_parameters_throughout(tmp_path):
    mixed = [*parameters("bn", 4, np.float16)[:3], parameters("bn", 4)[3]]
    opened = save(tmp_path, [batch_norm("bn", "x", "y")], mixed)
    with pytest.raises(WeightsMismatch, match="is float32"):
        ask(opened, {"tmp_batch_norm_weight": ("float16", 4)}, V10_9)
    assert ask(opened, f32(tmp_batch_norm_weight=4), V10_9)
    opened = save(tmp_path, [batch_norm("bn", "x", "y")], parameters("bn", 4, np.float16))
    with pytest.raises(WeightsMismatch, match="bfloat16"):
        ask(opened, {"tmp_batch_norm_weight": ("bfloat16", 4)}, V10_9)


def test_epsilon_of_the_node_is_used(tmp_path):
    opened = save(tmp_path, [batch_norm("bn", "x", "y", epsilon=0.25)], parameters("bn", 4))
    got = ask(opened, f32(tmp_batch_norm_weight=4), V10_9)["tmp_batch_norm_weight"]
    assert got.array().tobytes() == folded(opened, "bn", 0.25)[0].tobytes()


def test_an_explicit_fold_that_contradicts_the_numbering_condemns_it(tmp_path):
    opened = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    names = ["tmp_batch_norm_weight", "tmp_batch_norm_weight_0", "tmp_batch_norm_weight_2"]

    def fold(prefix):
        fields = zip(("scale", "bias", "mean", "variance"), "gbmv", strict=True)
        return {names[0]: {"batch_norm": "scale", **{f: f"{prefix}.{p}" for f, p in fields}}}

    with pytest.raises(WeightsAmbiguous, match="disagree"):
        ask(opened, f32(**dict.fromkeys(names, 4)), V10_9, explicit=fold("bn1"))
    assert len(ask(opened, f32(**dict.fromkeys(names, 4)), V10_9, explicit=fold("bn0"))) == 3
