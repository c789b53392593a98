"""GPU tests: skipped, with the reason, where no GPU of compute capability 9.0 answers or the kit is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu import sample_bundles
from gpu.served import Served
from refit_agent.gpu.detect import detect


def _missing() -> str:
    machine = detect(fresh=True)
    if not machine.gpus:
        return f"no GPU: {machine.no_gpu_reason}"
    if machine.gpus[0].compute_capability != "9.0":
        return f"the sample engines are for compute capability 9.0, this GPU has {machine.gpus[0].compute_capability}"
    if not (Path(sample_bundles.ENGINES) / "tiny.plan").exists():
        return "REFIT_AGENT_GPU_ENGINES does not name the folder of the sample engines"
    if not (Path(sample_bundles.MODELS) / "tiny.onnx").exists():
        return "REFIT_AGENT_GPU_MODELS does not name the folder of the sample models"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    reason = _missing() if ours else ""
    for item in ours:
        item.add_marker("gpu")
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache and a state of its own."""
    monkeypatch.setenv("REFIT_AGENT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def served(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("REFIT_AGENT_WARM_BUSY_PERCENT", "101")
    running = Served(own_home)
    yield running
    running.client.close()
    running.process.terminate()
    assert running.process.wait(20) == 0
