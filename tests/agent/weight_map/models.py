"""Small ONNX models, written with the onnx package and read back with OnnxWeights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refit_agent.weight_map import Prototype, WeightSource, resolve
from refit_agent.weights import OnnxWeights

V8_6 = (8, 6, 0, 12)
V9_3 = (9, 3, 0, 1)
V10_0_EA = (10, 0, 0, 6)
V10_0_GA = (10, 0, 1, 6)
V10_9 = (10, 9, 0, 34)
V10_14 = (10, 14, 1, 48)
V11 = (11, 0, 0, 1)
NOTHING_SAID = Prototype(None, None)


def tensor(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def batch_norm(prefix: str, x: str, y: str, **attributes: object) -> onnx.NodeProto:
    inputs = [x, *(f"{prefix}.{p}" for p in ("g", "b", "m", "v"))]
    return helper.make_node("BatchNormalization", inputs, [y], name=prefix, **attributes)


def parameters(prefix: str, channels: int, dtype: type = np.float32, seed: int = 0) -> list[onnx.TensorProto]:
    """gamma, beta, mean and variance of one BatchNormalization, different for each prefix."""
    rng = np.random.default_rng([seed, *prefix.encode()])
    values = {
        "g": rng.uniform(0.5, 1.5, channels),
        "b": rng.standard_normal(channels),
        "m": rng.standard_normal(channels),
        "v": rng.uniform(0.5, 1.5, channels),
    }
    return [tensor(f"{prefix}.{p}", v, dtype) for p, v in values.items()]


def folded(weights: OnnxWeights, prefix: str, epsilon: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias by the formula, computed here: float32, one rounding for each operation."""
    g, b, m, v = (weights[f"{prefix}.{p}"].array().astype(np.float32) for p in ("g", "b", "m", "v"))
    scale = np.empty_like(g)
    bias = np.empty_like(g)
    for i in range(len(g)):
        scale[i] = np.float32(g[i] / np.float32(np.sqrt(np.float32(v[i] + np.float32(epsilon)))))
        bias[i] = np.float32(b[i] - np.float32(m[i] * scale[i]))
    return scale, bias


def chain(channels: Sequence[int], prefix: str = "bn") -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """BatchNormalizations one after the other (types only: nobody runs these models)."""
    nodes = [batch_norm(f"{prefix}{i}", f"x{i}" if i else "x", f"x{i + 1}") for i in range(len(channels))]
    weights = [t for i, c in enumerate(channels) for t in parameters(f"{prefix}{i}", c)]
    return nodes, weights


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    inputs: Iterable[str] = ("x",),
    outputs: Iterable[str] = ("y",),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
) -> OnnxWeights:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    graph = helper.make_graph(
        list(nodes), "main", [value(n) for n in inputs], [value(n) for n in outputs], initializers
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("local", 1)] if functions else [])
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return OnnxWeights(path)


def subgraph(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    outputs: Sequence[str] = ("out",),
    inputs: Sequence[str] = (),
) -> onnx.GraphProto:
    def value(n: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(n, TensorProto.FLOAT, None)

    return helper.make_graph(list(nodes), name, [value(n) for n in inputs], [value(n) for n in outputs], initializers)


def ask(
    weights: OnnxWeights,
    wanted: Iterable[str] | Mapping[str, tuple[str | None, int | None]],
    builder: tuple[int, ...],
    *,
    rtx: bool = False,
    explicit: Mapping[str, object] | None = None,
) -> dict[str, WeightSource]:
    """resolve, with prototypes where ``wanted`` is a mapping and none where it is a list of names."""
    if isinstance(wanted, Mapping):
        prototypes = {name: Prototype(*said) for name, said in wanted.items()}
    else:
        prototypes = dict.fromkeys(wanted, NOTHING_SAID)
    return resolve(prototypes, weights, builder=builder, rtx=rtx, explicit=explicit)


def f32(**counts: int) -> dict[str, tuple[str | None, int | None]]:
    return {name: ("float32", count) for name, count in counts.items()}
