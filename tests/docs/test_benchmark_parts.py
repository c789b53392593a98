"""What the benchmarks measure is what they say: the models, the engines, the plain way, the memory."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bench import plain_refit
from bench.many_engines import ManyEngines
from bench.measured import Run, decode
from bench.models import holes, make_external, make_inside
from bench.part_index import list_by_onnx, list_names, list_ours
from bench.part_provision import write_bundle
from bench.process_memory import growth
from bundles import SIZE, make_onnx
from fakes_tensorrt import FakeTensorRt, build_driver, plan, write_package
from refit_agent import ensure_engine, paths
from refit_agent.authoring.demo_bundle import demo_model
from refit_agent.cache.store import Store
from refit_agent.cache.verify import verify
from refit_agent.weight_map import Prototype, resolve
from refit_agent.weights import OnnxWeights

ROOT = Path(__file__).parents[2]
MB = 1_000_000
BUILDER = (8, 6, 0, 12)


@pytest.mark.parametrize("make", [make_external, make_inside])
def test_a_made_model_reads_the_same_by_both_ways_of_listing(make: object, tmp_path: Path) -> None:
    """With noise, and with holes in its place."""
    for folder, fill in (("noise", None), ("holes", holes)):
        made = make(tmp_path / folder, 2 * MB, 40, fill)  # type: ignore[operator]
        ours = list_ours(str(made.path))
        theirs = list_by_onnx(str(made.path))
        assert [w[0] for w in ours] == list_names(str(made.path)) == [t[1] for t in theirs]
        assert [tuple(w[2]) for w in ours] == [t[3] for t in theirs]
        assert sum(w[5] for w in ours) == made.nbytes
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
        with OnnxWeights(made.path) as weights:
            assert all(np.array_equal(weights[n].array().view(np.uint8), arrays[n].view(np.uint8)) for n in arrays)
        assert any(a.view(np.uint8).any() for a in arrays.values()) is (fill is None)
        assert len({a.tobytes() for a in arrays.values()}) == (40 if fill is None else 1)


def test_a_sparse_model_takes_no_room(tmp_path: Path) -> None:
    made = make_external(tmp_path / "model", 4000 * MB, fill=holes)
    data = (made.path.parent / "weights.bin").stat()
    assert data.st_size == made.nbytes >= 3999 * MB
    assert data.st_blocks * 512 < MB


def test_engines_made_cheaply_are_real_ones(tmp_path: Path, home: Path) -> None:
    """Each bundle's engine is found, intact by its hashes, and another one than its neighbours'."""
    many = ManyEngines(tmp_path)
    many.grow(20)
    many.grow(5)  # never fewer
    found = [ensure_engine(bundle, many.model) for bundle in many.bundles]
    assert all(engine.hit for engine in found)
    assert [engine.key for engine in found] == many.keys
    assert len(set(many.keys)) == 20
    session = onnxruntime.InferenceSession(str(found[7].path), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "scores"
    verdicts = verify(Store(paths.home().cache))
    assert len(verdicts) == 21
    assert {verdict.fault for verdict in verdicts} == {""}


def test_the_plain_way_makes_the_same_model(tmp_path: Path, home: Path) -> None:
    write_bundle(tmp_path / "bundle", MB)
    model = tmp_path / "bundle/model/chain.onnx"
    onnx.checker.check_model(str(model))
    told = plain_refit.refit_cpu(str(model), str(tmp_path / "bundle/plan.onnx"), str(tmp_path / "plain"))
    assert set(told["seconds"]) == {"load weights", "set", "write"}
    x = None
    results = []
    with ensure_engine(tmp_path / "bundle", "chain") as engine:
        for path in (model, engine.path, tmp_path / "plain/model.onnx"):
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            x = np.ones(session.get_inputs()[0].shape, np.float32) if x is None else x
            results.append(session.run(None, {"x": x})[0])
    assert np.abs(results[0]).max() > 0
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("version", ["8.6.0", "10.16.1.11"])
def test_the_plain_way_sets_what_ours_would(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNormalization's folds included; on a stand-in for TensorRT."""
    model = tmp_path / "demo.onnx"
    model.write_bytes(demo_model(4))
    old = version.startswith("8")
    folds = [name for n in range(8) for name in ["tmp_weight" if n == 0 else f"tmp_weight_{n - 1}"]] if old else []
    names = [*(f"block{n}.conv.weight" for n in range(1, 5)), "head.weight", "head.bias", *folds]
    builder = BUILDER if old else (10, 16, 1, 11)
    with OnnxWeights(model) as weights:
        sources = resolve({n: Prototype(None, None) for n in names}, weights, builder=builder)
        wanted = {name: source.array().copy() for name, source in sources.items()}
    source = tmp_path / "demo.plan"
    source.write_bytes(plan({n: ("FLOAT", a.size) for n, a in wanted.items()}, version=builder, stripped=not old))
    module = FakeTensorRt(version=version)
    members = {"ERROR": "error", "__init__": lambda self, severity: None}
    module.Logger = type("Logger", (module.ILogger,), members)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    plain_refit.refit_tensorrt(str(model), str(source), str(tmp_path / "full.plan"))
    values = json.loads((tmp_path / "full.plan").read_bytes()[28:])["values"]
    assert values.keys() == wanted.keys()
    for name, array in wanted.items():
        got = np.frombuffer(base64.b64decode(values[name]), np.float32)
        np.testing.assert_allclose(got, array.ravel(), rtol=1e-6)


