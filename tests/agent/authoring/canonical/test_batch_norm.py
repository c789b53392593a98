"""BatchNormalization goes into its Conv, or becomes one Mul and one Add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from .models import B, D, F, H, assert_close, branches, canonical, graph, graphs, model, node, noise, run, tensor, value

PARTS = ("scale", "bias", "mean", "var")


def _parameters(prefix: str, channels: int, dtype: Any = np.float32, seed: int = 0) -> list[TensorProto]:
    rng = np.random.default_rng([seed, *prefix.encode()])
    numbers = (
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels),
        rng.uniform(0.5, 1.5, channels),
    )
    return [tensor(f"{prefix}.{p}", n, dtype) for p, n in zip(PARTS, numbers, strict=True)]


def _norm(prefix: str, x: str, y: str, **attributes: Any) -> Any:
    return node("BatchNormalization", [x, *(f"{prefix}.{p}" for p in PARTS)], [y], name=prefix, **attributes)


def _input(*shape: int, dtype: Any = np.float32) -> dict[str, Any]:
    return {"x": np.random.default_rng(9).standard_normal(shape).astype(dtype)}


def _model(nodes: Sequence[Any], weights: Sequence[TensorProto], shape: Sequence[int | str], dtype: int = F, **options: Any) -> Any:  # fmt: skip
    return model(nodes, [value("x", shape, dtype)], [value("y", None, dtype)], weights, **options)


def test_it_goes_into_the_conv(tmp_path: Path) -> None:
    """With the exact weights of the formula, each rounded once; the conv keeps the weight's name and gets a bias."""
    weights = [noise("c.weight", 6, 3, 3, 3), *_parameters("bn", 6)]
    nodes = [node("Conv", ["x", "c.weight"], ["c"], name="c"), _norm("bn", "c", "n", epsilon=1e-3), node("Relu", ["n"], ["y"])]  # fmt: skip
    made = canonical(tmp_path, _model(nodes, weights, [1, 3, 8, 8]), _input(1, 3, 8, 8))
    assert made.nodes == ["Conv", "Relu"] and list(made.weights) == ["c.weight", "c.bias"]
    assert (made.report.folded, made.report.scaled, made.report.dropped) == (1, 0, ())
    s, b, m, v = (numpy_helper.to_array(t).astype(np.float64) for t in weights[1:])
    factor = s / np.sqrt(v + np.float64(np.float32(1e-3)))
    kernel = numpy_helper.to_array(weights[0]).astype(np.float64) * factor[:, None, None, None]
    assert np.array_equal(made.weights["c.weight"], kernel.astype(np.float32))
    assert np.array_equal(made.weights["c.bias"], (b - m * factor).astype(np.float32))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_convs_of_every_form(tmp_path: Path, operator: str, rank: int, bias: bool, group: int) -> None:
    """Channels of grouped transposed ones are where the groups say."""
    kernel = (6, 4 // group) if operator == "Conv" else (4, 6 // group)
    weights = [noise("w", *kernel, *[2] * (rank - 2)), *_parameters("bn", 6)]
    if bias:
        weights.append(noise("b", 6))
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [node(operator, inputs, ["c"], group=group), _norm("bn", "c", "y")]
    shape = (2, 4, *[4] * (rank - 2))
    made = canonical(tmp_path, _model(nodes, weights, shape), _input(*shape))
    assert made.nodes == [operator] and sorted(made.weights) == sorted(["w", "b" if bias else "w.bias"])


def test_a_shared_weight_is_copied(tmp_path: Path) -> None:
    """The other conv keeps what it had, and so does one that shares only the bias."""
    weights = [noise("w", 4, 3, 1, 1), noise("b", 4), *_parameters("bn", 4)]
    nodes = [
        node("Conv", ["x", "w", "b"], ["c1"]),
        node("Conv", ["x", "w"], ["c2"]),
        _norm("bn", "c1", "n"),
        node("Add", ["n", "c2"], ["s"]),
        node("Conv", ["x", "w3", "b"], ["c3"]),
        node("Sum", ["s", "c3"], ["y"]),
    ]
    made = canonical(tmp_path, _model(nodes, [*weights, noise("w3", 4, 3, 1, 1)], [1, 3, 4, 4]), _input(1, 3, 4, 4))
    assert made.report.folded == 1 and sorted(made.weights) == ["b", "b.1", "w", "w.1", "w3"]
    assert made.report.renamed == {"w.1": "w", "b.1": "b"}


def test_two_norms_share_their_parameters(tmp_path: Path) -> None:
    """Each conv has them for itself."""
    nodes = [
        node("Conv", ["x", "w"], ["c1"]),
        _norm("bn", "c1", "n1"),
        node("Conv", ["n1", "w"], ["c2"]),
        _norm("bn", "c2", "y", epsilon=0.1),
    ]
    nodes[3].name = "bn2"
    made = canonical(
        tmp_path, _model(nodes, [noise("w", 3, 3, 1, 1), *_parameters("bn", 3)], [1, 3, 4, 4]), _input(1, 3, 4, 4)
    )
    assert made.nodes == ["Conv", "Conv"] and sorted(made.weights) == ["w", "w.1", "w.bias", "w.bias.1"]


def test_two_norms_behind_one_conv(tmp_path: Path) -> None:
    """Both go in, one after the other."""
    weights = [noise("w", 4, 3, 1, 1), *_parameters("bn", 4), *_parameters("bm", 4)]
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "n"), _norm("bm", "n", "y")]
    made = canonical(tmp_path, _model(nodes, weights, [1, 3, 4, 4]), _input(1, 3, 4, 4))
    assert made.nodes == ["Conv"] and made.report.folded == 2


