"""The plain way to put weights back, to compare with: load everything, set everything, write everything.

    python tests/bench/plain_refit.py cpu MODEL.onnx PLAN.onnx OUT_FOLDER
    python tests/bench/plain_refit.py tensorrt MODEL.onnx ENGINE.plan OUT.plan

It is what one writes who needs a refit once: the model through `onnx.load`, every weight as a NumPy array, all of them
set, the result serialised in memory and written, with fsync. "cpu" completes a CPU plan of ours (an ONNX graph whose
weights are missing); "tensorrt" refits a plan. The only thing taken from us is which ONNX tensors an engine's weight is
made of, for "tensorrt": there is no other source for that on a lean runtime. The values go through NumPy.

Prints one JSON document: the seconds of each phase, interpreter and imports not counted, and the peak resident bytes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Phases:
    """Seconds since the last phase ended, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now

    def document(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": self.seconds, "total": sum(self.seconds.values()), "peak_resident": peak}


def load_arrays(model: Any) -> dict[str, np.ndarray]:
    """Every initializer and every Constant's tensor as an array."""
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                arrays[node.output[0]] = numpy_helper.to_array(attribute.t)
    return arrays


def write_durably(path: Path, parts: list[Any]) -> None:
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------- the CPU target


def refit_cpu(model_path: str, plan_path: str, out: str) -> dict[str, Any]:
    """Complete the plan: ``model.onnx`` with ``weights.bin`` beside it."""
    import onnx
    from onnx import TensorProto

    phases = Phases()
    arrays = load_arrays(onnx.load(model_path))
    phases.end("load weights")
    plan = onnx.load(plan_path, load_external_data=False)
    for tensor in plan.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = np.ascontiguousarray(arrays[tensor.name]).tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    phases.end("set")
    folder = Path(out)
    folder.mkdir(parents=True)
    # Weights apart, as a model above 2 GiB must have them: their places are those that a mapping host wants.
    onnx.save_model(
        plan, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024
    )
    for name in ("model.onnx", "weights.bin"):
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
    phases.end("write")
    return phases.document()


# ---------------------------------------------------------------- TensorRT


def refit_tensorrt(model_path: str, plan_path: str, out: str) -> dict[str, Any]:
    """Refit the plan and write the full one."""
    import onnx
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    runtime = tensorrt.Runtime(logger)
    phases = Phases()
    engine = runtime.deserialize_cuda_engine(Path(plan_path).read_bytes())
    assert engine is not None, "the runtime refuses the plan"
    phases.end("open")
    model = onnx.load(model_path)
    arrays = load_arrays(model)
    phases.end("load weights")
    refitter = tensorrt.Refitter(engine, logger)
    held = []
    for name, (array, dtype) in engine_arrays(refitter.get_all_weights(), model_path, arrays, model, plan_path).items():
        held.append(array)  # TensorRT keeps addresses
        assert refitter.set_named_weights(name, weights_of(tensorrt, array, dtype)), name
    assert refitter.refit_cuda_engine() and not refitter.get_missing_weights()
    phases.end("set and refit")
    write_durably(Path(out), [serialised(tensorrt, engine)])
    phases.end("serialise and write")
    return phases.document()


def engine_arrays(
    names: list[str], model_path: str, arrays: dict[str, np.ndarray], model: Any, plan_path: str
) -> dict[str, tuple[np.ndarray, str]]:
    """What to set for each weight of the engine, computed from the loaded arrays; and its type."""
    from refit_agent.plan_header import read_plan_header
    from refit_agent.weight_map import Prototype, resolve
    from refit_agent.weights import OnnxWeights

    header = read_plan_header(plan_path)
    epsilon = {
        tuple(node.input[1:5]): next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
    }
    with OnnxWeights(model_path) as weights:
        sources = resolve({n: Prototype(None, None) for n in names}, weights, builder=header.version)
    return {
        name: (np.ascontiguousarray(_made(source.transform, source.sources, arrays, epsilon)), source.dtype)
        for name, source in sources.items()
    }


def _made(
    transform: str, keys: tuple[str, ...], arrays: dict[str, np.ndarray], epsilon: dict[tuple[str, ...], float]
) -> np.ndarray:
    if transform == "identity":
        return arrays[keys[0]]
    norm = next((k for k in epsilon if set(keys) <= set(k)), None)
    assert transform in ("batch-norm-scale", "batch-norm-bias") and norm is not None, f"{transform} of {keys}"
    gamma, beta, mean, variance = (arrays[k].astype(np.float32) for k in norm)
    scale = gamma / np.sqrt(variance + np.float32(epsilon[norm]))
    return scale if transform == "batch-norm-scale" else beta - mean * scale


def weights_of(tensorrt: Any, array: np.ndarray, dtype: str) -> Any:
    """As the array, or where NumPy has no such type as address, type and count."""
    members = {"bfloat16": "BF16", "float8e4m3fn": "FP8", "int4": "INT4"}
    if dtype not in members:
        return tensorrt.Weights(array)
    count = array.size * 2 if dtype == "int4" else array.size
    return tensorrt.Weights(getattr(tensorrt.DataType, members[dtype]), array.ctypes.data, count)


def serialised(tensorrt: Any, engine: Any) -> Any:
    """The full plan; from TensorRT 10 on a stripped engine must be told to write its weights."""
    if not hasattr(engine, "create_serialization_config"):
        return engine.serialize()
    config = engine.create_serialization_config()
    config.clear_flag(tensorrt.SerializationFlag.EXCLUDE_WEIGHTS)
    return engine.serialize_with_config(config)


def main(arguments: list[str]) -> None:
    if len(arguments) != 4 or arguments[0] not in ("cpu", "tensorrt"):
        sys.exit(__doc__)
    refit = {"cpu": refit_cpu, "tensorrt": refit_tensorrt}[arguments[0]]
    print(json.dumps(refit(*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
