"""Several GPUs in one machine: the one that was asked for does the work, and one engine is enough for all of a kind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu import sample_bundles as samples
from gpu.served import Served
from refit_agent import ensure_engine
from refit_agent.gpu.detect import detect
from refit_agent.machine import Gpu

pynvml = pytest.importorskip("pynvml")
pytest.importorskip("tensorrt", reason="the sample engines need TensorRT 8.6.0, exactly")

#: A process that has opened a GPU takes several hundred megabytes of it; one that has only looked takes next to nothing.
_OPENED_BYTES, _LOOKED_BYTES = 200e6, 50e6

_ELSEWHERE = """
import sys
from refit_agent import ensure_engine
with ensure_engine(sys.argv[1], "tiny", target=sys.argv[2]) as engine:
    assert not engine.hit
    print(engine.target)
"""


class GpuMemory:
    """The most that the memory in use of each GPU rose while the block ran, in bytes, by UUID: what NVML says of the
    GPU itself, whatever names and numbers processes have for it."""

    def __init__(self) -> None:
        self.rise: dict[str, int] = {}
        self._stop = threading.Event()

    def __enter__(self) -> GpuMemory:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        self._handles = {pynvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
        self._before = self._used()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()
        pynvml.nvmlShutdown()

    def _used(self) -> dict[str, int]:
        return {uuid: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for uuid, handle in self._handles.items()}

    def _sample(self) -> None:
        while not self._stop.is_set():
            for uuid, used in self._used().items():
                self.rise[uuid] = max(self.rise.get(uuid, 0), used - self._before[uuid])
            time.sleep(0.01)

    def require_only(self, wanted: str) -> None:
        """That GPU was opened, and no other."""
        assert self.rise[wanted] > _OPENED_BYTES, self.rise
        assert all(rise < _LOOKED_BYTES for uuid, rise in self.rise.items() if uuid != wanted), self.rise


@pytest.fixture
def gpus() -> Iterator[tuple[Gpu, ...]]:
    found = detect(fresh=True).gpus
    if len(found) < 2:
        pytest.skip("this machine has one GPU")
    yield found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    samples.link_model(tmp_path / "b", "tiny")
    return samples.write_bundle(tmp_path / "b", "tiny", (samples.gpu_engine(tmp_path / "b", "tiny"),))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", ["number", "uuid"])
def test_the_gpu_that_was_asked_for_does_the_work(gpus: tuple[Gpu, ...], bundle: Path, number: int, how: str) -> None:
    """And no other is opened."""
    target = f"cuda:{number}" if how == "number" else gpus[number].uuid
    with GpuMemory() as memory, ensure_engine(bundle, "tiny", target=target) as engine:
        assert (engine.hit, engine.target, engine.check) == (False, f"cuda:{number}", "golden")
    memory.require_only(gpus[number].uuid)


def test_an_engine_for_one_gpu_is_there_for_all_of_its_kind(gpus: tuple[Gpu, ...], bundle: Path) -> None:
    """Two cards of one name take one engine, and one refit."""
    if gpus[0].name != gpus[1].name:
        pytest.skip("the GPUs are of different kinds")
    with (
        ensure_engine(bundle, "tiny", target="cuda:1") as made,
        ensure_engine(bundle, "tiny", target="cuda:0") as found,
    ):
        assert (made.hit, found.hit, found.target) == (False, True, "cuda:0")
        assert made.path == found.path


@pytest.mark.parametrize("visible", ["1", "1,0", "uuid"])
def test_what_is_hidden_is_not_opened(gpus: tuple[Gpu, ...], bundle: Path, visible: str) -> None:
    """With CUDA_VISIBLE_DEVICES the first visible one is cuda:0, for us as for CUDA."""
    text = gpus[1].uuid if visible == "uuid" else visible
    env = os.environ | {"CUDA_VISIBLE_DEVICES": text, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with GpuMemory() as memory:
        ran = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, bundle, "cuda:0"], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
    assert ran.stdout == "cuda:0\n"
    memory.require_only(gpus[1].uuid)


def test_warm_start_makes_one_engine_for_a_kind(gpus: tuple[Gpu, ...], bundle: Path, served: Served) -> None:
    """Not one for each card."""
    kinds = len({gpu.name for gpu in gpus})
    served.client.add_bundle(bundle)
    served.wait_for_engines()
    served.wait_idle()
    assert served.client.status().cache.entries == kinds
    assert all(ensure_engine(bundle, "tiny", target=f"cuda:{n}").hit for n in range(len(gpus)))
