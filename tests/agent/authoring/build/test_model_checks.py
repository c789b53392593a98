"""What the model says about a build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from refit_agent.authoring.build.messages import RefittableNames
from refit_agent.authoring.build.model_checks import precision_name, refittable_names, require_buildable
from refit_agent.authoring.build.options import BuilderVersion, BuildOptions
from refit_agent.authoring.errors import BuildOptionsInvalid, ModelUnsupported
from refit_agent.weights import OnnxWeights

from .models import write

TEN, ELEVEN = BuilderVersion("tensorrt", "10.16.1"), BuilderVersion("tensorrt", "11.4.0")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    arrays = {
        "w[0]": np.ones(8, np.float32),
        "w0": np.ones(8, np.float32),
        "half": np.ones(64, np.float16),
        "index": np.zeros(999, np.int64),
    }
    nodes = [helper.make_node("Sum", ["x", "w[0]", "w0"], ["y"])]
    write(tmp_path / "m.onnx", nodes, arrays, {"x": [8]}, {"y": [8]})
    return tmp_path / "m.onnx"


def test_a_name_stands_for_itself(model: Path) -> None:
    """Also where it would be a pattern that means another weight; a pattern means all that it fits."""
    with OnnxWeights(model) as weights:
        assert refittable_names(weights, ("w[0]", "w*", "w0")) == (
            RefittableNames(pattern="w[0]", names=("w[0]",)),
            RefittableNames(pattern="w*", names=("w[0]", "w0")),
            RefittableNames(pattern="w0", names=("w0",)),
        )
        with pytest.raises(BuildOptionsInvalid, match=r"'W\*' means no weight"):
            refittable_names(weights, ("W*",))


@pytest.mark.parametrize(
    ("options", "builder", "name"),
    [
        (BuildOptions(), TEN, "fp32"),
        (BuildOptions(fp16=True), TEN, "fp16"),
        (BuildOptions(int8=True, fp16=True), TEN, "fp16+int8"),
        (BuildOptions(strongly_typed=True), TEN, "fp16"),
        (BuildOptions(), ELEVEN, "fp16"),
    ],
)
def test_the_name_of_the_precision(model: Path, options: BuildOptions, builder: BuilderVersion, name: str) -> None:
    """Integers that are no weights do not count, however many."""
    with OnnxWeights(model) as weights:
        assert precision_name(options, builder, weights) == name


def test_a_model_without_weights_is_fp32(tmp_path: Path) -> None:
    """For want of anything else."""
    write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [8]}, {"y": [8]})
    with OnnxWeights(tmp_path / "m.onnx") as weights:
        assert precision_name(BuildOptions(), ELEVEN, weights) == "fp32"


def test_int8_needs_a_quantized_model(model: Path, tmp_path: Path) -> None:
    """A QuantizeLinear in a branch counts too; without one TensorRT would want calibration."""
    with OnnxWeights(model) as weights:
        require_buildable(weights, BuildOptions(fp16=True))
        with pytest.raises(ModelUnsupported, match="no QuantizeLinear"):
            require_buildable(weights, BuildOptions(int8=True))
    branch = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [8])],
    )
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "else", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, [8])])  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    arrays = {"scale": np.float32([0.1]).reshape(())}
    write(tmp_path / "q.onnx", nodes, arrays, {"x": [8], "s": []}, {"y": [8]})
    with OnnxWeights(tmp_path / "q.onnx") as weights:
        require_buildable(weights, BuildOptions(int8=True))
