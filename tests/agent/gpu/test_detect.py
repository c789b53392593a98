"""`detect` from end to end: asked once, remembered, asked again when something changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from agent.gpu.fake_nvml import Card, FakeNvml
from refit_agent.gpu import detect as detect_module
from refit_agent.gpu.detect import detect
from refit_agent.gpu.remembered import FILE
from refit_agent.paths import Home

Driver = Callable[..., FakeNvml]


def forget_memo() -> None:
    detect_module._memo = None


def test_asked_once_in_a_process_and_once_on_disk(driver: Driver, home: Home) -> None:
    fake = driver(Card("GPU-a"))
    first = detect(home=home)
    assert (first.driver, first.cuda, first.no_gpu_reason) == ("580.159.04", "13.0", "")
    assert first.gpus[0].memory_free == 40 << 30
    again = detect(home=home)
    assert again.gpus[0].memory_free is None, "stale as soon as it is remembered"
    forget_memo()
    assert detect(home=home) == again
    assert fake.asked == 1
    assert detect(home=home, fresh=True) == first
    assert fake.asked == 2


def test_hidden_gpus(driver: Driver, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = driver(Card("GPU-a"), Card("GPU-b", pci="00000000:02:00.0"))
    assert [g.index for g in detect(home=home).gpus] == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [(g.index, g.uuid) for g in detect(home=home).gpus] == [(0, "GPU-b")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = detect(home=home)
    assert hidden.gpus == () and "CUDA_VISIBLE_DEVICES='' hides every GPU" in hidden.no_gpu_reason
    asked = fake.asked
    # each of the three stays remembered beside the others
    for listed in ("1", ""):
        forget_memo()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        detect(home=home)
    assert fake.asked == asked == 3


def test_a_new_runtime_is_noticed(driver: Driver, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(Card("GPU-a"))
    apart = tmp_path / "apart"
    apart.mkdir()
    monkeypatch.setenv("REFIT_AGENT_RUNTIMES", str(apart))
    before = detect(home=home)
    (apart / "tensorrt_lean_cu12_bindings-10.16.1.11.dist-info").mkdir()
    (apart / "tensorrt_lean").mkdir()
    (apart / "tensorrt_lean" / "__init__.py").write_text("")
    after = detect(home=home)
    new = [r for r in after.runtimes if r not in before.runtimes]
    assert [(r.version, r.cuda_major, r.folder) for r in new] == [("10.16.1.11", 12, str(apart))]


def test_what_may_pass_is_not_remembered(driver: Driver, home: Home) -> None:
    fake = driver(Card("GPU-a", error=pynvml.NVML_ERROR_GPU_IS_LOST), Card("GPU-b", pci="2"))
    assert [g.uuid for g in detect(home=home).gpus] == ["GPU-b"]
    fake.cards = (Card("GPU-a"), Card("GPU-b", pci="2"))
    assert [g.uuid for g in detect(home=home).gpus] == ["GPU-a", "GPU-b"]


def test_a_fault_seen_afresh_takes_the_old_answer_away(driver: Driver, home: Home) -> None:
    fake = driver(Card("GPU-a"))
    detect(home=home)
    fake.init_error = pynvml.NVML_ERROR_UNKNOWN
    assert detect(home=home, fresh=True).gpus == ()
    assert "did not answer" in detect(home=home).no_gpu_reason


def test_no_driver_is_remembered(driver: Driver, home: Home) -> None:
    fake = driver(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    for _ in range(2):
        assert detect(home=home).no_gpu_reason.startswith("no NVIDIA driver: ")
        forget_memo()
    assert fake.asked == 1


def test_an_unwritable_state_folder_costs_time_only(driver: Driver, tmp_path: Path) -> None:
    driver(Card("GPU-a"))
    (tmp_path / "file").write_text("")
    nowhere = Home("", str(tmp_path / "file" / "state"))
    assert detect(home=nowhere).gpus[0].uuid == "GPU-a"
    assert detect(home=nowhere).gpus[0].uuid == "GPU-a"


def test_a_damaged_file_is_asked_anew(driver: Driver, home: Home) -> None:
    driver(Card("GPU-a"))
    detect(home=home)
    Path(home.state, FILE).write_text("{")
    forget_memo()
    assert detect(home=home).gpus[0].uuid == "GPU-a"


HEAVY = [
    *("numpy", "structlog", "rich", "pynvml", "importlib.metadata", "json", "pathlib", "subprocess", "ctypes"),
    *("platformdirs", "filelock", "click", "tensorrt_lean", "tensorrt", "onnxruntime", "cuda", "asyncio", "logging"),
    *("tempfile", "threading", "refit_agent.gpu.nvml", "refit_agent.gpu.visible", "refit_agent.gpu.installed"),
]


def _in_a_process(home: Home, code: str) -> str:
    env = {**os.environ, "REFIT_AGENT_HOME": os.path.dirname(home.state)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_remembered_answer_imports_nothing_heavy(home: Home) -> None:
    code = f"""
import sys
import msgspec
before = set(sys.modules)
from refit_agent.gpu.detect import detect
machine = detect()
new = set(sys.modules) - before - set(sys.builtin_module_names) - set(["math"])  # cost nothing; math is built in or not
print(sorted(new))
# what a .pth file of the tester's environment imported at start is not ours
print([m for m in {HEAVY!r} if m in sys.modules and m not in before])
print("asked" if "refit_agent.gpu.nvml" in sys.modules else "remembered")
"""
    assert _in_a_process(home, code).endswith("asked")
    new, heavy, how = _in_a_process(home, code).splitlines()
    assert how == "remembered"
    assert heavy == "[]"
    assert all(name.startswith("refit_agent") for name in eval(new)), new


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia/version"), reason="this machine has a driver")
@pytest.mark.skipif(sys.platform != "linux", reason="names the library of Linux")
def test_this_machine_without_a_driver(home: Home) -> None:
    code = """
import sys
from refit_agent.gpu.detect import detect
machine = detect()
print(machine.no_gpu_reason, "|", machine.gpus, "|", machine.driver)
print([m for m in sys.modules if m.startswith(("tensorrt", "onnxruntime", "cuda"))])
"""
    told, loaded = _in_a_process(home, code).splitlines()
    assert told == "no NVIDIA driver: libnvidia-ml.so.1 was not found | () | "
    assert loaded == "[]"


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidia0"), reason="no NVIDIA GPU here")
def test_the_real_driver_agrees_with_nvidia_smi(home: Home) -> None:
    query = ["nvidia-smi", "--query-gpu=uuid,name,compute_cap,driver_version", "--format=csv,noheader"]
    rows = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    machine = detect(home=home)
    told = [", ".join([g.uuid, g.name, g.compute_capability, machine.driver]) for g in machine.gpus if not g.mig]
    assert all(row in rows for row in told) and told
    assert all(0 < (g.memory_free or 0) <= g.memory_total for g in machine.gpus)