@pytest.mark.parametrize("reader", ["node", "output", "branch"])
def test_a_conv_that_others_read_keeps_its_weights(tmp_path: Path, reader: str) -> None:
    """Another node, an output of the model, a nested graph: then it is a Mul and an Add."""
    weights = [noise("w", 4, 3, 1, 1), *_parameters("bn", 4)]
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "n")]
    inputs, outputs = [value("x", [1, 3, 4, 4])], [value("y", None)]
    feeds = _input(1, 3, 4, 4)
    if reader == "branch":
        then = graph([node("Add", ["n", "c"], ["o"])], [], [value("o", None)])
        other = graph([node("Neg", ["n"], ["o2"])], [], [value("o2", None)])
        nodes.append(branches(then, other, "y"))
        inputs.append(value("k", [], B))
        feeds["k"] = np.array(True)
    else:
        nodes.append(node("Add", ["n", "c" if reader == "node" else "n"], ["y"]))
        outputs += [value("c", None)] if reader == "output" else []
    made = canonical(tmp_path, model(nodes, inputs, outputs, weights), feeds)
    assert made.nodes[:3] == ["Conv", "Mul", "Add"]
    assert (made.report.folded, made.report.scaled) == (0, 1)
    assert {n: a.shape for n, a in made.weights.items() if n != "w"} == {
        "bn.scale.folded": (4, 1, 1),
        "bn.bias.folded": (4, 1, 1),
    }


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_without_a_conv_it_becomes_mul_and_add(tmp_path: Path, rank: int) -> None:
    """With weights that broadcast over the tensor's own rank, known from shape inference."""
    shape = (2, 4, *[3] * (rank - 2))
    nodes = [node("Relu", ["x"], ["r"]), _norm("bn", "r", "y")]
    made = canonical(tmp_path, _model(nodes, _parameters("bn", 4), ["n", *shape[1:]]), _input(*shape))
    assert made.nodes == ["Relu", "Mul", "Add"]
    assert {a.shape for a in made.weights.values()} == {(4, *[1] * (rank - 2))}
    assert [n.name for n in made.model.graph.node] == ["", "bn.mul", "bn.add"]


def test_a_conv_with_a_computed_weight_gives_the_rank(tmp_path: Path) -> None:
    """Quantized weights stay quantized; the norm is a Mul and an Add behind them."""
    weights = [tensor("q", np.arange(-6, 6).reshape(4, 3, 1, 1), np.int8), tensor("s", 0.1), *_parameters("bn", 4)]
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "y")]
    made = canonical(tmp_path, _model(nodes, weights, [1, 3, 4, 4]), _input(1, 3, 4, 4))
    assert made.nodes == ["DequantizeLinear", "Conv", "Mul", "Add"] and made.weights["q"].dtype == np.int8


