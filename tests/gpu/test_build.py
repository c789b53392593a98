"""Weight-free engines built here by the real TensorRT 8.6.0, put into bundles by their records, provisioned, compared.

Needs the kit with its builder, and beside what all GPU tests need:

REFIT_AGENT_GPU_EXPORTS       folder that make_export.py wrote; without it its one test skips
REFIT_AGENT_GPU_BUILD_LEVEL   0 to 5: less than 3 builds faster and worse (default: the builder's own)

Every model is built twice, from the file as it is and in canonical form, with one file of measured times for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest

from bench.bench_gpu import ours
from gpu import sample_bundles as samples
from refit_agent import ensure_engine
from refit_agent.authoring import EngineFacts, add_engine, add_golden, add_model, init_bundle
from refit_agent.authoring.build.engines import build_engines
from refit_agent.authoring.build.options import BuildOptions
from refit_agent.authoring.build.publish import BuiltPlan
from refit_agent.authoring.build.shapes import make_profile
from refit_agent.bundle import Bundle

tensorrt = pytest.importorskip("tensorrt", reason="building needs a full TensorRT")
EXPORTS = os.environ.get("REFIT_AGENT_GPU_EXPORTS", "")
_LEVEL = os.environ.get("REFIT_AGENT_GPU_BUILD_LEVEL", "")
_BUILDER = Path(tensorrt.__file__).with_name("libnvinfer_builder_resource.so.8.6.0")

pytestmark = pytest.mark.skipif(
    not _BUILDER.exists(), reason=f"no builder of TensorRT 8.6.0: {_BUILDER} is missing (make_kit.sh --builder)"
)


class Sample(NamedTuple):
    """A model, an input of batch 2 that it gets, and how far the engine may be off (relative L2)."""

    onnx: Path
    input_name: str
    given: np.ndarray
    tolerance: float
    fp16: bool


class Measured(NamedTuple):
    """Of one build: seconds, bytes, and the relative L2 error."""

    form: str
    built_s: float
    plan: int
    shipped: int
    provisioned_s: float
    refit_s: float
    private: int
    error: float


def _sample(name: str) -> Sample:
    if name == "export":
        if not (Path(EXPORTS) / "export.onnx").exists():
            pytest.skip("REFIT_AGENT_GPU_EXPORTS does not name the folder that make_export.py wrote")
        onnx = Path(EXPORTS) / "export.onnx"
        return Sample(onnx, "image", np.load(Path(EXPORTS) / "input.npy"), 5e-3, fp16=False)
    return Sample(
        Path(samples.MODELS) / f"{name}.onnx",
        samples.INPUTS[name],
        samples.sample_input(name),
        samples.TOLERANCE[name],
        fp16="fp16" in name,
    )


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured times of kernels: the second form of a model, and models alike, are built much faster with it."""
    return tmp_path_factory.mktemp("times") / "cache"


def _build(sample: Sample, folder: Path, canonical: bool, times: Path) -> BuiltPlan:
    best = "x".join(map(str, sample.given.shape))
    rest = "x".join(map(str, sample.given.shape[1:]))
    profile = make_profile(None, {"min": f"{sample.input_name}:1x{rest}", "opt": f"{sample.input_name}:{best}", "max": f"{sample.input_name}:4x{rest}"})  # fmt: skip
    options = BuildOptions(
        strip="zeros",
        fp16=sample.fp16,
        optimization_level=int(_LEVEL) if _LEVEL else None,
        timing_cache=str(times),
        profiles=(profile,),
    )
    (plan,) = build_engines(sample.onnx, folder, options, canonical=canonical)
    return plan


def _bundle(sample: Sample, plan: BuiltPlan, root: Path) -> Path:
    record = plan.record
    onnx = Path(plan.path).parent / record.onnx.path  # absolute for the file as it is
    init_bundle(root, app_id="org.example.built", name="Built", version="1")
    add_model(root, "model", onnx)
    add_engine(root, "model", plan.path, EngineFacts(tolerance=sample.tolerance))
    add_golden(root, "model", inputs={sample.input_name: sample.given}, tolerance=sample.tolerance)
    return root


def _elsewhere(path: str, sample: Sample, folder: Path) -> np.ndarray:
    """What the engine computes in a process of its own, as a host app would load it."""
    np.save(folder / "in.npy", sample.given)
    loader = Path(__file__).with_name("load_plan.py")
    command = [sys.executable, loader, path, sample.input_name, folder / "in.npy", folder / "out.npy"]
    subprocess.run(command, check=True)
    result: np.ndarray = np.load(folder / "out.npy")
    return result


def _measure(sample: Sample, form: str, folder: Path, times: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    folder.mkdir()
    start = time.perf_counter()
    plan = _build(sample, folder / "out", form == "canonical", times)
    built_s = time.perf_counter() - start
    root = _bundle(sample, plan, folder / "bundle")
    engine = Bundle.open(root).model("model").engines[0]
    home = folder / "home"
    home.mkdir()
    _, peak, _ = ours(root, "model", home, measure_memory=True)  # detects the machine too, once
    seconds, _, phases = ours(root, "model", home, measure_memory=False)
    monkeypatch.setenv("REFIT_AGENT_HOME", str(home))
    with ensure_engine(root, "model") as ready:
        assert (ready.hit, ready.check, ready.target) == (True, "golden", "cuda:0")
        got = _elsewhere(ready.path, sample, folder)
    # The original model's outputs, whatever the bundle ships.
    session = onnxruntime.InferenceSession(str(sample.onnx), providers=["CPUExecutionProvider"])
    expected = session.run(None, {sample.input_name: sample.given})[0]
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    refit_s = phases["map"] + phases["refit"]
    return Measured(form, built_s, plan.record.plan_size, engine.size, seconds, refit_s, peak.private, error)


@pytest.mark.parametrize("name", ["tiny", "resnet50", "bert_fp16", "export"])
def test_a_model_is_built_provisioned_and_right(
    name: str, times: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file as it is and in canonical form; what each costs is printed."""
    sample = _sample(name)
    rows = [_measure(sample, form, tmp_path / form, times, monkeypatch) for form in ("as it is", "canonical")]
    print(f"\n{name}: built with TensorRT {tensorrt.__version__}, level {_LEVEL or 'default'}, provisioned with golden data")  # fmt: skip
    for row in rows:
        print(
            f"  {row.form:9}  built {row.built_s:5.1f} s  plan {row.plan / 1e6:6.1f} MB  zstd -19 {row.shipped / 1e6:5.2f} MB"
            f"  provisioned {row.provisioned_s:5.2f} s  map and refit {row.refit_s:5.2f} s  private {row.private / 1e6:6.0f} MB"
            f"  error {row.error:.1e}"
        )
    for row in rows:
        assert row.error <= sample.tolerance, row
        assert row.shipped < row.plan / 2, row


def test_the_record_names_every_weight(times: Path, tmp_path: Path) -> None:
    """The weights of the file as it is are those that the sample engine of the same model asks for."""
    import json

    sample = _sample("tiny")
    plan = _build(sample, tmp_path / "out", False, times)
    known = Path(samples.ENGINES) / "tiny.weights.json"
    if known.exists():
        assert {w.name for w in plan.record.weights} == set(json.loads(known.read_text()))
    assert plan.record.weight_map is not None
    assert plan.record.weight_map.keys() == {w.name for w in plan.record.weights}
    assert plan.record.built_with == "8.6.0.12" and plan.record.gpu.startswith("NVIDIA H")
    assert plan.record.compute_capabilities == ("9.0",)
