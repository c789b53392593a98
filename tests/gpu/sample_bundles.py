"""Bundles of the sample engines (compute capability 9.0, TensorRT 8.6.0), made on the GPU machine.

REFIT_AGENT_GPU_ENGINES   folder with NAME.plan or NAME.plan.xz
REFIT_AGENT_GPU_MODELS    folder with NAME.onnx, the models that the engines were built from
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from refit_agent.authoring.cpu_plan import make_cpu_plan
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.manifest import App, Engine, Golden, Manifest, Model

ENGINES = os.environ.get("REFIT_AGENT_GPU_ENGINES", "")
MODELS = os.environ.get("REFIT_AGENT_GPU_MODELS", "")
BUILT_ON = "NVIDIA H100 80GB HBM3"
#: Relative L2 error allowed against ONNX Runtime on the CPU.
TOLERANCE = {"tiny": 2e-3, "resnet50": 2e-3, "bert_fp16": 5e-3, "bert_large_fp16": 8e-3}
INPUTS = {"tiny": "x", "resnet50": "input", "bert_fp16": "ids", "bert_large_fp16": "ids"}


def sample_input(name: str) -> np.ndarray:
    """A fixed input of the sample model."""
    random = np.random.RandomState(0)
    if name.startswith("bert"):
        return random.randint(0, 8000, (2, 64)).astype(np.int32)
    return random.standard_normal((2, 3, 64, 64) if name == "tiny" else (2, 3, 224, 224)).astype(np.float32)


def reference(name: str, path: Path | None = None) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes on the CPU, by output name, with the sample model or the one at ``path``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path or f"{MODELS}/{name}.onnx", providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {INPUTS[name]: sample_input(name)}), strict=True))


def gpu_engine(root: Path, name: str, compression: str = "zstd", **changes: object) -> Engine:
    """The manifest's entry for a sample engine, its plan written into the bundle."""
    source = f"{ENGINES}/{name}.plan"
    plan_size = os.path.getsize(source)
    path = f"{name}.plan" if compression == "none" else f"{name}.plan.zst"
    if not (root / path).exists():
        _compress(source, root / path, compression)
    ref = file_ref(str(root), path)
    facts: dict[str, object] = {
        "path": path,
        "size": ref.size,
        "sha256": ref.sha256,
        "runtime": "tensorrt",
        "built_with": "8.6.0.12",
        "plan_size": plan_size,
        "compression": compression,
        "os": ("linux",),
        "compute_capabilities": ("9.0",),
        "gpu": BUILT_ON,
        "strip": "zeros",
        "refit": "any",
        "precision": "fp16" if "fp16" in name else "fp32",
        "tolerance": TOLERANCE[name],
    }
    return Engine(**{**facts, **changes})  # type: ignore[arg-type]


def _compress(source: str, target: Path, compression: str) -> None:
    if compression == "none":
        shutil.copyfile(source, target)
        return
    import zstandard

    with open(source, "rb") as plan, open(target, "wb") as out:
        zstandard.ZstdCompressor(level=9).copy_stream(plan, out, size=os.path.getsize(source))


def cpu_engine(root: Path, name: str) -> Engine:
    """The CPU target's entry for a sample model."""
    import onnxruntime

    make_cpu_plan(str(root / f"{name}.onnx"), str(root / f"{name}.cpu.onnx"))
    ref = file_ref(str(root), f"{name}.cpu.onnx")
    return Engine(
        path=ref.path,
        size=ref.size,
        sha256=ref.sha256,
        plan_size=ref.size,
        runtime="onnxruntime",
        built_with=".".join(onnxruntime.__version__.split(".")[:2]),
    )


def link_model(root: Path, name: str) -> None:
    """Put the sample's ONNX file into the bundle without copying it, if the disk allows."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}.onnx"
    if target.exists():
        return
    try:
        os.link(f"{MODELS}/{name}.onnx", target)
    except OSError:
        shutil.copyfile(f"{MODELS}/{name}.onnx", target)


def write_bundle(root: Path, name: str, engines: tuple[Engine, ...], *, golden: bool = True) -> Path:
    """A bundle of one sample model with these engines; golden data by ONNX Runtime."""
    link_model(root, name)
    data: tuple[Golden, ...] = ()
    if golden:
        np.save(root / f"{name}.in.npy", sample_input(name))
        outputs = {}
        for number, (output, array) in enumerate(reference(name).items()):
            np.save(root / f"{name}.out{number}.npy", array)
            outputs[output] = file_ref(str(root), f"{name}.out{number}.npy")
        data = (Golden(inputs={INPUTS[name]: file_ref(str(root), f"{name}.in.npy")}, outputs=outputs),)
    model = Model(name=name, onnx=file_ref(str(root), f"{name}.onnx"), engines=engines, golden=data)
    app = App(id="org.example.samples", name="Samples", version="1")
    write_manifest(str(root), Manifest(schema=1, app=app, models=(model,)))
    return root