def test_the_rank_behind_a_computed_reshape(tmp_path: Path) -> None:
    """Shape inference gives up at the Reshape; behind the next convolution the rank is its weight's."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Mul", ["s", "k"], ["s2"]),
        node("Div", ["s2", "k"], ["s3"]),
        node("Reshape", ["x", "s3"], ["r"]),
        node("Conv", ["r", "w"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2]),
        _norm("bn", "e", "y"),
    ]
    weights = [tensor("k", [2], np.int64), noise("w", 4, 3, 1, 1), *_parameters("bn", 4)]
    for opset in (14, 17):
        source = model(nodes, [value("x", None)], [value("y", None)], weights, opset=opset)
        made = canonical(tmp_path, source, _input(1, 3, 4, 4))
        assert made.report.scaled == 1, made.report.notes
    known = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "zero", "one"], ["n"]),
        node("Concat", ["n", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["r"]),
        _norm("bn", "r", "y"),
    ]
    more = [tensor("zero", [0], np.int64), tensor("one", [1], np.int64), tensor("rest", [4, 2, -1], np.int64)]
    source = _model(known, [*more, *_parameters("bn", 4)], ["n", 16])
    assert canonical(tmp_path, source, _input(2, 16)).report.scaled == 1
    nodes[4:6] = [node("Relu", ["r"], ["d"])]
    _left(tmp_path, model(nodes, [value("x", None)], [value("y", None)], weights), "no known type and rank")


def test_node_names_are_free(tmp_path: Path) -> None:
    """ONNX Runtime refuses two nodes of one name."""
    nodes = [_norm("bn", "x", "n"), node("Relu", ["n"], ["y"], name="bn.mul")]
    made = canonical(tmp_path, _model(nodes, _parameters("bn", 3), [2, 3, 4, 4]), _input(2, 3, 4, 4))
    assert [n.name for n in made.model.graph.node] == ["bn.mul.1", "bn.add", "bn.mul"]


def test_in_nested_graphs(tmp_path: Path) -> None:
    """Both forms, with weights of any scope."""
    then = graph(
        [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "o")],
        [],
        [value("o", None)],
        [noise("w", 3, 3, 1, 1), *_parameters("bn", 3)],
    )
    other = graph([node("Relu", ["x"], ["r"]), _norm("bm", "r", "o2")], [], [value("o2", None)])
    source = model([branches(then, other, "y")], [value("x", [1, 3, 4, 4]), value("k", [], B)], [value("y", None)], _parameters("bm", 3))  # fmt: skip
    for k in (True, False):
        made = canonical(tmp_path, source, {**_input(1, 3, 4, 4), "k": np.array(k)})
    inner = sorted([n.op_type for n in g.node] for g in list(graphs(made.model.graph))[1:])
    assert inner == [["Conv"], ["Relu", "Mul", "Add"]]


@pytest.mark.parametrize(("dtype", "code", "allowed"), [(np.float16, H, 2e-3), (np.float64, D, 1e-6)])
def test_other_types(tmp_path: Path, dtype: Any, code: int, allowed: float) -> None:
    """Halves stay halves; doubles are folded as doubles, and rounded to float32 after that."""
    weights = [noise("w", 4, 3, 3, 3, dtype=dtype), *_parameters("bn", 4, dtype), *_parameters("bm", 4, dtype)]
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "n"), node("Relu", ["n"], ["r"]), _norm("bm", "r", "y")]
    feeds = _input(1, 3, 8, 8, dtype=dtype)
    source = _model(nodes, weights, [1, 3, 8, 8], code)
    # ONNX Runtime has no Conv of doubles on the CPU
    expected = ReferenceEvaluator(source).run(None, feeds) if code == D else None
    made = canonical(tmp_path, source, feeds, tolerance=allowed, expected=expected)
    assert (made.report.folded, made.report.scaled) == (1, 1)
    assert {a.dtype for a in made.weights.values()} == {np.dtype(np.float16 if dtype == np.float16 else np.float32)}


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """To nearest, ties to even, from the product in full."""
    bits = np.random.default_rng(4).integers(0x3F00, 0x4080, (4, 3, 1, 1)).astype(np.uint16)
    kernel = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=bits.shape, raw_data=bits.tobytes())
    ones = np.array([0x3F80] * 4, np.uint16)
    factors = np.array([0x3F8A, 0x3FC0, 0xBF01, 0x4049], np.uint16)
    weights = [kernel]
    for part, content in (("scale", factors), ("bias", ones), ("mean", ones), ("var", ones)):
        weights.append(TensorProto(name=f"bn.{part}", data_type=TensorProto.BFLOAT16, dims=[4], raw_data=content.tobytes()))  # fmt: skip
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "y", epsilon=0.0)]
    made = canonical(tmp_path, _model(nodes, weights, [1, 3, 4, 4], TensorProto.BFLOAT16, opset=22))

    def wide(patterns: Any) -> Any:
        return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    exact = wide(bits) * wide(factors)[:, None, None, None]
    (found,) = [t for t in made.model.graph.initializer if t.name == "w"]
    got = wide(np.frombuffer(found.raw_data, np.uint16)).reshape(exact.shape)
    unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
    assert np.array_equal(got, np.rint(exact / unit) * unit)


def test_parameters_of_another_type_than_the_tensor(tmp_path: Path) -> None:
    """From operator set 15 on a half tensor may have float32 parameters; the weights get the tensor's type."""
    weights = [noise("w", 4, 3, 3, 3, dtype=np.float16), *_parameters("bn", 4), *_parameters("bm", 4)]
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "n"), node("Relu", ["n"], ["r"]), _norm("bm", "r", "y")]
    made = canonical(tmp_path, _model(nodes, weights, [1, 3, 8, 8], H))
    assert {a.dtype for a in made.weights.values()} == {np.dtype(np.float16)} and made.nodes == ["Conv", "Relu", "Mul", "Add"]  # fmt: skip


