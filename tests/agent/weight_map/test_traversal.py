"""The order of the parser's walk, seen through the numbered names it hands out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from refit_agent.errors import WeightsAmbiguous, WeightsUncovered, WeightUnsupported
from refit_agent.weight_map.traversal import parse_order
from refit_agent.weights.records import Node

from .models import V10_9, ask, batch_norm, chain, f32, parameters, save, subgraph, tensor


def folds_in_order(weights, count, builder=V10_9) -> list[str]:
    """Which BatchNormalization each numbered pair of names belongs to."""
    base = "tmp_batch_norm_weight"
    names = [base, *(f"{base}_{i}" for i in range(2 * count - 1))]
    sources = ask(weights, dict.fromkeys(names, ("float32", 4)), builder)
    return [sources[n].sources[0].split("::")[-1].removesuffix(".g") for n in names[::2]]


def branch(prefix: str) -> onnx.GraphProto:
    return subgraph(prefix, [batch_norm(prefix, "x", "out")], parameters(prefix, 4))


def conditional(condition: str, output: str) -> onnx.NodeProto:
    return helper.make_node(
        "If", [condition], [output], then_branch=branch("then"), else_branch=branch("else"), name=output
    )


def node(name, inputs, outputs):
    return Node("Op", "", name, tuple(inputs), tuple(outputs), {})


def test_sorted_graphs_keep_their_order():
    nodes = [node("a", ["x"], ["1"]), node("b", ["x"], ["2"]), node("c", ["1", "2"], ["3"])]
    assert parse_order(nodes) == [0, 1, 2]


def test_unsorted_graphs_are_walked_from_the_first_node_back():
    nodes = [node("d", ["2", "1"], ["3"]), node("free", [], ["4"]), node("b", ["x"], ["1"]), node("c", ["1"], ["2"])]
    assert parse_order(nodes) == [2, 3, 0, 1]


def test_a_long_unsorted_chain_does_not_exhaust_the_stack():
    nodes = [node(str(i), [str(i + 1)], [str(i)]) for i in range(20_000)]
    assert parse_order(nodes) == list(range(19_999, -1, -1))


def test_unsorted_batch_norms_are_numbered_in_parse_order(tmp_path):
    nodes, weights = chain([4, 4, 4])
    opened = save(tmp_path, [nodes[2], nodes[0], nodes[1]], weights, outputs=["x3"])
    assert folds_in_order(opened, 3) == ["bn0", "bn1", "bn2"]
    side = batch_norm("side", "x", "s")
    opened = save(tmp_path, [nodes[2], side, nodes[0], nodes[1]], weights + parameters("side", 4), outputs=["x3"])
    assert folds_in_order(opened, 4) == ["bn0", "bn1", "bn2", "side"]


def test_what_a_subgraph_captures_is_no_edge(tmp_path):
    nodes, weights = chain([4])
    captures = helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=subgraph("t", [batch_norm("then", "x1", "out")], parameters("then", 4)),
        else_branch=subgraph("e", [helper.make_node("Identity", ["x1"], ["out"])]),
    )
    opened = save(tmp_path, [captures, *nodes], weights, inputs=["x", "c"])
    assert folds_in_order(opened, 2) == ["then", "bn0"]


def test_then_comes_before_else_whatever_the_attribute_order(tmp_path):
    nodes, weights = chain([4])
    swapped = conditional("c", "y")
    first, second = swapped.attribute
    del swapped.attribute[:]
    swapped.attribute.extend([second, first])
    opened = save(tmp_path, [nodes[0], swapped], weights, inputs=["x", "c"])
    assert folds_in_order(opened, 3) == ["bn0", "then", "else"]


@pytest.mark.parametrize(("value", "taken"), [(True, "then"), (False, "else")])
@pytest.mark.parametrize("as_node", [True, False])
def test_a_constant_condition_walks_only_its_branch(value, taken, as_node, tmp_path):
    nodes, weights = chain([4])
    condition = tensor("c", [value], np.bool_)
    before = [helper.make_node("Constant", [], ["c"], value=condition)] if as_node else []
    constants = weights if as_node else [*weights, condition]
    opened = save(tmp_path, [*before, conditional("c", "y"), *nodes], constants, outputs=["x1"])
    assert folds_in_order(opened, 2) == [taken, "bn0"]


def test_loop_and_scan_bodies_are_walked_at_their_node(tmp_path):
    nodes, weights = chain([4, 4])
    body = subgraph(
        "body", [batch_norm("inner", "state", "out")], parameters("inner", 4), inputs=["i", "cond", "state"]
    )
    loop = helper.make_node("Loop", ["", "c", "x"], ["l"], body=body)
    scan_body = subgraph("scan", [batch_norm("scanned", "s", "out")], parameters("scanned", 4), inputs=["s"])
    scan = helper.make_node("Scan", ["x"], ["z"], body=scan_body, num_scan_inputs=1)
    opened = save(tmp_path, [nodes[0], loop, scan, nodes[1]], weights, inputs=["x", "c"], outputs=["x2"])
    assert folds_in_order(opened, 4) == ["bn0", "inner", "scanned", "bn1"]


def test_a_function_is_walked_at_every_call_in_listed_order(tmp_path):
    nodes, weights = chain([4])
    body = [
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["r"], name="inside"),
    ]
    function = helper.make_function(
        "local", "Normalize", ["a", "g", "b", "m", "v"], ["r"], body, [helper.make_opsetid("", 17)]
    )

    def call(prefix, x, y):
        return helper.make_node(
            "Normalize", [x, *(f"{prefix}.{p}" for p in "gbmv")], [y], domain="local", name=f"call {prefix}"
        )

    both = [*weights, *parameters("p", 4), *parameters("q", 4)]
    opened = save(
        tmp_path, [call("p", "x", "1"), *nodes, call("q", "x1", "2")], both, outputs=["2"], functions=[function]
    )
    assert folds_in_order(opened, 3) == ["p", "bn0", "q"]
    # From 10.7 on a plugin may have replaced the body; without the last names nobody can tell.
    with pytest.raises(WeightsAmbiguous, match="plugin"):
        ask(opened, f32(tmp_batch_norm_weight=4), V10_9)
    names = ["tmp_batch_norm_weight", *(f"tmp_batch_norm_weight_{i}" for i in range(4))]
    with pytest.raises(WeightsAmbiguous, match="plugin"):
        ask(opened, f32(**dict.fromkeys(names, 4)), V10_9)
    assert ask(opened, f32(tmp_batch_norm_weight=4), (10, 6, 0, 1))


def test_batch_norm_of_an_outer_scope_folds(tmp_path):
    outer = parameters("outer", 4)
    inside = subgraph("t", [batch_norm("outer", "x", "out")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=branch("else"))
    opened = save(tmp_path, [node], outer, inputs=["x", "c"])
    assert folds_in_order(opened, 2) == ["outer", "else"]


def test_a_constant_branch_hands_its_weights_out_under_the_outer_name(tmp_path):
    inside = subgraph("t", [helper.make_node("Constant", [], ["out"], value=tensor("", [1, 2, 3]))])
    node = helper.make_node("If", ["c"], ["w"], then_branch=inside, else_branch=branch("else"))
    use = helper.make_node("Add", ["x", "w"], ["y"])
    opened = save(tmp_path, [node, use], [tensor("c", [True], np.bool_)])
    assert ask(opened, f32(w=3), V10_9)["w"].array().tolist() == [1, 2, 3]


def test_attributes_of_a_call_reach_the_function(tmp_path):
    constant = helper.make_node("Constant", [], ["k"])
    reference = onnx.AttributeProto(name="value", ref_attr_name="table", type=onnx.AttributeProto.TENSOR)
    constant.attribute.append(reference)
    body = [constant, helper.make_node("Add", ["a", "k"], ["r"])]
    function = helper.make_function("local", "Shift", ["a"], ["r"], body, [helper.make_opsetid("", 17)], ["table"])
    calls = [
        helper.make_node("Shift", [x], [y], domain="local", table=tensor("", v))
        for x, y, v in (("x", "1", [1, 2]), ("1", "2", [3, 4]), ("2", "y", [5, 6]))
    ]
    opened = save(tmp_path, calls, functions=[function])
    sources = ask(opened, f32(k=2, k_12=2, k_9=2), V10_9)
    assert [sources[n].array().tolist() for n in ("k", "k_9", "k_12")] == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(WeightsAmbiguous):
        ask(opened, f32(k=2, k_12=2), V10_9)


def test_functions_that_call_themselves_are_refused(tmp_path):
    body = [helper.make_node("Again", ["a"], ["r"], domain="local", name="inner")]
    function = helper.make_function("local", "Again", ["a"], ["r"], body, [helper.make_opsetid("local", 1)])
    call = helper.make_node("Again", ["x"], ["y"], domain="local")
    opened = save(tmp_path, [call], functions=[function])
    with pytest.raises(WeightUnsupported, match=r"'inner'.*24 deep"):
        ask(opened, ["w"], V10_9)


def test_functions_that_unfold_without_end_are_refused(tmp_path):
    functions = [
        helper.make_function(
            "local",
            f"F{i}",
            ["a"],
            ["r"],
            [helper.make_node(f"F{i + 1}", ["a"], [out], domain="local") for out in ("r", "s")],
            [helper.make_opsetid("local", 1)],
        )
        for i in range(23)
    ]
    opened = save(tmp_path, [helper.make_node("F0", ["x"], ["y"], domain="local")], functions=functions)
    with pytest.raises(WeightUnsupported, match="unfold"):
        ask(opened, ["w"], V10_9)


def test_a_function_named_like_an_imported_operator_is_not_expanded(tmp_path):
    nodes, weights = chain([4])
    body = [helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["r"], name="inside")]
    function = helper.make_function(
        "local", "Mish", ["a", "g", "b", "m", "v"], ["r"], body, [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Mish", ["x", *(f"bn0.{p}" for p in "gbmv")], ["z"], domain="local")
    opened = save(tmp_path, [call, *nodes], weights, outputs=["x1"], functions=[function])
    assert folds_in_order(opened, 1) == ["bn0"]
    with pytest.raises(WeightsUncovered):
        folds_in_order(opened, 2)
