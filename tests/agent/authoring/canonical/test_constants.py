"""Every weight becomes an initializer of the main graph, whatever scope it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from refit_agent.authoring.errors import ModelUnsupported

from .models import (
    I64,
    B,
    Canonical,
    F,
    branches,
    canonical,
    constant,
    graph,
    graphs,
    model,
    node,
    noise,
    run,
    tensor,
    value,
)

X = np.array([1.0, -2.0], np.float32)
_X, _Y, _K = value("x", [2]), value("y", [2]), value("k", [], B)


def _if(folder: Path, then: onnx.GraphProto, other: onnx.GraphProto, weights=(), before=(), after=None, **options):
    """x and k -> If -> y, the canonical form run both ways."""
    end = [node("Identity", ["z"], ["y"])] if after is None else after
    source = model([*before, branches(then, other), *end], [_X, _K], [_Y], weights)
    made = canonical(folder, source, {"x": X, "k": np.array(True)}, **options)
    for k in (True, False):
        assert np.array_equal(
            run(folder / "given/m.onnx", {"x": X, "k": np.array(k)}), run(made.path, {"x": X, "k": np.array(k)})
        )
    return made


def _branch(nodes, weights=(), output="o"):
    return graph(nodes, [], [value(output, [2])], weights)


OTHER = _branch([node("Neg", ["x"], ["n"])], output="n")


def test_a_constant_node_becomes_an_initializer_under_the_name_of_its_output(tmp_path: Path) -> None:
    """In each form that holds numbers; integers and floats as the attribute says."""
    nodes = [
        constant("a", [3.0, 4.0]),
        node("Constant", [], ["b"], value_float=2.5),
        node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
        node("Constant", [], ["d"], value_int=7),
        node("Constant", [], ["e"], value_ints=[2]),
        node("Add", ["x", "a"], ["1"]),
        node("Mul", ["1", "b"], ["2"]),
        node("Add", ["2", "c"], ["3"]),
        node("Cast", ["d"], ["4"], to=F),
        node("Add", ["3", "4"], ["5"]),
        node("Reshape", ["5", "e"], ["y"]),
    ]
    made = canonical(tmp_path, model(nodes, [_X], [_Y]), {"x": X})
    assert made.nodes == ["Add", "Mul", "Add", "Cast", "Add", "Reshape"]
    found = {name: (array.dtype.str, array.tolist()) for name, array in made.weights.items()}
    assert found == {
        "a": ("<f4", [3.0, 4.0]),
        "b": ("<f4", 2.5),
        "c": ("<f4", [1.0, 2.0]),
        "d": ("<i8", 7),
        "e": ("<i8", [2]),
    }
    assert made.report.hoisted == 5 and made.report.renamed == {}


def test_strings_and_sparse_constants_stay(tmp_path: Path) -> None:
    """No TensorRT takes them; the report says how many there are."""
    sparse = helper.make_sparse_tensor(tensor("sv", [1.0]), tensor("si", [1], np.int64), [2])
    nodes = [
        node("Constant", [], ["s"], value_string=b"text"),
        node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.STRING, [1], [b"u"])),
        node("Constant", [], ["p"], sparse_value=sparse),
        node("Add", ["x", "p"], ["y"]),
        node("Identity", ["s"], ["s2"]),
        node("Identity", ["t"], ["t2"]),
    ]
    outputs = [_Y, value("s2", [], TensorProto.STRING), value("t2", [1], TensorProto.STRING)]
    made = canonical(tmp_path, model(nodes, [_X], outputs), {"x": X}, left=["s", "t", "p"])
    assert made.report.notes == ("3 tensors of strings or sparse values stay as they are.",)
    assert made.report.data == ""


def test_a_constant_without_a_value_is_refused(tmp_path: Path) -> None:
    """Its value would come from the call of a function, and there is none."""
    empty = node("Constant", [], ["a"])
    attribute = empty.attribute.add()
    attribute.name, attribute.type, attribute.ref_attr_name = "value_float", onnx.AttributeProto.FLOAT, "nothing"
    with pytest.raises(ModelUnsupported, match="the Constant 'a' has no value"):
        canonical(tmp_path, model([empty, node("Add", ["x", "a"], ["y"])], [_X], [_Y]))


def test_the_first_of_two_branches_keeps_the_name(tmp_path: Path) -> None:
    """Initializers of one name in sibling branches are two weights; the then branch comes first in any order."""
    then = _branch([node("Add", ["x", "w"], ["o"])], [tensor("w", [3, 4])])
    other = _branch([node("Mul", ["x", "w"], ["o2"])], [tensor("w", [5, 6])], "o2")
    made = _if(tmp_path, then, other)
    assert {n: a.tolist() for n, a in made.weights.items()} == {"w": [3, 4], "w.1": [5, 6]}
    assert made.report.renamed == {"w.1": "w"}
    assert [a.name for a in made.model.graph.node[0].attribute] == ["else_branch", "then_branch"]


def test_a_weight_of_the_main_graph_keeps_its_name_before_nested_ones(tmp_path: Path) -> None:
    """Also a Constant node that comes after them in the file, whose name a nested scope may use again before."""
    then = _branch([constant("w", [3, 4]), node("Add", ["x", "w"], ["o"])])
    end = [constant("w", [5, 6]), node("Add", ["z", "w"], ["y"])]
    source = model([branches(then, OTHER), *end], [_X, _K], [_Y])
    made = canonical(tmp_path, source, {"x": X, "k": np.array(True)}, expected=[X + np.array([8, 10], np.float32)])
    assert {n: a.tolist() for n, a in made.weights.items()} == {"w": [5, 6], "w.1": [3, 4]}


def test_an_initializer_of_a_branch_hides_that_of_the_main_graph(tmp_path: Path) -> None:
    """Inside it means the branch's own, in the other branch and outside the main one.

    ONNX Runtime takes the main one everywhere as soon as the other branch reads it, so it is not asked.
    """
    then = _branch([node("Add", ["x", "w"], ["o"])], [tensor("w", [3, 4])])
    other = _branch([node("Sub", ["x", "w"], ["o2"])], output="o2")
    source = model([branches(then, other), node("Add", ["z", "w"], ["y"])], [_X, _K], [_Y], [tensor("w", [7, 8])])
    for k, wanted in ((True, X + np.array([10, 12])), (False, X)):
        feeds = {"x": X, "k": np.array(k)}
        made = canonical(tmp_path, source, feeds, expected=[wanted.astype(np.float32)])
        assert {n: a.tolist() for n, a in made.weights.items()} == {"w": [7, 8], "w.1": [3, 4]}


def test_a_computed_tensor_of_a_branch_hides_a_weight(tmp_path: Path) -> None:
    """The weight gets another name, so that nothing hides it any more, and the branch reads its own tensor."""
    then = _branch([node("Neg", ["x"], ["w"]), node("Add", ["w", "w"], ["o"])])
    other = _branch([node("Add", ["x", "w"], ["o2"])], output="o2")
    source = model([branches(then, other), node("Add", ["z", "w"], ["y"])], [_X, _K], [_Y], [tensor("w", [7, 8])])
    for k, wanted in ((True, -2 * X + [7, 8]), (False, X + np.array([14, 16]))):
        feeds = {"x": X, "k": np.array(k)}
        made = canonical(tmp_path, source, feeds, expected=[wanted.astype(np.float32)])
        assert list(made.weights) == ["w.1"]


def test_weights_are_captured_through_several_levels(tmp_path: Path) -> None:
    """A weight that was renamed is found from a graph two levels further in, unless a level between hides it."""
    inner = _branch([node("Add", ["x", "w"], ["i"])], output="i")
    hidden = _branch([node("Add", ["x", "w"], ["h"])], output="h")
    middle = _branch([branches(inner, OTHER, "o")])
    hiding = _branch([branches(hidden, OTHER, "o2")], [tensor("w", [3, 4])], "o2")
    made = _if(tmp_path, middle, hiding, [tensor("w", [7, 8])])
    reads = {n.input[1] for g in graphs(made.model.graph) for n in g.node if n.op_type == "Add"}
    assert reads == {"w", "w.1"}


def test_loop_bodies_give_up_their_constants(tmp_path: Path) -> None:
    """A body that runs three times reads the hoisted weight three times; its inputs stay its inputs."""
    body = graph(
        [constant("step", [1, 10]), node("Add", ["state", "step"], ["next"]), node("Identity", ["c"], ["c2"])],
        [value("i", [], I64), value("c", [], B), value("state", [2])],
        [value("c2", [], B), value("next", [2])],
    )
    nodes = [constant("n", 3, np.int64), constant("t", True, bool), node("Loop", ["n", "t", "x"], ["y"], body=body)]
    made = canonical(tmp_path, model(nodes, [_X], [_Y]), {"x": X})
    assert list(made.weights) == ["n", "t", "step"]
    assert run(made.path, {"x": X})[0].tolist() == [4, 28]


def test_scan_bodies_give_up_their_constants(tmp_path: Path) -> None:
    """The same for Scan."""
    body = graph(
        [node("Add", ["s", "e"], ["s2"]), node("Mul", ["s2", "f"], ["o"])],
        [value("s", []), value("e", [])],
        [value("s2", []), value("o", [])],
        [tensor("f", 2.0)],
    )
    nodes = [constant("zero", 0.0), node("Scan", ["zero", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    made = canonical(tmp_path, model(nodes, [_X], [_Y, value("last", [])]), {"x": X})
    assert list(made.weights) == ["zero", "f"]


def test_an_output_that_is_a_weight_comes_from_an_identity(tmp_path: Path) -> None:
    """The output keeps its name, which callers use; the weight gets another one."""
    outputs = [value("w", [2]), value("c", [2]), value("i", [2]), value("f", [2]), _Y]
    nodes = [
        constant("c", [5, 6]),
        node("Identity", ["w"], ["i"]),
        constant("s", [2], np.int64),
        node("ConstantOfShape", ["s"], ["f"]),
        node("Add", ["x", "i"], ["m"]),
        node("Add", ["m", "c"], ["y"]),
    ]
    made = canonical(tmp_path, model(nodes, [_X], outputs, [tensor("w", [3, 4])]), {"x": X})
    assert {n: a.tolist() for n, a in made.weights.items()} == {"w.1": [3, 4], "c.1": [5, 6], "f.1": [0, 0]}
    assert sorted(made.nodes) == ["Add", "Add", "Identity", "Identity", "Identity", "Identity"]
    adds = [list(n.input) for n in made.model.graph.node if n.op_type == "Add"]
    assert adds == [["x", "w.1"], ["m", "c.1"]]


def test_an_output_of_a_branch_that_is_its_own_weight_comes_from_an_identity(tmp_path: Path) -> None:
    """Initializer and Constant node alike; in a graph that defines the name once it stays the output's."""
    made = _if(tmp_path, _branch([], [tensor("w", [3, 4])], "w"), _branch([constant("c", [5, 6])], output="c"))
    assert {n: a.tolist() for n, a in made.weights.items()} == {"w.1": [3, 4], "c.1": [5, 6]}
    then, other = (a.g for a in sorted(made.model.graph.node[0].attribute, key=lambda a: a.name, reverse=True))
    assert [(n.op_type, list(n.input), list(n.output)) for n in then.node] == [("Identity", ["w.1"], ["w"])]
    assert [(n.op_type, list(n.input), list(n.output)) for n in other.node] == [("Identity", ["c.1"], ["c"])]


