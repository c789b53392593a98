"""The process that asks the driver: nothing of the caller's acts on it, and its end is not taken for an answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refit_service import apart

#: What NVML is for `idle.gpu_at_work`, of one GPU.
_NVML = """
class NVMLError(Exception): pass
def nvmlInit(): {init}
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(number): return number
class _Rates: gpu = {used}
def nvmlDeviceGetUtilizationRates(handle): return _Rates
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the child's NVML one that does as it is told; its first line is what happens at its start."""

    def install(init: str = "pass", used: int = 0) -> None:
        (tmp_path / "nvml").mkdir()
        (tmp_path / "nvml/pynvml.py").write_text(_NVML.format(init=init, used=used))
        monkeypatch.syspath_prepend(str(tmp_path / "nvml"))

    return install


@pytest.mark.parametrize(("used", "expected"), [(0, ""), (19, ""), (20, "GPU 0 is busy (20 %)")])
def test_a_gpu_s_load_is_asked(nvml: Callable[..., None], used: int, expected: str) -> None:
    """From the percentage of the setting on it is busy."""
    nvml(used=used)
    assert apart.gpu_load() == expected


def test_a_machine_without_a_driver_is_not_busy(nvml: Callable[..., None]) -> None:
    """Background work would else stand still for ever there."""
    nvml(init="raise NVMLError")
    assert apart.gpu_load() == ""


@pytest.mark.parametrize("init", ["import os; os.abort()", "raise MemoryError", "import os; os._exit(3)"])
def test_a_driver_that_takes_the_process_down_is_a_reason_to_wait(nvml: Callable[..., None], init: str) -> None:
    """It may be that the GPU is at work, and it is not a good time in any case."""
    nvml(init=init)
    assert apart.gpu_load() == "the GPU's load cannot be asked"


def test_no_process_is_a_reason_to_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a Python that is not there nor a service frozen into one file, which would start itself again."""
    monkeypatch.setenv("REFIT_AGENT_PYTHON", str(tmp_path / "python"))
    assert apart.gpu_load() == "the GPU's load cannot be asked"
    monkeypatch.delenv("REFIT_AGENT_PYTHON")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert apart.gpu_load() == "the GPU's load cannot be asked"


def test_it_is_as_shut_off_as_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An isolated service, as that of the standalone folder, is not reached by its caller's PYTHONPATH through it."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(f"open({str(tmp_path / 'acted')!r}, 'w')\n")
    monkeypatch.setenv("PYTHONPATH", str(planted))
    code = "import sys; sys.path[:] = sys.argv[1:]; from refit_service.apart import gpu_load; print(repr(gpu_load()))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *filter(None, sys.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "''\n" and not (tmp_path / "acted").exists()
