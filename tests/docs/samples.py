"""Makes what a page calls yours, in its hidden setup: an app's model, its inputs and its bundle.

samples.py model FILE.onnx       the model "denoiser", with an input "image" and an output "clean"
samples.py input FILE.npy        an input for it
samples.py bundle FOLDER         a bundle with that model, its CPU target and golden data
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

_SIDE = 16


def model(path: str) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3), np.float32) / 5,
        "w2": rng.standard_normal((3, 8, 3, 3), np.float32) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["h1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Conv", ["h2", "w2"], ["clean"], pads=[1, 1, 1, 1]),
    ]
    shape = ["n", 3, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "denoiser",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("clean", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def image(path: str) -> None:
    np.save(path, np.random.default_rng(1).standard_normal((1, 3, _SIDE, _SIDE), np.float32))


def bundle(folder: str) -> None:
    from refit_agent.authoring import add_cpu_engine, add_golden, add_model, init_bundle

    source = Path(folder).with_suffix(".source.onnx")
    init_bundle(folder, app_id="com.example.photo", name="Photo", version="2.3.0")
    model(str(source))
    add_model(folder, "denoiser", str(source))
    add_cpu_engine(folder, "denoiser")
    add_golden(folder, "denoiser")
    source.unlink()


if __name__ == "__main__":
    {"model": model, "input": image, "bundle": bundle}[sys.argv[1]](sys.argv[2])
