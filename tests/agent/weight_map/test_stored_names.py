"""Names of the model itself: initializers, Constant nodes, scoped duplicates, zero points."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from refit_agent.errors import WeightsAmbiguous, WeightsMismatch, WeightsUncovered

from .models import V8_6, V9_3, V10_0_GA, V10_9, V10_14, V11, ask, f32, save, subgraph, tensor

UNREAD = (12, 1, 0, 0)


def add(*inputs: str, to: str = "y"):
    return helper.make_node("Add", inputs, [to])


def branches(then, other, before=(), initializers=(), folder=None, after=()):
    """A model with an If whose branches hold the given initializers."""
    node = helper.make_node(
        "If",
        ["c"],
        ["chosen"],
        then_branch=subgraph("t", [add("x", then[0].name, to="out")], then),
        else_branch=subgraph("e", [add("x", other[0].name, to="out")], other),
    )
    return save(folder, [*before, node, *after, add("chosen", "x")], initializers, inputs=["x", "c"])


def test_identity_is_a_view_into_the_file(tmp_path):
    opened = save(tmp_path, [add("x", "w")], [tensor("w", np.arange(1000))])
    source = ask(opened, ["w"], V8_6)["w"]
    assert (source.transform, source.sources, source.dtype, source.count) == ("identity", ("w",), "float32", 1000)
    assert source.array().ctypes.data == opened["w"].array().ctypes.data
    assert source.array().flags.c_contiguous
    assert source.explain() == "w: the ONNX weight 'w' (float32, 1000 elements)"


def test_order_is_that_of_the_plan(tmp_path):
    opened = save(tmp_path, [add("a", "b")], [tensor("a", [1]), tensor("b", [2])])
    assert list(ask(opened, ["b", "a"], V8_6)) == ["b", "a"]


def test_constant_nodes_go_by_their_output(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["t"], value=tensor("other", [1, 2])),
        helper.make_node("Constant", [], ["f"], value_float=0.5),
        helper.make_node("Constant", [], ["fs"], value_floats=[0.5, 1.5]),
        helper.make_node("Constant", [], ["i"], value_int=7),
        helper.make_node("Constant", [], ["is"], value_ints=[7, 8]),
        add("t", "f"),
    ]
    opened = save(tmp_path, nodes)
    wanted = {**f32(t=2, f=1, fs=2), "i": ("int64", 1), "is": ("int64", 2)}
    sources = ask(opened, wanted, V10_9)
    assert [s.array().tolist() for s in sources.values()] == [[1, 2], 0.5, [0.5, 1.5], 7, [7, 8]]
    assert sources["f"].array().dtype == np.float32
    with pytest.raises(WeightsUncovered, match="misreads integers"):
        ask(opened, ["i", "is"], V8_6)


@pytest.mark.parametrize(
    ("builder", "dtype", "values", "said", "expected"),
    [
        (V8_6, np.int64, [2**40, -(2**40), 5], None, [2**31 - 1, -(2**31), 5]),
        (V9_3, np.int64, [2**40], None, [2**40]),
        (V10_9, np.int64, [2**40], "int64", [2**40]),
        (V10_9, np.int64, [5], "int32", WeightsMismatch),
        (V8_6, np.float64, [1e300, -np.inf, 0.1], None, [np.finfo(np.float32).max, -np.finfo(np.float32).max, 0.1]),
        (V11, np.float64, [0.1], "float32", [0.1]),
        (V11, np.float64, [0.1], "float64", WeightsMismatch),
        (V8_6, np.uint8, [200], None, [200]),
        (V10_9, np.uint8, [200], "int32", [200]),
        (V10_9, np.uint8, [200], "uint8", WeightsMismatch),
        ((10, 12, 0, 1), np.uint8, [200], "uint8", [200]),
        ((10, 12, 0, 1), np.uint8, [200], "int32", [200]),
        ((10, 12, 0, 1), np.uint8, [200], None, WeightsUncovered),
        (V10_14, np.uint8, [200], "uint8", [200]),
        (V10_14, np.float32, [1], "float16", WeightsMismatch),
        (V10_14, np.float16, [1], "float32", WeightsMismatch),
        (V10_14, np.bool_, [1, 0], "bool", [True, False]),
        (V8_6, np.uint16, [1], None, WeightsUncovered),
        (V11, np.uint16, [1], "uint16", WeightsUncovered),
        (UNREAD, np.float32, [1], "float32", [1]),
        (UNREAD, np.int64, [1], "int64", [1]),
        (UNREAD, np.int64, [1], "int32", WeightsMismatch),
        (UNREAD, np.int64, [1], None, WeightsUncovered),
        (UNREAD, np.float64, [1], "float32", WeightsUncovered),
    ],
)
def test_import_types(builder, dtype, values, said, expected, tmp_path):
    opened = save(tmp_path, [add("x", "w")], [tensor("w", values, dtype)])
    wanted = {"w": (said, None)}
    if isinstance(expected, type):
        with pytest.raises(expected):
            ask(opened, wanted, builder)
        return
    source = ask(opened, wanted, builder)["w"]
    assert source.array().tolist() == np.asarray(expected, source.array().dtype).tolist()
    assert source.array().dtype.name == source.dtype == (said or source.dtype)
    assert source.transform == ("identity" if source.dtype == np.dtype(dtype).name else "cast")


@pytest.mark.parametrize(
    ("code", "dtype", "first"),
    [
        (TensorProto.BFLOAT16, "bfloat16", (9, 0)),
        (TensorProto.FLOAT8E4M3FN, "float8e4m3fn", (9, 0)),
        (TensorProto.INT4, "int4", (10, 0, 1)),
        (TensorProto.FLOAT4E2M1, "float4e2m1", (10, 8)),
    ],
)
def test_newer_types_are_refused_before_the_parser_knew_them(code, dtype, first, tmp_path):
    t = helper.make_tensor("w", code, [2], bytes(4 if dtype == "bfloat16" else 2 if "8" in dtype else 1), raw=True)
    opened = save(tmp_path, [add("x", "w")], [t])
    assert ask(opened, {"w": (dtype, 2)}, (*first, 0, 0))["w"].transform == "identity"
    older = (first[0] - 1, 9) if first[1] == 0 else (first[0], first[1] - 1)
    with pytest.raises(WeightsUncovered, match="does not import"):
        ask(opened, {"w": (dtype, 2)}, {(8, 9): V8_6, (9, 9): V9_3}.get(older, (*older, 0, 0)))


def test_count_is_checked(tmp_path):
    opened = save(tmp_path, [add("x", "w")], [tensor("w", [1, 2])])
    with pytest.raises(WeightsMismatch, match=r"3 elements.*has 2"):
        ask(opened, f32(w=3), V10_9)


def test_duplicates_of_two_branches_go_by_order(tmp_path):
    opened = branches([tensor("w", [1])], [tensor("w", [2])], folder=tmp_path)
    sources = ask(opened, ["w_17", "w"], V8_6)
    assert sources["w"].array().tolist() == [1]
    assert sources["w_17"].array().tolist() == [2]


def test_a_subgraph_that_shadows_an_outer_weight_is_the_duplicate(tmp_path):
    opened = branches([tensor("w", [1])], [tensor("w", [2])], initializers=[tensor("w", [0])], folder=tmp_path)
    sources = ask(opened, ["w", "w_40", "w_9"], V10_9)
    assert [sources[n].array().tolist() for n in ("w", "w_9", "w_40")] == [[0], [1], [2]]


def test_a_tensor_takes_the_plain_name_too(tmp_path):
    before = [helper.make_node("Relu", ["x"], ["w"])]
    opened = branches([tensor("w", [1])], [tensor("v", [2])], before, folder=tmp_path)
    assert ask(opened, ["w_3"], V10_9)["w_3"].array().tolist() == [1]
    with pytest.raises(WeightsUncovered):
        ask(opened, ["w"], V10_9)


def test_an_initializer_that_looks_like_a_duplicate_wins(tmp_path):
    own = [tensor("w_17", [5]), tensor("w", [0])]
    opened = branches([tensor("w", [1])], [tensor("w", [2])], initializers=own, folder=tmp_path)
    sources = ask(opened, ["w", "w_17", "w_18", "w_20"], V10_9)
    assert [s.array().tolist() for s in sources.values()] == [[0], [5], [1], [2]]


def test_a_constant_met_after_the_duplicates_may_share_its_name(tmp_path):
    after = [helper.make_node("Constant", [], ["w_17"], value=tensor("", [5]))]
    opened = branches([tensor("w", [1])], [tensor("w", [2])], folder=tmp_path, after=after)
    with pytest.raises(WeightsAmbiguous, match="w_17"):
        ask(opened, ["w", "w_17"], V10_9)


def test_a_dropped_duplicate_is_ambiguous_unless_something_tells(tmp_path):
    def model(second, third):
        own = [tensor("w", [0])]
        return branches([tensor("w", second)], [tensor("w", third)], initializers=own, folder=tmp_path)

    with pytest.raises(WeightsAmbiguous, match="w_5"):
        ask(model([1], [2]), ["w", "w_5"], V10_9)
    assert ask(model([1], [1]), ["w", "w_5"], V10_9)["w_5"].array().tolist() == [1]
    assert ask(model([1], [2, 3]), f32(w=1, w_5=2), V10_9)["w_5"].array().tolist() == [2, 3]


def test_duplicates_whose_counts_contradict_the_order_are_refused(tmp_path):
    opened = branches([tensor("w", [1])], [tensor("w", [2, 3])], initializers=[tensor("w", [0])], folder=tmp_path)
    with pytest.raises(WeightsMismatch, match="w_5"):
        ask(opened, f32(w_5=2, w_6=1), V10_9)


def test_more_duplicates_than_the_model_has_are_uncovered(tmp_path):
    opened = branches([tensor("w", [1])], [tensor("w", [2])], folder=tmp_path)
    with pytest.raises(WeightsUncovered) as caught:
        ask(opened, ["w", "w_1", "w_2"], V10_9)
    assert caught.value.facts["names"] == "w_1, w_2"


def test_an_explicit_entry_pins_the_order(tmp_path):
    opened = branches([tensor("w", [1])], [tensor("w", [2])], initializers=[tensor("w", [0])], folder=tmp_path)
    first, second = (ref.key for ref in opened.definitions("w")[1:])
    sources = ask(opened, ["w_5", "w_6"], V10_9, explicit={"w_5": {"from": first}})
    assert sources["w_6"].sources == (second,)


@pytest.mark.parametrize("builder", [(8, 5, 3, 1), UNREAD])
def test_where_duplicates_are_not_renamed_they_must_hold_equal_bytes(builder, tmp_path):
    opened = branches([tensor("w", [1])], [tensor("w", [2])], folder=tmp_path)
    with pytest.raises(WeightsAmbiguous):
        ask(opened, ["w"], builder)
    opened = branches([tensor("w", [1])], [tensor("w", [1])], folder=tmp_path)
    assert ask(opened, ["w"], builder)["w"].count == 1
    with pytest.raises(WeightsUncovered):
        ask(opened, ["w_3"], builder)


def test_branches_never_parsed_define_nothing(tmp_path):
    opened = branches(
        [tensor("a", [1])], [tensor("b", [2])], initializers=[tensor("c", [True], np.bool_)], folder=tmp_path
    )
    assert ask(opened, ["a"], V10_0_GA)
    with pytest.raises(WeightsUncovered):
        ask(opened, ["b"], V10_0_GA)


def quantised(folder, *, other_use=False):
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "zp"], ["y"])]
    if other_use:
        nodes.append(helper.make_node("Cast", ["zp"], ["z"], to=1))
    return save(folder, nodes, [tensor("s", [0.5]), tensor("zp", [3, 3], np.int8)])


def test_a_zero_point_of_8_6_is_float_zeros(tmp_path):
    source = ask(quantised(tmp_path), ["s", "zp"], V8_6)["zp"]
    assert (source.transform, source.dtype, source.array().tolist()) == ("fill", "float32", [0.0, 0.0])
    with pytest.raises(WeightsAmbiguous, match="zero point"):
        ask(quantised(tmp_path, other_use=True), ["zp"], V8_6)


def test_from_10_on_the_prototype_says_what_a_zero_point_is(tmp_path):
    opened = quantised(tmp_path)
    assert ask(opened, {"zp": ("int8", 2)}, V10_9)["zp"].transform == "identity"
    assert ask(opened, {"zp": ("float32", 2)}, V10_9)["zp"].transform == "fill"


def test_a_graph_output_reserves_its_name_before_anything_else(tmp_path):
    opened = branches([tensor("y", [1])], [tensor("v", [2])], folder=tmp_path)
    assert ask(opened, ["y_3"], V10_9)["y_3"].array().tolist() == [1]
    with pytest.raises(WeightsUncovered):
        ask(opened, ["y"], V10_9)


def test_numbers_in_attributes_of_one_name_are_told_apart(tmp_path):
    graphs = [
        subgraph(n, [helper.make_node("Constant", [], ["k"], value_float=v), add("x", "k", to="out")])
        for n, v in (("t", 0.5), ("e", 1.5))
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    again = helper.make_node("If", ["c"], ["z"], then_branch=graphs[1], else_branch=graphs[0])
    opened = save(tmp_path, [node, again], inputs=["x", "c"])
    complete = ask(opened, ["k", "k_1", "k_2", "k_3"], V10_9)
    assert [s.array().item() for s in complete.values()] == [0.5, 1.5, 1.5, 0.5]
    with pytest.raises(WeightsAmbiguous):
        ask(opened, ["k", "k_3"], V10_9)
