"""Real engines on a real GPU: refitted from ONNX, checked, cached, and loaded by another process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401  the CPU target of these bundles needs it
import pytest

from gpu import sample_bundles as samples
from refit_agent import Engine, OnnxWeights, ensure_engine
from refit_agent.errors import GoldenMismatch, OwnWeightsInvalid, PlanInvalid, WeightsUncovered, WorkerCrashed
from refit_agent.manifest import Engine as EngineEntry

pytest.importorskip("tensorrt", reason="the sample engines need TensorRT 8.6.0, exactly")


def _run_elsewhere(engine: Engine, name: str, folder: Path) -> np.ndarray:
    """What the engine computes in a process of its own, as a host app would load it."""
    np.save(folder / "in.npy", samples.sample_input(name))
    loader = Path(__file__).with_name("load_plan.py")
    command = [sys.executable, loader, engine.path, samples.INPUTS[name], folder / "in.npy", folder / "out.npy"]
    subprocess.run(command, check=True)
    result: np.ndarray = np.load(folder / "out.npy")
    return result


@pytest.mark.parametrize("name", ["tiny", "resnet50", "bert_fp16", "bert_large_fp16"])
def test_a_sample_engine_is_refitted_and_right(name: str, tmp_path: Path) -> None:
    """The engine's outputs match ONNX Runtime's, in a fresh process too, and the second call is a hit."""
    samples.link_model(tmp_path / "b", name)
    bundle = samples.write_bundle(tmp_path / "b", name, (samples.gpu_engine(tmp_path / "b", name),))
    start = time.perf_counter()
    with ensure_engine(bundle, name) as engine:
        made_s = time.perf_counter() - start
        assert (engine.hit, engine.runtime, engine.target) == (False, "tensorrt", "cuda:0")
        got = _run_elsewhere(engine, name, tmp_path)
    expected = next(iter(samples.reference(name).values()))
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    with ensure_engine(bundle, name) as again:
        assert again.hit
    print(f"\n{name}: made in {made_s:.2f} s, relative L2 error {error:.2e}")
    assert error <= samples.TOLERANCE[name]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_plans_are_taken_as_they_are_shipped(compression: str, tmp_path: Path) -> None:
    """A plan may be shipped as it is or compressed."""
    samples.link_model(tmp_path, "tiny")
    samples.write_bundle(tmp_path, "tiny", (samples.gpu_engine(tmp_path, "tiny", compression),))
    with ensure_engine(tmp_path, "tiny") as engine:
        assert not engine.hit


def _renamed_initializer(source: Path, target: Path, old: bytes, new: bytes) -> None:
    data = source.read_bytes()
    assert len(old) == len(new) and old in data
    target.unlink()  # it may be a hard link to the sample itself
    target.write_bytes(data.replace(old, new))


def test_a_weight_without_a_source_is_an_error(tmp_path: Path) -> None:
    """TensorRT would report success with one weight never set; we name it and publish nothing."""
    samples.link_model(tmp_path, "tiny")
    _renamed_initializer(Path(samples.MODELS) / "tiny.onnx", tmp_path / "tiny.onnx", b"fc.b", b"fc.c")
    samples.write_bundle(tmp_path, "tiny", (samples.gpu_engine(tmp_path, "tiny"),), golden=False)
    with pytest.raises(WeightsUncovered, match=r"fc\.b"):
        ensure_engine(tmp_path, "tiny")
    assert os.listdir(tmp_path / "home" / "cache" / "engines") == []


def test_a_weight_left_unset_is_refused_before_the_refit(tmp_path: Path) -> None:
    """The opened plan itself does not refit unless every weight was set."""
    script = Path(__file__).with_name("leave_out_weight.py")
    run = subprocess.run(
        [sys.executable, script, f"{samples.ENGINES}/tiny.plan", f"{samples.MODELS}/tiny.onnx"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "weights were not set: c2.w" in run.stdout, run.stdout + run.stderr


def test_other_weights_of_the_same_shapes(tmp_path: Path) -> None:
    """A plan built with REFIT takes better weights of the same graph, and computes what their model computes."""
    samples.link_model(tmp_path / "b", "tiny")
    bundle = samples.write_bundle(tmp_path / "b", "tiny", (samples.gpu_engine(tmp_path / "b", "tiny"),))
    data = bytearray((bundle / "tiny.onnx").read_bytes())
    with OnnxWeights(bundle / "tiny.onnx") as weights:
        fc = weights["fc.w"]
    values = np.frombuffer(data, np.float32, fc.count, fc.offset).copy()
    data[fc.offset : fc.offset + fc.nbytes] = (values * -2).tobytes()
    (tmp_path / "better.onnx").write_bytes(data)
    with ensure_engine(bundle, "tiny") as old, ensure_engine(bundle, "tiny", weights=tmp_path / "better.onnx") as new:
        assert old.key != new.key
        assert (new.hit, new.check) == (False, "smoke")
        got = _run_elsewhere(new, "tiny", tmp_path)
    expected = next(iter(samples.reference("tiny", tmp_path / "better.onnx").values()))
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) <= samples.TOLERANCE["tiny"]


def test_wrong_results_are_not_published(tmp_path: Path) -> None:
    """Golden outputs that the engine does not reproduce fail it, and the CPU target takes over."""
    samples.link_model(tmp_path, "tiny")
    engines = (samples.gpu_engine(tmp_path, "tiny", tolerance=1e-6), samples.cpu_engine(tmp_path, "tiny"))
    samples.write_bundle(tmp_path, "tiny", engines)
    with ensure_engine(tmp_path, "tiny") as engine:
        assert engine.target == "cpu"
        assert [a.code for a in engine.explanation.attempts] == [GoldenMismatch.code]


def test_engines_for_another_gpu_fall_to_the_cpu(tmp_path: Path) -> None:
    """With engines for compute capability 8.6 only, the CPU target is used and the reason is given."""
    samples.link_model(tmp_path, "tiny")
    other = samples.gpu_engine(tmp_path, "tiny", compute_capabilities=("8.6",), gpu=None)
    samples.write_bundle(tmp_path, "tiny", (other, samples.cpu_engine(tmp_path, "tiny")))
    with ensure_engine(tmp_path, "tiny") as engine:
        assert engine.target == "cpu"
        assert any("8.6" in r.reason and "9.0" in r.reason for r in engine.explanation.refusals)


def _half_plan(root: Path) -> EngineEntry:
    samples.link_model(root, "tiny")
    whole = Path(samples.ENGINES, "tiny.plan").read_bytes()
    (root / "tiny.plan").write_bytes(whole[: len(whole) // 2])
    return samples.gpu_engine(root, "tiny", "none", plan_size=len(whole) // 2)


def test_a_plan_cut_in_half_is_refused_by_its_header(tmp_path: Path) -> None:
    """A truncated plan, honestly hashed, is our error and no crash of TensorRT's."""
    samples.write_bundle(tmp_path, "tiny", (_half_plan(tmp_path),), golden=False)
    with pytest.raises(PlanInvalid, match="cut short"):
        ensure_engine(tmp_path, "tiny")