def test_an_output_of_a_branch_that_hides_an_outer_tensor_gets_another_name(tmp_path: Path) -> None:
    """A branch whose own initializer is its output may use a name of the main graph; an Identity must not."""
    then = _branch([], [tensor("w", [3, 4])], "w")
    made = _if(tmp_path, then, OTHER, before=[node("Relu", ["x"], ["w"])], after=[node("Add", ["z", "w"], ["y"])])
    (then_out,) = next(g for g in list(graphs(made.model.graph))[1:] if g.node[0].op_type == "Identity").output
    assert then_out.name not in ("w", "w.1") and list(made.weights) == ["w.1"]


def test_an_output_of_a_branch_that_is_an_outer_tensor_comes_from_an_identity(tmp_path: Path) -> None:
    """ONNX Runtime refuses such models as they are; the canonical form is one that it takes."""
    then, other = _branch([], output="w"), _branch([], output="r")
    nodes = [node("Relu", ["x"], ["r"]), branches(then, other, "y")]
    source = model(nodes, [_X, _K], [_Y], [tensor("w", [3, 4])])
    for k, wanted in ((True, np.array([3, 4], np.float32)), (False, np.maximum(X, 0))):
        canonical(tmp_path, source, {"x": X, "k": np.array(k)}, expected=[wanted])


