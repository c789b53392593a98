"""Small ONNX models to build engines from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES = 24, 32


def make_model(path: Path, *, external: str = "", epsilon: float = 1e-5, batch: Any = "n", seed: int = 0) -> Path:
    """Conv, BatchNormalization, Relu, pooling, Gemm: x [n,3,8,8] -> y [n,32]. ``external`` names a file for the kernels."""
    random = np.random.default_rng(seed)
    arrays = {
        "conv.w": random.standard_normal((CHANNELS, 3, 3, 3), np.float32),
        "conv.b": random.standard_normal(CHANNELS, np.float32),
        "bn.scale": random.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "bn.bias": random.standard_normal(CHANNELS, np.float32),
        "bn.mean": random.standard_normal(CHANNELS, np.float32),
        "bn.var": random.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "fc.w": random.standard_normal((CLASSES, CHANNELS), np.float32),
        "fc.b": random.standard_normal(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["b"], name="bn", epsilon=epsilon),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], transB=1),
    ]  # fmt: skip
    write(path, nodes, arrays, {"x": [batch, 3, 8, 8]}, {"y": [batch, CLASSES]}, external)
    return path


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    arrays: dict[str, np.ndarray],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    external: str = "",
) -> None:
    """A model of float32 inputs and outputs; with ``external`` the weights' bytes lie in that file beside it."""
    graph = helper.make_graph(
        nodes,
        "sample",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, location=external, size_threshold=0)
    else:
        path.write_bytes(model.SerializeToString())
