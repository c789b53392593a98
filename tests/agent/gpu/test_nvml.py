"""What `nvml.ask` makes of a driver's answers and faults."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pynvml
import pytest

from agent.gpu.fake_nvml import Card, FakeNvml
from refit_agent.gpu.nvml import ask

Driver = Callable[..., FakeNvml]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_one_gpu(driver: Driver, as_bytes: bool) -> None:
    fake = driver(Card("GPU-a"), as_bytes=as_bytes)
    answer = ask()
    assert (answer.driver, answer.cuda, answer.reason, answer.lasting) == ("580.159.04", "13.0", "", True)
    (unit,) = answer.devices[0].units
    assert (unit.uuid, unit.name, unit.compute_capability) == ("GPU-a", "NVIDIA H100 80GB HBM3", "9.0")
    assert (unit.pci, unit.memory_total, unit.memory_free) == ("00000000:01:00.0", 80 << 30, 40 << 30)
    assert fake.sessions == 0


def test_gpus_come_in_pci_order(driver: Driver) -> None:
    driver(Card("GPU-b", pci="00000000:81:00.0"), Card("GPU-a", pci="00000000:17:00.0"))
    assert [d.uuid for d in ask().devices] == ["GPU-a", "GPU-b"]


def test_a_gpu_that_does_not_answer_does_not_lose_the_others(driver: Driver) -> None:
    fake = driver(Card("GPU-a", error=pynvml.NVML_ERROR_GPU_IS_LOST), Card("GPU-b"))
    answer = ask()
    assert [len(d.units) for d in answer.devices] == [0, 1]
    assert "GPU 0" in answer.devices[0].problem and "lost" in answer.devices[0].problem.lower()
    assert not answer.lasting
    assert fake.sessions == 0


def test_mig_slices_stand_for_their_gpu(driver: Driver) -> None:
    driver(Card("GPU-a", mig=True, slices=("MIG-1", None, "MIG-3")))
    units = ask().devices[0].units
    assert [u.uuid for u in units] == ["MIG-1", "MIG-3"]
    assert all(u.mig and u.parent_uuid == "GPU-a" and u.compute_capability == "9.0" for u in units)
    assert units[0].name == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert units[0].memory_total == 10 << 30


def test_mig_mode_without_slices_offers_nothing(driver: Driver) -> None:
    driver(Card("GPU-a", mig=True, slices=(None,)))
    answer = ask()
    assert answer.devices[0].units == () and "no slice" in answer.devices[0].problem
    assert not answer.lasting


def test_an_old_gpu_knows_nothing_of_mig(driver: Driver) -> None:
    driver(Card("GPU-a", cc=(7, 5)))
    assert ask().devices[0].units[0].compute_capability == "7.5"


@pytest.mark.parametrize(
    ("error", "words", "lasting"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver: libnvidia-ml.so.1 was not found", True),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded", True),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "differ in version", False),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia*", False),
        (pynvml.NVML_ERROR_UNKNOWN, "did not answer", False),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="names the library of Linux")
def test_no_driver(driver: Driver, error: int, words: str, lasting: bool) -> None:
    fake = driver(init_error=error)
    answer = ask()
    assert words in answer.reason
    assert (answer.devices, answer.lasting, fake.sessions) == ((), lasting, 0)


def test_a_driver_that_fails_after_init_is_still_closed(driver: Driver) -> None:
    fake = driver(count_error=pynvml.NVML_ERROR_UNKNOWN)
    answer = ask()
    assert "did not answer" in answer.reason and not answer.lasting
    assert fake.sessions == 0


def test_no_gpu(driver: Driver) -> None:
    driver()
    assert ask().reason == "the driver lists no GPU"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in ask().reason


def test_an_old_nvidia_ml_py_lacks_functions(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(Card("GPU-a"))
    for name in ("nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMigMode", "nvmlSystemGetCudaDriverVersion_v2"):
        monkeypatch.delattr(FakeNvml, name)
    answer = ask()
    assert answer.cuda == "" and len(answer.devices[0].units) == 1