def test_identities_of_weights_go(tmp_path: Path) -> None:
    """A chain of them too, and one whose result a nested graph captures; those of computed tensors stay."""
    then = _branch([node("Identity", ["w3"], ["w4"]), node("Add", ["x", "w4"], ["o"])])
    before = [node("Identity", ["w"], ["w2"]), node("Identity", ["w2"], ["w3"]), node("Identity", ["x"], ["x2"])]
    end = [node("Add", ["z", "w3"], ["a"]), node("Add", ["a", "x2"], ["y"])]
    made = _if(tmp_path, then, OTHER, [tensor("w", [3, 4])], before, end)
    assert made.report.identities_removed == 3
    assert [n.op_type for g in graphs(made.model.graph) for n in g.node].count("Identity") == 1
    assert list(made.weights) == ["w"]


def test_nodes_in_any_order(tmp_path: Path) -> None:
    """ONNX Runtime sorts the nodes itself, so an Identity may stand before what it reads and after what reads it."""
    nodes = [
        node("Add", ["x", "b"], ["y"]),
        node("Identity", ["a"], ["b"]),
        node("Identity", ["f"], ["a"]),
        node("ConstantOfShape", ["s"], ["f"], value=tensor("v", [5])),
        constant("s", [2], np.int64),
    ]
    made = canonical(tmp_path, model(nodes, [_X], [_Y]), {"x": X})
    assert made.nodes == ["Add"] and {n: a.tolist() for n, a in made.weights.items()} == {"f": [5, 5]}


