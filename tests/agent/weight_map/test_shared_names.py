"""tmp_weight_N: BatchNormalization of 8.4 to 9.3, and made-up scalars."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from refit_agent.errors import WeightsAmbiguous, WeightsMismatch, WeightsUncovered

from .models import V8_6, V9_3, V10_9, ask, chain, f32, folded, parameters, save, tensor


def sources_of(sources) -> dict[str, str]:
    return {n: (s.sources[0] if s.sources else s.words) for n, s in sources.items()}


def test_numbers_need_no_beginning_and_may_have_gaps(tmp_path):
    opened = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    sources = ask(opened, ["tmp_weight_12", "tmp_weight_7", "tmp_weight_11", "tmp_weight_6"], V8_6)
    expected = dict(zip(("tmp_weight_6", "tmp_weight_7"), folded(opened, "bn0"), strict=True))
    expected |= dict(zip(("tmp_weight_11", "tmp_weight_12"), folded(opened, "bn1"), strict=True))
    assert {n: s.array().tobytes() for n, s in sources.items()} == {n: a.tobytes() for n, a in expected.items()}


def test_the_bare_name_is_followed_by_any_number(tmp_path):
    opened = save(tmp_path, *chain([4]), outputs=["x1"])
    sources = ask(opened, ["tmp_weight_31", "tmp_weight"], V8_6)
    assert sources["tmp_weight"].transform == "batch-norm-scale"
    assert sources["tmp_weight_31"].transform == "batch-norm-bias"


def test_numbers_sort_as_numbers(tmp_path):
    opened = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    sources = ask(opened, ["tmp_weight_10", "tmp_weight_9", "tmp_weight_2", "tmp_weight_1"], V8_6)
    assert sources["tmp_weight_9"].sources[0] == "bn1.g"


def test_halves_of_different_pairs_are_no_pair(tmp_path):
    opened = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    with pytest.raises(WeightsUncovered) as caught:
        ask(opened, ["tmp_weight_1", "tmp_weight_3", "tmp_weight_5", "tmp_weight_7"], V8_6)
    assert caught.value.facts["count"] == 4


def test_a_model_s_own_tmp_weight_is_skipped_by_the_generator(tmp_path):
    nodes, weights = chain([4])
    nodes.append(helper.make_node("Add", ["x1", "tmp_weight_7"], ["y"]))
    opened = save(tmp_path, nodes, [*weights, tensor("tmp_weight_7", [5])])
    sources = ask(opened, ["tmp_weight_6", "tmp_weight_7", "tmp_weight_8"], V8_6)
    assert sources["tmp_weight_7"].array().tolist() == [5]
    assert sources["tmp_weight_8"].transform == "batch-norm-bias"


def test_a_dropped_batch_norm_is_ambiguous_without_counts(tmp_path):
    opened = save(tmp_path, *chain([4, 4]), outputs=["x2"])
    with pytest.raises(WeightsAmbiguous, match=r"bn0.*bn1"):
        ask(opened, ["tmp_weight_0", "tmp_weight_1"], V8_6)


def test_counts_settle_a_dropped_batch_norm(tmp_path):
    opened = save(tmp_path, *chain([4, 5, 4]), outputs=["x3"])
    sources = ask(opened, f32(tmp_weight_2=5, tmp_weight_3=5, tmp_weight_4=4, tmp_weight_5=4), V9_3)
    assert sources_of(sources)["tmp_weight_4"] == "bn2.g"
    with pytest.raises(WeightsAmbiguous):
        ask(opened, f32(tmp_weight_4=4, tmp_weight_5=4), V9_3)


def test_a_count_settles_its_neighbours_too(tmp_path):
    opened = save(tmp_path, *chain([5, 4, 5, 5]), outputs=["x4"])
    counts = {f"tmp_weight_{n}": c for n, c in ((2, 4), (3, 4), (4, 5), (5, 5), (6, 5), (7, 5))}
    sources = ask(opened, f32(**counts), V9_3)
    assert [s.sources[0] for s in list(sources.values())[::2]] == ["bn1.g", "bn2.g", "bn3.g"]


def test_equal_values_settle_it_too(tmp_path):
    nodes, weights = chain([4, 4])
    for t, same in zip(weights[4:], parameters("bn0", 4), strict=True):
        t.raw_data = same.raw_data
    opened = save(tmp_path, nodes, weights, outputs=["x2"])
    assert len(ask(opened, ["tmp_weight_0", "tmp_weight_1"], V8_6)) == 2


def test_one_node_used_twice_with_another_epsilon_is_not_the_same(tmp_path):
    nodes, weights = chain([4])
    again = helper.make_node("BatchNormalization", ["x1", *nodes[0].input[1:]], ["y"], epsilon=0.5)
    opened = save(tmp_path, [*nodes, again], weights)
    with pytest.raises(WeightsAmbiguous):
        ask(opened, ["tmp_weight_0", "tmp_weight_1"], V8_6)


def test_a_count_that_contradicts_is_a_mismatch(tmp_path):
    opened = save(tmp_path, *chain([4, 5]), outputs=["x2"])
    with pytest.raises(WeightsMismatch, match="has 5"):
        ask(opened, f32(tmp_weight=4, tmp_weight_0=4, tmp_weight_1=4, tmp_weight_2=4), V9_3)


def test_an_explicit_pair_settles_the_rest(tmp_path):
    opened = save(tmp_path, *chain([4, 4, 4]), outputs=["x3"])
    entry = {f: f"bn1.{p}" for f, p in zip(("scale", "bias", "mean", "variance"), "gbmv", strict=True)}
    pinned = {"tmp_weight_5": {"batch_norm": "scale", **entry}, "tmp_weight_6": {"batch_norm": "bias", **entry}}
    names = ["tmp_weight_5", "tmp_weight_6", "tmp_weight_7", "tmp_weight_8"]
    assert ask(opened, names, V8_6, explicit=pinned)["tmp_weight_7"].sources[0] == "bn2.g"


def test_scale_alone_is_refused(tmp_path):
    opened = save(tmp_path, *chain([4]), outputs=["x1"])
    with pytest.raises(WeightsUncovered):
        ask(opened, ["tmp_weight"], V8_6)


def gemm(alpha: float, beta: float):
    return helper.make_node("Gemm", ["x1", "w", "b"], ["y"], name="fc", alpha=alpha, beta=beta)


def test_factors_of_gemm_are_scalars_in_order(tmp_path):
    nodes, weights = chain([4])
    extra = [tensor("w", np.eye(4)), tensor("b", [0] * 4)]
    opened = save(tmp_path, [*nodes, gemm(0.5, 2.0)], [*weights, *extra])
    wanted = f32(tmp_weight=4, tmp_weight_0=4, tmp_weight_1=1, tmp_weight_2=1)
    sources = ask(opened, wanted, V9_3)
    assert [sources[n].array().tolist() for n in ("tmp_weight_1", "tmp_weight_2")] == [[0.5], [2.0]]
    two = f32(tmp_weight=1, tmp_weight_0=1)
    assert ask(opened, two, (10, 6, 0, 26))["tmp_weight_0"].array().tolist() == [2.0]
    with pytest.raises(WeightsAmbiguous):
        ask(opened, f32(tmp_weight=1), (10, 6, 0, 26))
    with pytest.raises(WeightsAmbiguous, match="epsilon"):  # the BatchNormalization may have fallen back
        ask(opened, two, V10_9)


def test_gemm_factors_of_one_make_nothing(tmp_path):
    nodes, weights = chain([4])
    extra = [tensor("w", np.eye(4)), tensor("b", [0] * 4)]
    opened = save(tmp_path, [*nodes, gemm(1.0, 1.0)], [*weights, *extra])
    assert len(ask(opened, ["tmp_weight", "tmp_weight_0"], V8_6)) == 2


def test_an_operator_that_may_make_constants_can_hide_a_dropped_batch_norm(tmp_path):
    nodes, weights = chain([4])
    nodes.append(helper.make_node("Celu", ["x1"], ["y"]))
    opened = save(tmp_path, nodes, weights)
    with pytest.raises(WeightsAmbiguous, match="Celu"):
        ask(opened, ["tmp_weight", "tmp_weight_0"], V8_6)
    with pytest.raises(WeightsUncovered, match="Celu"):
        ask(opened, f32(tmp_weight_9=1), (10, 6, 0, 26))


def test_epsilon_of_a_batch_norm_that_is_not_folded(tmp_path):
    nodes, weights = chain([4])
    nodes.insert(0, helper.make_node("Abs", ["bn0.v"], ["v"]))
    nodes[1].input[4] = "v"
    opened = save(tmp_path, nodes, weights, outputs=["x1"])
    assert ask(opened, ["tmp_weight"], V8_6)["tmp_weight"].array().tolist() == [np.float32(1e-5)]
    half = ask(opened, {"tmp_weight": ("float16", 1)}, V10_9)["tmp_weight"].array()
    assert half.tolist() == [168 * 2.0**-24]


def test_constant_of_shape_without_value_is_a_zero(tmp_path):
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["y"])]
    opened = save(tmp_path, nodes, inputs=["s"])
    assert ask(opened, ["tmp_weight_2"], V8_6)["tmp_weight_2"].array().tolist() == [0.0]
    nodes[0].attribute.append(helper.make_attribute("value", tensor("", [3])))
    opened = save(tmp_path, nodes, inputs=["s"])
    with pytest.raises(WeightsUncovered):
        ask(opened, ["tmp_weight_2"], V8_6)


@pytest.mark.parametrize(
    ("builder", "dtype", "error"),
    [
        ((8, 4, 3, 1), np.float32, None),
        ((8, 4, 3, 1), np.float16, WeightsAmbiguous),
        ((8, 5, 3, 1), np.float16, None),
        (V8_6, np.float64, None),
        ((9, 1, 0, 4), np.float16, None),
        ((9, 2, 0, 5), np.float16, WeightsAmbiguous),
        (V9_3, np.float32, None),
    ],
)
def test_without_prototypes_the_precision_must_follow_from_the_version(builder, dtype, error, tmp_path):
    opened = save(tmp_path, chain([4])[0], parameters("bn0", 4, dtype), outputs=["x1"])
    if error:
        with pytest.raises(error, match="does not say which"):
            ask(opened, ["tmp_weight", "tmp_weight_0"], builder)
        return
    sources = ask(opened, ["tmp_weight", "tmp_weight_0"], builder)
    assert sources["tmp_weight"].array().tobytes() == folded(opened, "bn0")[0].tobytes()
