"""The comparison with ONNX Runtime: what it compares, with which inputs, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from refit_agent.authoring.canonical import Check, canonicalize, constants
from refit_agent.authoring.canonical.check import relative_error, tolerance
from refit_agent.authoring.errors import CanonicalDiffers, ModelUnsupported

from .models import I64, F, H, model, node, noise, tensor, value


def _check(folder: Path, source: onnx.ModelProto, **options: Any) -> Check:
    (folder / "m.onnx").write_bytes(source.SerializeToString())
    return canonicalize(folder / "m.onnx", folder / "o.onnx", force=True, **options).check


def _linear(shape: Any = ("n", 4)) -> onnx.ModelProto:
    return model([node("MatMul", ["x", "w"], ["y"])], [value("x", shape)], [value("y", None)], [noise("w", 4, 4)])


def test_equal_results(tmp_path: Path) -> None:
    """Open dimensions are small numbers; the report has them, the tolerance and every output's error."""
    assert _check(tmp_path, _linear()) == Check(True, "", 1e-4, {"y": 0.0}, {"x": (2, 4)})


def test_not_asked_for(tmp_path: Path) -> None:
    """Then it says so."""
    assert _check(tmp_path, _linear(), check=False) == Check(False, "it was not asked for")


@pytest.mark.parametrize("what", ["value", "shape"])
def test_a_fault_of_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A weight with other numbers or another shape: an error, and neither file is there."""
    real = constants._Hoister._place

    def wrong(self: Any, name: str, made: Any, hoisted: bool) -> str:
        if what == "value":
            changed = constants.Value(made.dtype, made.shape, lambda: made.make() * np.float32(1.001))
        else:
            changed = constants.Value(made.dtype, (2, 8), made.make)
        return real(self, name, changed, hoisted)

    monkeypatch.setattr(constants._Hoister, "_place", wrong)
    with pytest.raises(CanonicalDiffers, match=r"output 'y' (has the error|is not made)"):
        _check(tmp_path, _linear())
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["m.onnx"]


def test_integers_have_to_be_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a thousand that differs is an error, since no arithmetic has changed."""
    real = constants._Hoister._place

    def wrong(self: Any, name: str, made: Any, hoisted: bool) -> str:
        numbers = made.make().copy()
        numbers[500] += 1
        return real(self, name, constants.Value(made.dtype, made.shape, lambda: numbers), hoisted)

    monkeypatch.setattr(constants._Hoister, "_place", wrong)
    source = model([node("Add", ["x", "w"], ["y"])], [value("x", [1], I64)], [value("y", None, I64)], [tensor("w", range(1000), np.int64)])  # fmt: skip
    with pytest.raises(CanonicalDiffers, match=r"'y' has the error 0\.001, above 0"):
        _check(tmp_path, source)


def test_shapes_of_the_caller(tmp_path: Path) -> None:
    """Are used as they are; a symbol in them holds for all inputs."""
    two = model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])],
        [value("x", ["n", 4]), value("b", ["n", 4])],
        [value("y", None)],
        [noise("w", 4, 4)],
    )
    assert _check(tmp_path, two, input_shapes={"x": (7, 4)}).inputs == {"x": (7, 4), "b": (7, 4)}


@pytest.mark.parametrize("shapes", [{"z": (1, 4)}, {"x": (1, 5)}, {"x": (4,)}])
def test_shapes_that_the_model_cannot_have(tmp_path: Path, shapes: Any) -> None:
    """Are the caller's mistake."""
    with pytest.raises(ModelUnsupported):
        _check(tmp_path, _linear(), input_shapes=shapes)


def test_small_indices_are_tried(tmp_path: Path) -> None:
    """A table of two rows takes the indices 0 and 1 only, and a stride of 16 needs more than 8 pixels."""
    table = model([node("Gather", ["w", "i"], ["y"])], [value("i", ["n"], I64)], [value("y", None)], [noise("w", 2, 3)])
    assert _check(tmp_path, table).done
    image = model([node("Conv", ["x", "w"], ["y"])], [value("x", ["n", 3, "h", "w"])], [value("y", None)], [noise("w", 2, 3, 12, 12)])  # fmt: skip
    assert _check(tmp_path, image).inputs == {"x": (2, 3, 16, 16)}