def test_weights_that_nothing_reads_are_dropped(tmp_path: Path) -> None:
    """And listed; one that only a nested graph or an annotation reads is in use."""
    then = _branch([node("Add", ["x", "w"], ["o"])], [tensor("unused", [1])])
    source = model([branches(then, OTHER, "y")], [_X, _K], [_Y], [tensor(n, [3, 4]) for n in ("w", "dead", "scale")])
    note = source.graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    made = canonical(tmp_path, source, {"x": X, "k": np.array(True)})
    assert list(made.weights) == ["w", "scale"] and sorted(made.report.dropped) == ["dead", "unused"]


def test_an_initializer_that_is_an_input_is_one_no_longer(tmp_path: Path) -> None:
    """As all are in IR version 3; the report names those that a caller could have overridden."""
    source = model([node("Add", ["x", "w"], ["y"])], [_X, value("w", [2])], [_Y], [tensor("w", [3, 4])], ir_version=3)
    made = canonical(tmp_path, source, {"x": X})
    assert made.model.ir_version == 4 and [i.name for i in made.model.graph.input] == ["x"]
    assert made.report.removed_inputs == ("w",) and "override" in made.report.notes[0]


def test_an_initializer_that_is_an_input_of_a_nested_graph_is_refused(tmp_path: Path) -> None:
    """Which of the two a loop would use depends on who reads it."""
    body = graph(
        [node("Add", ["state", "w"], ["next"]), node("Identity", ["c"], ["c2"])],
        [value("i", [], I64), value("c", [], B), value("state", [2]), value("w", [2])],
        [value("c2", [], B), value("next", [2])],
        [tensor("w", [3, 4])],
    )
    nodes = [constant("n", 3, np.int64), node("Loop", ["n", "", "x"], ["y"], body=body, name="L")]
    with pytest.raises(ModelUnsupported, match="initializer 'w' of Loop 'L' is one of the inputs"):
        canonical(tmp_path, model(nodes, [_X], [_Y]))


@pytest.mark.parametrize(
    "name",
    ["tmp_weight", "tmp_weight_3", "tmp_batch_norm_weight_0", "tmp_refittable_weight", "node_trt_batch_norm_0_x"],
)
def test_names_that_look_like_the_parsers_are_changed(tmp_path: Path, name: str) -> None:
    """An initializer of such a name would be taken for a weight that the parser made."""
    made = canonical(tmp_path, model([node("Add", ["x", name], ["y"])], [_X], [_Y], [tensor(name, [3, 4])]), {"x": X})
    assert list(made.weights) == ["weight." + name] and made.report.renamed == {"weight." + name: name}


def test_new_names_are_free_in_every_scope(tmp_path: Path) -> None:
    """A tensor of a nested graph may have the very name that comes next."""
    then = _branch([node("Add", ["x", "w"], ["w.1"]), node("Neg", ["w.1"], ["o"])], [tensor("w", [3, 4])])
    other = _branch([node("Mul", ["x", "w"], ["o2"])], [tensor("w", [5, 6])], "o2")
    made = _if(tmp_path, then, other)
    assert list(made.weights) == ["w", "w.2"]


