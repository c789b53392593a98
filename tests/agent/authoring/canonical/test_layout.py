"""The data file: what is in it, where, in which order; and `reorder`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from refit_agent.authoring.canonical import canonicalize, reorder
from refit_agent.authoring.canonical.layout import ALIGNMENT, LARGE_ALIGNMENT, LARGE_BYTES, places
from refit_agent.authoring.errors import ModelUnsupported
from refit_agent.errors import OnnxError

from .models import I64, B, branches, canonical, graph, model, node, noise, run, tensor, value
from .models import places as entries

_X, _Y = value("x", [2]), value("y", [2])
X = np.array([1.0, -2.0], np.float32)


def _chain(sizes: dict[str, int]) -> onnx.ModelProto:
    """Joins weights in the order in which they are given; the initializers stand the other way round."""
    last, parts = "x", []
    for i, name in enumerate(sizes):
        parts.append(node("Concat", [last, name], [f"a{i}"], axis=0))
        last = f"a{i}"
    weights = [noise(name, n) for name, n in reversed(sizes.items())]
    return model(parts, [value("x", [1])], [value(last, [1 + sum(sizes.values())])], weights)


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    raw = onnx.load(str(path), load_external_data=False)
    found = {t.name: entries(t) for t in raw.graph.initializer if t.external_data}
    return {n: (int(e["offset"]), int(e["length"])) for n, e in found.items()}


def test_weights_lie_in_the_order_of_their_use(tmp_path: Path) -> None:
    """Aligned, with zeros between, and every one where the graph says."""
    made = canonical(tmp_path, _chain({"b": 3, "large": 300_000, "a": 1, "c": 20}), {"x": X[:1]})
    offsets = _offsets(made.path)
    assert offsets == {"b": (0, 12), "large": (65536, 1_200_000), "a": (1_265_536, 4), "c": (1_265_600, 80)}
    data = (tmp_path / "out/m.onnx.data").read_bytes()
    assert len(data) == 1_265_680 == made.report.data_bytes
    covered = bytearray(len(data))
    for name, (offset, length) in offsets.items():
        assert data[offset : offset + length] == made.weights[name].tobytes()
        covered[offset : offset + length] = b"\1" * length
    assert not any(byte for byte, mark in zip(data, covered, strict=True) if not mark)


def test_weights_of_nested_graphs_come_at_their_node(tmp_path: Path) -> None:
    """What a branch reads lies between what stands before and behind the If; then before else."""
    then = graph([node("Add", ["x", "t"], ["o"])], [], [value("o", [2])])
    other = graph([node("Add", ["x", "e"], ["o2"])], [], [value("o2", [2])])
    parts = [node("Add", ["x", "first"], ["f"]), branches(then, other), node("Add", ["f", "z"], ["g"]), node("Add", ["g", "last"], ["y"])]  # fmt: skip
    weights = [noise(n, 2) for n in ("last", "e", "t", "first")]
    made = canonical(tmp_path, model(parts, [_X, value("k", [], B)], [_Y], weights), {"x": X, "k": np.array(True)})
    assert made.external == ["first", "t", "e", "last"] == list(made.weights)


def test_an_order_puts_those_weights_first(tmp_path: Path) -> None:
    """In the data file; the initializers stay in the order of their use. What is no weight there is reported."""
    source = _chain({"a": 3, "b": 3, "c": 3, "d": 3})
    made = canonical(tmp_path, source, {"x": X[:1]}, order=["d", "nothing", "b", "d"])
    assert made.external == ["d", "b", "a", "c"] and list(made.weights) == ["a", "b", "c", "d"]
    assert made.report.unknown_order == ("nothing",)


def test_reorder_is_as_good_as_an_order_from_the_start(tmp_path: Path) -> None:
    """Bit for bit; and the first order comes back."""
    source = _chain({"a": 3, "large": 300_000, "b": 30, "c": 3})
    made = canonical(tmp_path, source, {"x": X[:1]})
    first = {p.name: p.read_bytes() for p in made.path.parent.iterdir()}
    assert reorder(made.path, ["c", "x", "large"]) == ("x",)
    ordered = tmp_path / "ordered"
    ordered.mkdir()
    canonicalize(tmp_path / "given/m.onnx", ordered / "m.onnx", order=["c", "large"], check=False)
    for name in first:
        assert (made.path.parent / name).read_bytes() == (ordered / name).read_bytes()
    assert np.array_equal(run(made.path, {"x": X[:1]})[0], run(tmp_path / "given/m.onnx", {"x": X[:1]})[0])
    reorder(made.path, ["a", "large", "b", "c"])
    assert {p.name: p.read_bytes() for p in made.path.parent.iterdir()} == first


def test_reorder_takes_canonical_models_only(tmp_path: Path) -> None:
    """Weights in the graph, in two files, in a folder below, or past the end of the file are refused; nothing changes."""
    source = _chain({"a": 30, "b": 30})
    (tmp_path / "plain.onnx").write_bytes(source.SerializeToString())
    two = _external(tmp_path / "two", source, {"a": "one.bin", "b": "other.bin"})
    below = _external(tmp_path / "below", source, {"a": "w/one.bin", "b": "w/one.bin"})
    short = _external(tmp_path / "short", source, {"a": "one.bin", "b": "one.bin"})
    (short.parent / "one.bin").write_bytes(b"\0" * 10)
    for path, error in ((tmp_path / "plain.onnx", ModelUnsupported), (two, ModelUnsupported), (below, ModelUnsupported), (short, OnnxError)):  # fmt: skip
        before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
        with pytest.raises(error):
            reorder(path, ["b"])
        assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == before


def test_reorder_loses_no_tensor_of_a_node(tmp_path: Path) -> None:
    """A Constant node whose data lie in the same file, or in another one, is no part of a canonical model."""
    for number, name in enumerate(("w.bin", "other.bin")):
        source = _chain({"a": 30})
        source.graph.node.insert(0, node("Constant", [], ["c"], value=noise("c", 30)))
        source.graph.node.append(node("Neg", ["c"], ["d"]))
        path = tmp_path / str(number) / "m.onnx"
        path.parent.mkdir()
        onnx.save_model(source, path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=True)  # fmt: skip
        again = onnx.load(str(path), load_external_data=False)
        (place,) = [e for e in again.graph.node[0].attribute[0].t.external_data if e.key == "location"]
        place.value = name
        (path.parent / "other.bin").write_bytes((path.parent / "w.bin").read_bytes())
        path.write_bytes(again.SerializeToString())
        with pytest.raises(ModelUnsupported, match="tensors in its nodes"):
            reorder(path, ["a"])


def _external(folder: Path, source: onnx.ModelProto, files: dict[str, str]) -> Path:
    (folder / "w").mkdir(parents=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    for t in copy.graph.initializer:
        path = folder / files[t.name]
        offset = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(t.raw_data)
        for key, entry in (("location", files[t.name]), ("offset", offset), ("length", len(t.raw_data))):
            t.external_data.add(key=key, value=str(entry))
        t.data_location = TensorProto.EXTERNAL
        t.ClearField("raw_data")
    (folder / "m.onnx").write_bytes(copy.SerializeToString())
    return folder / "m.onnx"


def test_small_integers_stay_in_the_graph(tmp_path: Path) -> None:
    """Shapes, axes and conditions below 1 KiB; larger ones, and 8-bit ones of any size, are in the data file."""
    weights = {
        "i64": np.zeros(127, np.int64),
        "i32": np.zeros(255, np.int32),
        "bool": np.zeros(1023, bool),
        "large": np.zeros(128, np.int64),
        "i8": np.zeros(4, np.int8),
        "u8": np.zeros(4, np.uint8),
        "f": np.zeros(1, np.float32),
        "h": np.zeros((), np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }
    source = model(
        [node("Thing", list(weights), ["y"], domain="org.example")],
        [_X],
        [_Y],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
        domains={"org.example": 1},
    )
    made = canonical(tmp_path, source)
    assert made.external == ["large", "i8", "u8", "f", "h"]
    assert made.report.external == 5 and made.report.weights == 9


def _parsed_models() -> dict[str, tuple[onnx.ModelProto, dict[str, Any], list[str]]]:
    """Models with floating-point numbers that are read while they are parsed: model, inputs, weights to stay."""
    image = {"x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)}
    shape = [1, 1, 4, 4]

    def one(parts: Any, weights: Any, stay: list[str], feeds: Any = image, opset: int = 17, **options: Any) -> Any:
        inputs = [value(n, a.shape, onnx.helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in feeds.items()]
        return model(parts, inputs, [value("y", None, **options)], weights, opset=opset), feeds, stay

    boxes = {"b": np.random.default_rng(0).random((1, 4, 4), np.float32), "s": np.ones((1, 1, 4), np.float32)}
    return {
        "Resize": one([node("Resize", ["x", "", "w"], ["y"])], [tensor("w", [1, 1, 2, 2])], ["w"]),
        "Upsample": one([node("Upsample", ["x", "w"], ["y"])], [tensor("w", [1, 1, 2, 2])], ["w"], opset=9),
        "Clip": one([node("Clip", ["x", "lo", "hi"], ["y"])], [tensor("lo", 2), tensor("hi", 9)], ["lo", "hi"]),
        "Pad": one([node("Pad", ["x", "p", "c"], ["y"])], [tensor("p", [1] * 8, np.int64), tensor("c", 3)], ["p", "c"]),
        "Range": one([node("Range", ["a", "b", "c"], ["r"]), node("Add", ["x", "r"], ["y"])], [tensor("a", 0), tensor("b", 4), tensor("c", 1)], ["a", "b", "c"]),
        "OneHot": one([node("Cast", ["x"], ["i"], to=I64), node("OneHot", ["i", "d", "v"], ["y"])], [tensor("d", 3.0), tensor("v", [0, 1])], ["d"]),
        "Dropout": one([node("Dropout", ["x", "r"], ["d"]), node("Add", ["d", "w"], ["y"])], [tensor("r", 0.5), noise("w", 4)], ["r"]),
        "NonMaxSuppression": one([node("NonMaxSuppression", ["b", "s", "n", "i", "t"], ["y"])], [tensor("n", [2], np.int64), tensor("i", [0.5]), tensor("t", [0.1])], ["n", "i", "t"], boxes, dtype=I64),
        "in a branch": one([branches(graph([node("Clip", ["x", "lo"], ["o"])], [], [value("o", shape)]), graph([node("Mul", ["x", "w"], ["o2"])], [], [value("o2", shape)]), "y")], [tensor("lo", 2), tensor("w", 3)], ["lo"], {**image, "k": np.array(True)}),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_parsed_models()))
def test_numbers_that_are_read_while_a_graph_is_parsed_stay_in_it(tmp_path: Path, name: str) -> None:
    """ONNX Runtime refuses some of these models with the numbers in a data file, and shape inference fails."""
    source, feeds, stay = _parsed_models()[name]
    made = canonical(tmp_path, source, feeds)
    assert sorted(set(made.weights) - set(made.external)) == sorted(stay)
    inferred = tmp_path / "out/inferred.onnx"
    onnx.shape_inference.infer_shapes_path(str(made.path), str(inferred), strict_mode=True)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 3 << 20), max_size=12), st.randoms(use_true_random=False))  # fmt: skip
def test_places_never_overlap(sizes: dict[str, int], shuffle: random.Random) -> None:
    """Each is aligned for its size; the wanted names come first; no gap is larger than the alignment asks for."""
    wanted = [name for name in sizes if shuffle.random() < 0.5]
    shuffle.shuffle(wanted)
    found = places(sizes, wanted)
    assert list(found)[: len(wanted)] == wanted
    assert list(found)[len(wanted) :] == [n for n in sizes if n not in wanted]
    end = 0
    for name, place in found.items():
        step = LARGE_ALIGNMENT if sizes[name] >= LARGE_BYTES else ALIGNMENT
        assert place.nbytes == sizes[name] and place.offset % step == 0 and 0 <= place.offset - end < step
        end = place.offset + place.nbytes
