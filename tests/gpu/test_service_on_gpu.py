"""The service on a machine with a GPU: warm start, hits, and nothing of CUDA in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpu import sample_bundles as samples
from refit_agent import ServiceClient, ensure_engine

pytest.importorskip("tensorrt", reason="the sample engines need TensorRT 8.6.0, exactly")

_DRIVER = ("libcuda", "libnvinfer", "libcudart", "libnvidia", "libnvonnxparser")


class Served:
    """A service in a process of its own, with its client."""

    def __init__(self, home: Path) -> None:
        self.process = psutil.Popen([sys.executable, "-m", "refit_agent", "serve"], stderr=subprocess.DEVNULL)
        self.client = ServiceClient()
        ends = time.monotonic() + 60
        while not (home / "run" / "agent.sock").exists():
            assert self.process.poll() is None and time.monotonic() < ends
            time.sleep(0.05)

    def wait_for_an_engine(self) -> None:
        """Return when one is in the cache: right after the registration nothing has begun yet, which looks idle."""
        ends = time.monotonic() + 120
        while not self.client.status().cache.entries:
            assert time.monotonic() < ends, self.client.status()
            time.sleep(0.1)

    def wait_idle(self) -> None:
        """Return when nothing is being made any more."""
        ends = time.monotonic() + 120
        while True:
            now = self.client.status()
            if not now.jobs and now.warm.state == "idle":
                return
            assert time.monotonic() < ends, now
            time.sleep(0.1)

    @property
    def resident_mb(self) -> float:
        return float(self.process.memory_info().rss / 2**20)

    @property
    def driver_files(self) -> list[str]:
        """Files of CUDA, TensorRT or the driver that are mapped into the service."""
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as maps:
            return [line.split()[-1] for line in maps if any(part in line for part in _DRIVER)]

    @property
    def devices(self) -> list[str]:
        """Device files of the driver that the service holds open."""
        folder = f"/proc/{self.process.pid}/fd"
        return [t for t in (os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)) if t.startswith("/dev/nvidia")]


@pytest.fixture
def served(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("REFIT_AGENT_WARM_BUSY_PERCENT", "101")
    running = Served(own_home)
    yield running
    running.client.close()
    running.process.terminate()
    assert running.process.wait(20) == 0


def test_a_registered_bundle_is_made_in_the_background_and_found(served: Served, tmp_path: Path) -> None:
    """Warm start on the GPU; then every app's call is a hit, and the service itself has never touched CUDA."""
    samples.link_model(tmp_path / "b", "resnet50")
    bundle = samples.write_bundle(tmp_path / "b", "resnet50", (samples.gpu_engine(tmp_path / "b", "resnet50"),))
    print(f"\nat rest {served.resident_mb:.1f} MB resident")
    assert served.resident_mb < 45
    served.client.add_bundle(bundle)
    served.wait_for_an_engine()
    served.wait_idle()
    assert served.client.status().warm.failures == ()
    with ensure_engine(bundle, "resnet50") as engine:
        assert (engine.hit, engine.runtime, engine.target) == (True, "tensorrt", "cuda:0")
    print(f"after a warm start {served.resident_mb:.1f} MB resident")
    assert served.resident_mb < 45
    assert served.driver_files == [] and served.devices == []


def test_what_an_app_waits_for_is_made_by_the_service(served: Served, tmp_path: Path) -> None:
    """A miss goes to the service, with progress, and its engine is right there for the caller."""
    samples.link_model(tmp_path / "b", "tiny")
    bundle = samples.write_bundle(tmp_path / "b", "tiny", (samples.gpu_engine(tmp_path / "b", "tiny"),))
    steps: list[float] = []
    with ensure_engine(bundle, "tiny", progress=lambda step: steps.append(step.fraction), service=True) as engine:
        assert (engine.hit, engine.target, engine.check) == (False, "cuda:0", "golden")
    assert steps == sorted(steps) and steps[-1] == 1
    assert served.driver_files == [] and served.devices == []
    names = {gpu.name for gpu in served.client.gpus().gpus}
    assert names, "the service sees the GPU"