def test_graphs_of_foreign_nodes_are_left_alone(tmp_path: Path) -> None:
    """Nobody knows what the node does with them; but what they capture follows its new name."""
    outputs = [value("o", [2]), value("tmp_weight", [2])]
    inner = graph([node("Add", ["tmp_weight", "own"], ["o"])], [], outputs, [tensor("own", [1, 2])])
    foreign = node("Thing", ["x", "own"], ["y"], domain="org.example", body=inner)
    weights = [tensor("tmp_weight", [3, 4]), tensor("own", [5, 6])]
    source = model([foreign], [_X], [_Y], weights, domains={"org.example": 1})
    (tmp_path / "given").mkdir()
    (tmp_path / "given/m.onnx").write_bytes(source.SerializeToString())
    from refit_agent.authoring.canonical import canonicalize

    report = canonicalize(tmp_path / "given/m.onnx", tmp_path / "o.onnx")
    made = Canonical(report, tmp_path / "o.onnx", onnx.load(str(tmp_path / "o.onnx")))
    (kept,) = [a.g for a in made.model.graph.node[0].attribute]
    assert [t.name for t in kept.initializer] == ["own"] and list(kept.node[0].input) == ["weight.tmp_weight", "own"]
    assert [o.name for o in kept.output] == ["o", "weight.tmp_weight"]
    assert list(made.model.graph.node[0].input) == ["x", "own.1"]
    assert kept.initializer[0].raw_data == np.array([1, 2], np.float32).tobytes()
    assert not report.check.done and "does not load the source" in report.check.reason


def test_large_constants_of_every_form(tmp_path: Path) -> None:
    """Typed fields are decoded, views are used in place; both are the same numbers in the end."""
    numbers = np.random.default_rng(1).standard_normal(700).astype(np.float32)
    typed = helper.make_tensor("t", F, [700], numbers.tolist())
    half = helper.make_tensor("h", TensorProto.FLOAT16, [700], numbers.astype(np.float16).view(np.uint16).tolist())
    half.raw_data = numbers.astype(np.float16).tobytes()
    half.ClearField("int32_data")
    nodes = [
        node("Constant", [], ["t"], value=typed),
        node("Constant", [], ["f"], value_floats=numbers.tolist()),
        node("Cast", ["h"], ["h2"], to=F),
        node("Sum", ["x", "t", "f", "h2"], ["y"]),
    ]
    made = canonical(tmp_path, model(nodes, [value("x", [1])], [value("y", [700])], [half]), {"x": X[:1]})
    assert np.array_equal(made.weights["t"], numbers) and np.array_equal(made.weights["f"], numbers)
    assert made.external == ["h", "t", "f"]


def test_an_unsettled_attribute_type_is_no_obstacle(tmp_path: Path) -> None:
    """Old writers leave the type of an attribute out."""
    made = constant("a", [3.0, 4.0])
    then = _branch([made, node("Add", ["x", "a"], ["o"])])
    source = model([branches(then, OTHER, "y")], [_X, _K], [_Y])
    for attribute in source.graph.node[0].attribute:
        attribute.ClearField("type")
        for inner in attribute.g.node:
            for one in inner.attribute:
                one.ClearField("type")
    assert list(canonical(tmp_path, source).weights) == ["a"]


def test_noise_is_kept_bit_for_bit(tmp_path: Path) -> None:
    """Of every type that needs no conversion, NaNs with their payload too."""
    types = {
        "bf": (TensorProto.BFLOAT16, 2),
        "i4": (TensorProto.INT4, 0.5),
        "f8": (TensorProto.FLOAT8E4M3FN, 1),
        "u8": (TensorProto.UINT8, 1),
        "f": (TensorProto.FLOAT, 4),
        "i": (TensorProto.INT32, 4),
    }
    weights, nodes = [], [noise("unused", 1)]
    rng = np.random.default_rng(3)
    for name, (code, size) in types.items():
        t = TensorProto(name=name, data_type=code, dims=[1000])
        t.raw_data = rng.integers(0, 256, int(1000 * size), np.uint8).tobytes()
        weights.append(t)
    nodes = [node("Thing", list(types), ["y"], domain="org.example")]
    source = model(nodes, [_X], [_Y], weights, domains={"org.example": 1}, ir_version=10)
    made = canonical(tmp_path, source)
    assert {t.name: t.raw_data for t in made.model.graph.initializer} == {t.name: t.raw_data for t in weights}
