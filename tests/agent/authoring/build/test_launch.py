"""The build's process, for real: whatever TensorRT does in it ends there."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fakes_tensorrt_builder import told, write_builder
from refit_agent.authoring.build.launch import run_builder
from refit_agent.authoring.build.messages import BuildJob, Step
from refit_agent.authoring.build.options import BuilderVersion, BuildOptions, settle
from refit_agent.authoring.build.shapes import make_profile
from refit_agent.authoring.errors import BuilderCrashed, BuilderMissing, BuilderTimeout, BuildFailed
from refit_agent.errors import Cancelled
from refit_agent.refit import worker_process

from .models import make_model


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """Makes a job for a builder with these faults."""
    model = make_model(tmp_path / "net.onnx")

    def make(**faults: Any) -> BuildJob:
        folder = write_builder(tmp_path / "runtime", **faults)
        return BuildJob(
            kind="tensorrt",
            module="tensorrt",
            module_folder=str(folder),
            module_version="10.16.1.11",
            gpu="GPU-0",
            onnx=str(model),
            model=str(model),
            plan=str(tmp_path / "net.plan"),
            options=settle(BuildOptions(), BuilderVersion("tensorrt", "10.16.1.11")),
            profile=make_profile(None, {"opt": "x:1x3x8x8"}),
        )

    return make


def test_a_build_in_a_process_of_its_own(job: Any, tmp_path: Path) -> None:
    """The plan lies where it was wanted, as large and of the hash that the worker says, and every step was told."""
    steps: list[Step] = []
    built = run_builder(job(), str(tmp_path / "log"), 60, steps.append)
    plan = (tmp_path / "net.plan").read_bytes()
    assert built.size == len(plan) and built.sha256 == hashlib.sha256(plan).hexdigest()
    assert [step.phase for step in steps] == ["start", "parse", "build", "write", "list"]
    assert told(tmp_path / "net.plan")["stripped"] is True


def test_it_sees_the_chosen_gpu_alone(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its UUID, so that no other order of GPUs can mislead it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert worker_process.environment(job().gpu)["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    assert worker_process.environment(job().gpu)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_crash(job: Any, tmp_path: Path) -> None:
    """The signal, the phase and the last words stand in the error."""
    with pytest.raises(BuilderCrashed, match=r"SIGABRT during build(?s:.*)last words"):
        run_builder(job(crash=True), str(tmp_path / "log"), 60)


def test_an_error_comes_back_as_itself(job: Any, tmp_path: Path) -> None:
    """With its class and its facts."""
    with pytest.raises(BuildFailed, match=r"tensorrt 10\.16\.1\.11 built no engine from .*net\.onnx: out of memory\."):
        run_builder(job(no_plan=True), str(tmp_path / "log"), 60)


def test_a_package_that_cannot_be_imported(job: Any, tmp_path: Path) -> None:
    """Found on the disk, and no good: the reason stands in the error."""
    asked = job()
    (tmp_path / "runtime" / "tensorrt" / "__init__.py").write_text("import no_such_library")
    with pytest.raises(BuilderMissing, match="no_such_library"):
        run_builder(asked, str(tmp_path / "log"), 60)


def test_a_builder_that_does_not_come_to_an_end(job: Any, tmp_path: Path) -> None:
    """It is stopped at the deadline, and gone when the error is there."""
    with pytest.raises(BuilderTimeout, match="within 3 s"):
        run_builder(job(hang=True), str(tmp_path / "log"), 3)
    assert _children() == []


def test_cancelling(job: Any, tmp_path: Path) -> None:
    """The caller says so, and the process is gone."""
    building = threading.Event()

    def on_step(step: Step) -> None:
        if step.phase == "build":
            building.set()

    with pytest.raises(Cancelled):
        run_builder(job(hang=True), str(tmp_path / "log"), 60, on_step, building.is_set)
    assert building.is_set() and _children() == []


def test_endless_output(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not fill the disk."""
    monkeypatch.setattr("refit_agent.refit.worker_process.MAX_LOG_BYTES", 1 << 20)
    with pytest.raises(BuilderCrashed, match="endless output"):
        run_builder(job(shout=True), str(tmp_path / "log"), 60)
    assert _children() == []


def test_a_log_that_is_deleted_meanwhile(job: Any, tmp_path: Path) -> None:
    """Whoever deletes the folder ends the build."""

    def on_step(step: Step) -> None:
        (tmp_path / "log").unlink(missing_ok=True)

    with pytest.raises(FileNotFoundError, match="log"):
        run_builder(job(hang=True), str(tmp_path / "log"), 60, on_step)
    assert _children() == []


def test_an_interrupt_takes_the_process_along(job: Any, tmp_path: Path) -> None:
    """Ctrl+C strikes anywhere."""

    def on_step(step: Step) -> None:
        if step.phase == "build":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_builder(job(hang=True), str(tmp_path / "log"), 60, on_step)
    assert _children() == []


def _children() -> list[str]:
    """Workers of this process that are still there."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and "builder_worker" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:
            continue
    return found