def _left(tmp_path: Path, source: Any, reason: str, **options: Any) -> None:
    made = canonical(tmp_path, source, **options)
    assert "BatchNormalization" in made.nodes and made.report.batch_norms_left == 1
    assert any(reason in note for note in made.report.notes), made.report.notes


def test_training_forms_stay(tmp_path: Path) -> None:
    """By attribute, by their outputs before operator set 14, by is_test before 7."""
    weights = _parameters("bn", 3)
    train = _norm("bn", "x", "y", training_mode=1)
    train.output.extend(["m", "v"])
    _left(tmp_path, _model([train], weights, [2, 3, 4, 4]), "training form")
    _left(tmp_path, _model([_norm("bn", "x", "y", training_mode=1)], weights, [2, 3, 4, 4]), "training form")
    old = _norm("bn", "x", "y")
    old.output.extend(["m", "v", "sm", "sv"])
    _left(tmp_path, _model([old], weights, [2, 3, 4, 4], opset=9), "training form")
    _left(tmp_path, _model([_norm("bn", "x", "y")], weights, [2, 3, 4, 4], opset=6), "is_test is 0")


def test_forms_that_only_old_operator_sets_have(tmp_path: Path) -> None:
    """Per-element parameters stay; the inference form of operator set 6 goes into a conv, or stays for want of broadcasting."""
    weights = _parameters("bn", 3)
    _left(tmp_path, _model([_norm("bn", "x", "y", spatial=0)], weights, [2, 3, 4, 4], opset=8), "spatial is 0")
    _left(tmp_path, _model([_norm("bn", "x", "y", is_test=1)], weights, [2, 3, 4, 4], opset=6), "no broadcasting")
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "y", is_test=1)]
    made = canonical(tmp_path, _model(nodes, [*weights, noise("w", 3, 3, 1, 1)], [2, 3, 4, 4], opset=6))
    assert made.nodes == ["Conv"]