def test_a_model_that_no_guess_fits(tmp_path: Path) -> None:
    """Is not checked, and the report says how to help."""
    source = model(
        [node("Reshape", ["x", "s"], ["y"])], [value("x", ["n"])], [value("y", None)], [tensor("s", [3, 37], np.int64)]
    )
    check = _check(tmp_path, source)
    assert not check.done and "--input-shape" in check.reason
    assert _check(tmp_path, source, input_shapes={"x": (111,)}).done


def test_models_that_cannot_run_here(tmp_path: Path) -> None:
    """Custom operators, types without random numbers, random numbers inside: written, and said plainly."""
    foreign = model([node("Thing", ["x"], ["y"], domain="org.example")], [value("x", [1])], [value("y", [1])], domains={"org.example": 1})  # fmt: skip
    assert "does not load the source" in _check(tmp_path, foreign).reason
    text = value("x", [1], TensorProto.STRING)
    strings = model([node("Identity", ["x"], ["y"])], [text], [value("y", [1], TensorProto.STRING)])
    assert "tensor(string)" in _check(tmp_path, strings).reason
    assert "tensor(string)" in _check(tmp_path, strings, input_shapes={"x": (1,)}).reason
    noisy = [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])]
    assert "random numbers" in _check(tmp_path, model(noisy, [value("x", [4])], [value("y", [4])])).reason
    noisy[0].attribute.append(onnx.helper.make_attribute("seed", 3.0))
    assert _check(tmp_path, model(noisy, [value("x", [4])], [value("y", [4])])).done


def test_outputs_of_every_kind(tmp_path: Path) -> None:
    """Integers, booleans, sequences, NaNs and infinities at the same places."""
    parts = [
        node("ArgMax", ["x"], ["a"], axis=1),
        node("Less", ["x", "w"], ["l"]),
        node("SequenceConstruct", ["x", "w"], ["s"]),
        node("Div", ["x", "zero"], ["i"]),
        node("Sqrt", ["x"], ["n"]),
    ]
    outputs = [
        value("a", None, I64),
        value("l", None, TensorProto.BOOL),
        onnx.helper.make_tensor_sequence_value_info("s", F, None),
        value("i", None),
        value("n", None),
    ]
    source = model(parts, [value("x", ["n", 4])], outputs, [noise("w", 2, 4), tensor("zero", 0.0)])
    assert _check(tmp_path, source).errors == dict.fromkeys("alsin", 0.0)


def test_tolerances() -> None:
    """By the coarsest type of weights, casts and declared types."""
    plain = _linear()
    assert [tolerance(plain, [t]) for t in ("float32", "float16", "bfloat16", "int8", "float64")] == [1e-4, 1e-2, 5e-2, 1e-4, 1e-4]  # fmt: skip
    half = model([node("Cast", ["x"], ["h"], to=H), node("Cast", ["h"], ["y"], to=F)], [value("x", [1])], [value("y", [1])])  # fmt: skip
    assert tolerance(half, []) == 1e-2
    quantized = model([node("QuantizeLinear", ["x", "s"], ["y"])], [value("x", [1])], [value("y", [1], TensorProto.UINT8)])  # fmt: skip
    assert tolerance(quantized, ["float32"]) == 2e-2


def test_relative_error() -> None:
    """L2, infinite where one is not a number and the other is."""
    one = np.array([3.0, 4.0])
    assert relative_error(one, one + np.array([0.05, 0])) == pytest.approx(0.01)
    assert relative_error(one * 0, one) == 5
    for bad in (np.array([np.nan, 4.0]), np.array([np.inf, 4.0])):
        assert relative_error(bad, bad) == 0
        assert relative_error(one, bad) == relative_error(bad, one) == float("inf")
    assert relative_error(np.array([np.inf]), np.array([-np.inf])) == float("inf")
    assert relative_error(np.zeros(0), np.zeros(0)) == 0


def test_arrays_of_the_report_are_plain(tmp_path: Path) -> None:
    """The document can be written as JSON."""
    import json

    (tmp_path / "m.onnx").write_bytes(_linear().SerializeToString())
    report = canonicalize(tmp_path / "m.onnx", tmp_path / "o.onnx")
    document = json.loads(json.dumps(report.document()))
    assert document["check"]["errors"] == {"y": 0.0} and document["float64"] is None
    assert numpy_helper.to_array(onnx.load(str(tmp_path / "o.onnx")).graph.initializer[0]).shape == (4, 4)