def test_a_worker_killed_in_the_middle(tmp_path: Path, own_home: Path) -> None:
    """kill -9 of the worker while it opens the plan: an error, nothing published, the next call succeeds."""
    name = "resnet50"
    samples.link_model(tmp_path / "b", name)
    bundle = samples.write_bundle(tmp_path / "b", name, (samples.gpu_engine(tmp_path / "b", name),), golden=False)
    killed = threading.Event()

    def kill_worker(progress: object) -> None:
        if getattr(progress, "phase", "") == "open" and not killed.is_set():
            killed.set()
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if parent == os.getpid() and "refit_agent.worker" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        ensure_engine(bundle, name, progress=kill_worker)
    assert killed.is_set()
    assert os.listdir(own_home / "cache" / "engines") == []
    assert os.listdir(own_home / "cache" / "tmp") == []
    with ensure_engine(bundle, name, retry_failed=True) as engine:
        assert not engine.hit


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    """An ONNX file of another model is the caller's mistake, and not the plan's."""
    samples.link_model(tmp_path, "tiny")
    engine = samples.gpu_engine(tmp_path, "tiny")
    shutil.copyfile(f"{samples.MODELS}/resnet50.onnx", tmp_path / "other.onnx")
    samples.write_bundle(tmp_path, "tiny", (engine,), golden=False)
    with pytest.raises(OwnWeightsInvalid):
        ensure_engine(tmp_path, "tiny", weights=tmp_path / "other.onnx")