_PYNVML = """
import importlib.util, sys
from pathlib import Path
places = (Path(folder, "pynvml.py") for folder in sys.path)
spec = importlib.util.spec_from_file_location("pynvml", next(p for p in places if p.is_file() and p != Path(__file__)))
real = sys.modules["pynvml"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
from agent.gpu.fake_nvml import Card, FakeNvml
sys.modules["pynvml"] = FakeNvml(Card("GPU-1"))
"""
_LOGGER = """
module = sys.modules[__name__]
module.Logger = type("Logger", (module.ILogger,), {"ERROR": "error", "__init__": lambda self, severity: None})
"""


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For processes: a machine with one GPU, a driver and a TensorRT, and a sample engine. Gives the engines' folder."""
    modules, engines, models = tmp_path / "modules", tmp_path / "engines", tmp_path / "models"
    write_package(modules, "tensorrt", "8.6.0")
    with open(modules / "tensorrt/__init__.py", "a") as file:
        file.write(_LOGGER)
    (modules / "tensorrt-8.6.0.dist-info").mkdir()
    (modules / "pynvml.py").write_text(_PYNVML)
    engines.mkdir()
    models.mkdir()
    make_onnx(models / "tiny.onnx")
    weights = {"w1": ("FLOAT", SIZE * SIZE), "b1": ("FLOAT", SIZE), "w2": ("FLOAT", SIZE * SIZE)}
    (engines / "tiny.plan").write_bytes(plan(weights, version=BUILDER, stripped=False))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build_driver(tmp_path / "driver").parent))
    monkeypatch.setenv("PYTHONPATH", f"{modules}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("REFIT_AGENT_GPU_ENGINES", str(engines))
    monkeypatch.setenv("REFIT_AGENT_GPU_MODELS", str(models))
    return engines


def tensorrt_part(tmp_path: Path) -> Run:
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "--quick",
        "--only",
        "tensorrt",
        "--json",
        str(tmp_path / "run.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return decode((tmp_path / "run.json").read_bytes())


def test_a_gpu_machine_gets_rows_of_tensorrt(gpu_machine: Path, tmp_path: Path) -> None:
    """On stand-ins for GPU and TensorRT, so its numbers mean nothing."""
    run = tensorrt_part(tmp_path)
    assert run.facts["gpus"] == ["NVIDIA H100 80GB HBM3"]
    assert [(row.what, len(row.ways)) for row in run.rows] == [("making an engine, tiny", 3)]
    assert all(way.value > 0 for way in run.rows[0].ways)
    assert run.left == ()


def test_elsewhere_the_reason_is_given(gpu_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu_machine / "tiny.plan").unlink()
    assert [item.reason for item in tensorrt_part(tmp_path).left] == ["its plan or its model is not in the folders"]
    monkeypatch.delenv("REFIT_AGENT_GPU_ENGINES")
    assert [item.reason for item in tensorrt_part(tmp_path).left] == ["REFIT_AGENT_GPU_ENGINES names no folder"]


def test_memory_is_that_of_the_step_alone() -> None:
    """Not of what was prepared, and with what it held for a moment."""
    prepare = "before = bytearray(30_000_000)"
    assert growth(prepare, "None") < 3 * MB
    assert 49 * MB < growth(prepare, "bytearray(50_000_000)") < 56 * MB
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="ended early"):
        growth(prepare, "sys.exit()")
    assert threading.active_count() <= before, "nothing goes on looking at a process that is gone"