def test_what_cannot_be_folded_stays(tmp_path: Path) -> None:
    """Computed parameters, an unknown rank, numbers beyond the type, a variance below zero."""
    computed = [node("Abs", ["p"], ["bn.scale"]), _norm("bn", "x", "y")]
    renamed = [t for t in _parameters("bn", 3) if t.name != "bn.scale"]
    _left(tmp_path, _model(computed, [*renamed, noise("p", 3)], [2, 3, 4, 4]), "its parameters are computed")
    source = model([_norm("bn", "x", "y")], [value("x", None)], [value("y", None)], _parameters("bn", 3))
    _left(tmp_path, source, "no known type and rank")
    tiny = [tensor("bn.scale", [6e4] * 3, np.float16), *_parameters("bn", 3, np.float16)[1:3], tensor("bn.var", [1e-4] * 3, np.float16)]  # fmt: skip
    _left(tmp_path, _model([_norm("bn", "x", "y")], tiny, [2, 3, 4, 4], H), "float16 cannot hold")
    conv = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "y")]
    _left(tmp_path, _model(conv, [*tiny, noise("w", 3, 3, 1, 1, dtype=np.float16)], [2, 3, 4, 4], H), "float16 cannot")
    still = [tensor("bn.scale", [6e4] * 3, np.float16), *(tensor(f"bn.{p}", [n] * 3, np.float16) for p, n in (("bias", 0), ("mean", 0), ("var", 1)))]  # fmt: skip
    weight = tensor("w", np.full((3, 3, 1, 1), 2.0), np.float16)
    made = canonical(tmp_path, _model(conv, [*still, weight], [2, 3, 4, 4], H))
    assert made.nodes == ["Conv", "Mul", "Add"] and np.isfinite(made.weights["w"]).all()
    negative = [*_parameters("bn", 3)[:3], tensor("bn.var", [-1.0] * 3)]
    _left(tmp_path, _model([_norm("bn", "x", "y")], negative, [2, 3, 4, 4]), "not finite")
    uneven = [*_parameters("bn", 3)[:3], tensor("bn.var", [1.0] * 4)]
    _left(tmp_path, _model([_norm("bn", "x", "y")], uneven, [2, 3, 4, 4]), "no four lists of one length")


def test_a_conv_of_other_channels_is_not_touched(tmp_path: Path) -> None:
    """A model that no runtime takes is no reason to write weights of a wrong shape."""
    nodes = [node("Conv", ["x", "w"], ["c"]), _norm("bn", "c", "y")]
    made = canonical(tmp_path, _model(nodes, [noise("w", 5, 3, 1, 1), *_parameters("bn", 3)], [2, 3, 4, 4]))
    assert made.weights["w"].shape == (5, 3, 1, 1) and made.nodes[0] == "Conv" and made.report.folded == 0
    nodes[0].input.append("b")
    weights = [noise("w", 3, 3, 1, 1), noise("b", 4), *_parameters("bn", 3)]
    assert canonical(tmp_path, _model(nodes, weights, [2, 3, 4, 4])).report.folded == 0


def test_a_norm_before_a_conv_and_one_of_a_graph_input(tmp_path: Path) -> None:
    """Only the conv before a norm takes it in."""
    nodes = [_norm("bn", "x", "n"), node("Conv", ["n", "w"], ["y"])]
    made = canonical(tmp_path, _model(nodes, [noise("w", 5, 3, 1, 1), *_parameters("bn", 3)], [2, 3, 4, 4]), _input(2, 3, 4, 4))  # fmt: skip
    assert made.nodes == ["Mul", "Add", "Conv"]


def test_a_norm_of_a_captured_conv_is_not_folded(tmp_path: Path) -> None:
    """The conv runs in the graph around, where its output has one reader, but not for this graph alone."""
    then = graph([_norm("bn", "c", "o")], [], [value("o", None)])
    other = graph([node("Neg", ["x"], ["o2"])], [], [value("o2", None)])
    nodes = [node("Conv", ["x", "w"], ["c"]), branches(then, other, "y")]
    weights = [noise("w", 3, 3, 1, 1), *_parameters("bn", 3)]
    source = model(nodes, [value("x", [1, 3, 4, 4]), value("k", [], B)], [value("y", None)], weights)
    feeds = {**_input(1, 3, 4, 4), "k": np.array(True)}
    made = canonical(tmp_path, source)
    assert_close(run(tmp_path / "given/m.onnx", feeds)[0], run(made.path, feeds)[0], 1e-6)
    assert made.report.folded == 0
