"""A small, complete bundle made on the spot: a convolutional classifier with its CPU plan and golden data.

No file is downloaded and the `onnx` package is not needed. The same arguments and the same version of
ONNX Runtime give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from refit_agent import __version__
from refit_agent.authoring.cpu_plan import make_cpu_plan
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.errors import RuntimeMissing
from refit_agent.machine import version_tuple
from refit_agent.manifest import SCHEMA, App, Engine, Golden, Manifest, Model
from refit_agent.runtimes.importing import import_onnxruntime
from refit_agent.weights import wire_writer as pb

if TYPE_CHECKING:
    from refit_agent.runtimes.base import Array

APP_ID = "dev.refit-agent.demo"
MODEL = "classifier"
ONNX_PATH = "classifier/classifier.onnx"
PLAN_PATH = "classifier/classifier.cpu.onnx"
INPUT, OUTPUT = "image", "scores"
#: Far above what two orders of summation differ by in fp32, far below what one wrong weight does.
TOLERANCE = 1e-4
_INPUT_SHAPE = (1, 3, 64, 64)
_CLASSES = 1000
_IR_VERSION, _OPSET = 8, 17


def write_demo_bundle(root: str, *, width: int = 32, seed: int = 7) -> Manifest:
    """Write the bundle into the folder ``root``, which is made, and give its manifest.

    ``width`` is the number of channels of the first convolution: 32 makes a model of 2.6 MB, and
    the size grows with its square.

    Raises:
        RuntimeMissing: ONNX Runtime is not installed; it makes the plan and the golden outputs.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise RuntimeMissing(model=MODEL, runtime="ONNX Runtime", extra="cpu") from error
    os.makedirs(os.path.join(root, "classifier"), exist_ok=True)
    onnx = os.path.join(root, *ONNX_PATH.split("/"))
    with open(onnx, "wb") as file:
        file.write(demo_model(width, seed))
    plan = make_cpu_plan(onnx, os.path.join(root, *PLAN_PATH.split("/")))
    image = demo_input(seed)
    scores = run_model(onnx, image)
    golden = Golden(
        inputs={INPUT: file_ref(root, _save(root, "classifier/golden-image.npy", image))},
        outputs={OUTPUT: file_ref(root, _save(root, "classifier/golden-scores.npy", scores))},
        tolerance=TOLERANCE,
    )
    ref = file_ref(root, PLAN_PATH)
    engine = Engine(
        path=ref.path,
        size=ref.size,
        sha256=ref.sha256,
        runtime="onnxruntime",
        built_with=".".join(map(str, version_tuple(onnxruntime.__version__)[:4])),
        plan_size=plan.plan_bytes,
        plan_sha256=ref.sha256,
        min_runtime=plan.min_runtime,
    )
    model = Model(name=MODEL, version="1", onnx=file_ref(root, ONNX_PATH), engines=(engine,), golden=(golden,))
    app = App(id=APP_ID, name="refit-agent demo", version=__version__)
    manifest = Manifest(schema=SCHEMA, app=app, models=(model,))
    write_manifest(root, manifest)
    return manifest


def demo_input(seed: int = 7) -> Array:
    """An image of noise, always the same for one seed."""
    return np.random.RandomState(seed + 1).standard_normal(_INPUT_SHAPE).astype(np.float32)


def run_model(path: str, image: Array) -> Array:
    """The scores that the model at ``path`` gives, run by ONNX Runtime on the CPU as a host app would."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    scores: Array = session.run([OUTPUT], {INPUT: image})[0]
    return scores


def _save(root: str, path: str, array: Array) -> str:
    np.save(os.path.join(root, *path.split("/")), array, allow_pickle=False)
    return path


# ---------------------------------------------------------------- the model


def demo_model(width: int = 32, seed: int = 7) -> bytes:
    """An ONNX model: four convolutions with BatchNormalization and Relu, pooling, and a Gemm."""
    random = np.random.RandomState(seed)
    channels = [_INPUT_SHAPE[1], width, 2 * width, 4 * width, 8 * width]
    nodes: list[bytes] = []
    weights: list[bytes] = []
    last = INPUT
    for number, (inside, outside) in enumerate(pairwise(channels), start=1):
        weights += _conv_block_weights(random, f"block{number}", inside, outside)
        nodes += _conv_block_nodes(f"block{number}", last, stride=1 if number == 1 else 2)
        last = f"block{number}.relu"
    weights.append(_weight("head.weight", random.standard_normal((_CLASSES, channels[-1])) / channels[-1] ** 0.5))
    weights.append(_weight("head.bias", random.standard_normal(_CLASSES) * 0.1))
    nodes += [
        pb.node("GlobalAveragePool", [last], ["pooled"]),
        pb.node("Flatten", ["pooled"], ["features"], axis=1),
        pb.node("Gemm", ["features", "head.weight", "head.bias"], [OUTPUT], transB=1),
    ]
    return b"".join(_model(nodes, weights))


def _model(nodes: Sequence[bytes], weights: Sequence[bytes]) -> Iterator[bytes]:
    graph = b"".join(pb.blob(1, node) for node in nodes) + pb.text(2, "refit-agent demo")
    graph += b"".join(pb.blob(5, weight) for weight in weights)
    graph += pb.blob(11, pb.value_info(INPUT, "float32", _INPUT_SHAPE))
    graph += pb.blob(12, pb.value_info(OUTPUT, "float32", (1, _CLASSES)))
    yield pb.integer(1, _IR_VERSION)
    yield pb.text(2, "refit-agent")
    yield pb.blob(7, graph)
    yield pb.blob(8, pb.text(1, "") + pb.integer(2, _OPSET))


def _conv_block_weights(random: np.random.RandomState, name: str, inside: int, outside: int) -> list[bytes]:
    # He's initialisation: signals keep their size through the layers, so that a wrong weight shows at the end.
    kernel = random.standard_normal((outside, inside, 3, 3)) * (2 / (inside * 9)) ** 0.5
    return [
        _weight(f"{name}.conv.weight", kernel),
        _weight(f"{name}.bn.gamma", random.uniform(0.8, 1.2, outside)),  # nosec B311 # weights, no secret
        _weight(f"{name}.bn.beta", random.standard_normal(outside) * 0.1),
        _weight(f"{name}.bn.mean", random.standard_normal(outside) * 0.1),
        _weight(f"{name}.bn.var", random.uniform(0.8, 1.2, outside)),  # nosec B311 # weights, no secret
    ]


def _conv_block_nodes(name: str, source: str, stride: int) -> list[bytes]:
    norm = [f"{name}.conv", *(f"{name}.bn.{part}" for part in ("gamma", "beta", "mean", "var"))]
    return [
        pb.node("Conv", [source, f"{name}.conv.weight"], [f"{name}.conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride]),
        pb.node("BatchNormalization", norm, [f"{name}.bn"], epsilon=1e-5),
        pb.node("Relu", [f"{name}.bn"], [f"{name}.relu"]),
    ]  # fmt: skip


def _weight(name: str, values: Array) -> bytes:
    return pb.tensor(name, "float32", values.shape, values.astype("<f4").tobytes())
