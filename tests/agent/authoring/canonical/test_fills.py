"""ConstantOfShape nodes with a known shape become weights, within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from refit_agent.authoring.canonical import fills
from refit_agent.authoring.errors import ModelUnsupported

from .models import I64, B, branches, canonical, constant, graph, model, node, tensor, value

_X, _Y = value("x", ["n"]), value("y", None)
X = np.array([1, 2], np.float32)


def _fill(output: str, shape: str, **attributes: object) -> object:
    return node("ConstantOfShape", [shape], [output], name=f"fill {output}", **attributes)


@pytest.mark.parametrize(
    ("filled", "wanted"),
    [
        (None, np.zeros((2, 3), np.float32)),
        (tensor("v", [2.5]), np.full((2, 3), 2.5, np.float32)),
        (tensor("v", [7], np.int64), np.full((2, 3), 7, np.int64)),
        (tensor("v", [True], bool), np.ones((2, 3), bool)),
    ],
)
def test_a_fill_becomes_a_weight(tmp_path: Path, filled: object, wanted: np.ndarray) -> None:
    """Of the value's type, float32 zero without one; under the name of the node's output."""
    attributes = {} if filled is None else {"value": filled}
    nodes = [constant("s", [2, 3], np.int64), _fill("f", "s", **attributes), node("Cast", ["f"], ["c"], to=1), node("Add", ["c", "x"], ["y"])]  # fmt: skip
    made = canonical(tmp_path, model(nodes, [value("x", [3])], [value("y", [2, 3])]), {"x": np.ones(3, np.float32)})
    assert list(made.weights) == ["f"] and made.report.filled == 1
    assert np.array_equal(made.weights["f"], wanted) and made.weights["f"].dtype == wanted.dtype


def test_shapes_without_elements_and_without_dimensions(tmp_path: Path) -> None:
    """An empty list of dimensions makes a scalar, a dimension of 0 an empty tensor."""
    weights = [tensor("none", [], np.int64), tensor("zero", [0, 4], np.int64)]
    nodes = [
        _fill("scalar", "none"),
        _fill("empty", "zero"),
        node("Add", ["x", "scalar"], ["y"]),
        node("Shape", ["empty"], ["s"]),
    ]
    made = canonical(tmp_path, model(nodes, [_X], [value("y", ["n"]), value("s", [2], I64)], weights), {"x": X})
    assert {n: a.shape for n, a in made.weights.items()} == {"scalar": (), "empty": (0, 4)}


def test_a_computed_shape_leaves_the_node(tmp_path: Path) -> None:
    """Its result is no weight."""
    nodes = [node("Shape", ["x"], ["s"]), _fill("f", "s", value=tensor("v", [3])), node("Add", ["x", "f"], ["y"])]
    made = canonical(tmp_path, model(nodes, [_X], [value("y", ["n"])]), {"x": X})
    assert made.nodes == ["Shape", "ConstantOfShape", "Add"] and made.report.filled == 0


def test_ten_gigabytes_of_zeros_are_not_made(tmp_path: Path) -> None:
    """The node stays, and the report says why."""
    weights = [tensor("huge", [50_000, 50_000], np.int64), tensor("minus", [-1], np.int64)]
    nodes = [
        _fill("h", "huge"),
        node("Shape", ["h"], ["s"]),
        node("Cast", ["s"], ["c"], to=1),
        node("Add", ["x", "c"], ["y"]),
        _fill("m", "minus"),
        node("Shape", ["m"], ["t"]),
    ]
    made = canonical(tmp_path, model(nodes, [_X], [value("y", [2]), value("t", [1], I64)], weights))
    assert made.nodes.count("ConstantOfShape") == 2
    assert made.report.notes == (
        "ConstantOfShape 'fill h' stays a node: it makes 10000000000 bytes.",
        "ConstantOfShape 'fill m' stays a node: its shape is (-1,).",
    )


def test_the_sum_of_all_fills_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand nodes just below the bound of one do not fill the disk either."""
    monkeypatch.setattr(fills, "MAX_TOTAL_BYTES", 159)
    nodes = [constant("s", [10], np.int64)]
    for i in range(4):
        nodes += [_fill(f"f{i}", "s"), node("Add", ["x" if i == 0 else f"a{i - 1}", f"f{i}"], [f"a{i}"])]
    source = model(nodes, [value("x", [10])], [value("a3", [10])])
    with pytest.raises(ModelUnsupported, match="more than 159 bytes"):
        canonical(tmp_path, source)
    monkeypatch.setattr(fills, "MAX_TOTAL_BYTES", 160)
    assert canonical(tmp_path, source, {"x": np.ones(10, np.float32)}).report.filled == 4


def test_fills_of_sibling_branches_are_two_weights(tmp_path: Path) -> None:
    """Even where they have one name."""
    sides = []
    for number, shape in ((1.0, [2]), (2.0, [1])):
        nodes = [_fill("f", "s", value=tensor("v", [number])), node("Add", ["x", "f"], [f"o{number:.0f}"])]
        sides.append(graph(nodes, [], [value(f"o{number:.0f}", [2])], [tensor("s", shape, np.int64)]))
    source = model([branches(*sides, "y")], [value("x", [2]), value("k", [], B)], [value("y", [2])])
    for k in (True, False):
        made = canonical(tmp_path, source, {"x": X, "k": np.array(k)})
        assert sorted(a.tolist() for a in made.weights.values()) == [[1.0, 1.0], [2.0]]


def test_what_onnx_does_not_allow_stays_as_it_is(tmp_path: Path) -> None:
    """A value of two elements, of strings, of types below a byte; a shape that is a list of lists."""
    weights = [tensor("s", [2], np.int64), tensor("ss", [[2]], np.int64), tensor("f", [2.0])]
    string = helper.make_tensor("v", TensorProto.STRING, [1], [b"a"])
    small = TensorProto(dims=[1], data_type=TensorProto.INT4, raw_data=b"\x01")
    nodes = [
        _fill("a", "s", value=tensor("v", [1, 2])),
        _fill("b", "s", value=string),
        _fill("c", "s", value=small),
        _fill("d", "ss"),
        _fill("e", "f"),
        node("Thing", list("abcde"), ["y"], domain="org.example"),
    ]
    made = canonical(tmp_path, model(nodes, [_X], [_Y], weights, domains={"org.example": 1}))
    assert made.nodes.count("ConstantOfShape") == 5 and len(made.report.notes) == 5
