from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.gpu.fake_nvml import Card, FakeNvml
from refit_agent.gpu import detect as detect_module
from refit_agent.paths import Home


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing remembered in the process, and no list of devices from the tester's shell."""
    monkeypatch.setattr(detect_module, "_memo", None)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "REFIT_AGENT_RUNTIMES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "cache"), str(tmp_path / "state"))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    """Puts a fake driver with these cards in the place of pynvml."""

    def install(*cards: Card, **faults: int | bool) -> FakeNvml:
        fake = FakeNvml(*cards, **faults)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
        return fake

    return install
