"""The service on a machine with a GPU: warm start, hits, and nothing of CUDA in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu import sample_bundles as samples
from gpu.served import Served
from refit_agent import ensure_engine

pytest.importorskip("tensorrt", reason="the sample engines need TensorRT 8.6.0, exactly")


def test_a_registered_bundle_is_made_in_the_background_and_found(served: Served, tmp_path: Path) -> None:
    """Warm start on the GPU; then every app's call is a hit, and the service itself has never touched CUDA."""
    samples.link_model(tmp_path / "b", "resnet50")
    bundle = samples.write_bundle(tmp_path / "b", "resnet50", (samples.gpu_engine(tmp_path / "b", "resnet50"),))
    print(f"\nat rest {served.resident_mb:.1f} MB resident")
    assert served.resident_mb < 45
    served.client.add_bundle(bundle)
    served.wait_for_engines()
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
