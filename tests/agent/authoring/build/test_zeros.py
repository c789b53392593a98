"""What a build from zeros may leave behind as zeros, and must not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from refit_agent.authoring.build.zeros import require_all_covered, zeroed_model
from refit_agent.authoring.errors import ModelUnsupported, WeightsLost
from refit_agent.weights import OnnxWeights

from .models import make_model, write

ALL = ["conv.w", "conv.b", "bn.scale", "bn.bias", "bn.mean", "bn.var", "fc.w", "fc.b"]


@pytest.mark.parametrize("external", ["", "weights.bin"])
def test_a_zeroed_copy_is_the_same_model_without_its_weights(tmp_path: Path, external: str) -> None:
    """In a folder of its own; the model stays as it is."""
    model = make_model(tmp_path / "m.onnx", external=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    copy = zeroed_model(str(model), str(tmp_path / "zeros"))
    assert os.path.dirname(copy) == str(tmp_path / "zeros")
    with OnnxWeights(copy) as zero, OnnxWeights(model) as true:
        assert {k: (r.dtype, r.shape) for k, r in zero.items()} == {k: (r.dtype, r.shape) for k, r in true.items()}
        assert not any(ref.array().any() for ref in zero.values())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(("epsilon", "dtype", "fine"), [(1e-5, np.float32, True), (0.0, np.float32, False), (1e-5, np.float16, True), (1e-9, np.float16, False), (1e-9, np.float32, True)])  # fmt: skip
def test_nothing_is_divided_by_zero(tmp_path: Path, epsilon: float, dtype: type, fine: bool) -> None:
    """A BatchNormalization without variance divides by the root of its epsilon, in the type of its parameters."""
    model = make_model(tmp_path / "m.onnx", epsilon=epsilon)
    proto = onnx.load(str(model))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    model.write_bytes(proto.SerializeToString())
    if fine:
        zeroed_model(str(model), str(tmp_path / "zeros"))
        return
    with pytest.raises(ModelUnsupported, match="epsilon of BatchNormalization 'bn'"):
        zeroed_model(str(model), str(tmp_path / "zeros"))
    assert not (tmp_path / "zeros").exists()


def test_every_zeroed_weight_must_be_asked_for(tmp_path: Path) -> None:
    """One that is not has become a part of the engine, as zeros: an error that names it."""
    model = str(make_model(tmp_path / "m.onnx"))
    zeroed = zeroed_model(model, str(tmp_path / "zeros"))
    require_all_covered(model, zeroed, ALL)
    with pytest.raises(
        WeightsLost, match=r"in place of 2 of them, since it does not ask for: conv\.b, fc\.w"
    ) as caught:
        require_all_covered(model, zeroed, set(ALL) - {"fc.w", "conv.b"})
    assert caught.value.code == "weights-lost"


def test_many_lost_weights_make_a_short_list(tmp_path: Path) -> None:
    """The error stays readable."""
    arrays = {f"w{i}": np.full(32, 1.0, np.float32) for i in range(20)}
    nodes = [helper.make_node("Sum", ["x", *arrays], ["y"])]
    write(tmp_path / "m.onnx", nodes, arrays, {"x": [32]}, {"y": [32]})
    zeroed = zeroed_model(str(tmp_path / "m.onnx"), str(tmp_path / "zeros"))
    with pytest.raises(WeightsLost, match=r"20 of them.*w0.*w7 and 12 more"):
        require_all_covered(str(tmp_path / "m.onnx"), zeroed, [])


def test_what_may_be_missing(tmp_path: Path) -> None:
    """Weights that were not zeroed, are zero anyway, or that nothing uses."""
    arrays = {
        "used": np.full(32, 1.0, np.float32),
        "zero": np.zeros(32, np.float32),
        "small": np.full(2, 3.0, np.float32),
        "shape": np.array([2, 32], np.int64),
        "dead": np.full(32, 1.0, np.float32),
    }
    nodes = [
        helper.make_node("Add", ["x", "used"], ["a"]),
        helper.make_node("Add", ["a", "zero"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Concat", ["small", "small"], ["d"], axis=0),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    write(tmp_path / "m.onnx", nodes, arrays, {"x": [2, 32]}, {"y": [2, 32], "d": [4]})
    zeroed = zeroed_model(str(tmp_path / "m.onnx"), str(tmp_path / "zeros"))
    require_all_covered(str(tmp_path / "m.onnx"), zeroed, ["used"])
    with pytest.raises(WeightsLost, match=r"1 of them.*: used\."):
        require_all_covered(str(tmp_path / "m.onnx"), zeroed, [])


def test_a_weight_that_is_an_output_is_used(tmp_path: Path) -> None:
    """Without any node around it."""
    write(tmp_path / "m.onnx", [], {"w": np.full(32, 1.0, np.float32)}, {"x": [1]}, {"w": [32]})
    zeroed = zeroed_model(str(tmp_path / "m.onnx"), str(tmp_path / "zeros"))
    with pytest.raises(WeightsLost, match=": w"):
        require_all_covered(str(tmp_path / "m.onnx"), zeroed, [])
