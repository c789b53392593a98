from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes_tensorrt import build_driver
from refit_agent.errors import DeviceFailed, GpuMemoryShort
from refit_agent.gpu import driver as cuda
from refit_agent.gpu.context import needed_bytes, open_context
from refit_agent.manifest import Engine, FileRef, Plan
from refit_agent.refit.messages import Job, Located

_HASH = "0" * 64
_OVERHEAD = 512 << 20


def job(strip: Any = "plan", plan_size: int = 1000, weights: int = 300, external: tuple[int, ...] = ()) -> Job:
    def located(size: int) -> Located:
        return Located(path="/w", ref=FileRef(path="w", size=size, sha256=_HASH))

    engine = Engine(
        path="p", size=1, sha256=_HASH, runtime="tensorrt", built_with="10.0", plan_size=plan_size, strip=strip
    )
    return Job(
        staging="/s",
        plan="/p",
        engine=engine,
        weights=located(weights),
        external=tuple(map(located, external)),
        runtime="tensorrt",
        module="tensorrt",
        module_folder="",
        module_version="10.16.1.11",
        gpu="GPU-1",
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


def load_anew(monkeypatch: pytest.MonkeyPatch, load: Callable[[str], ctypes.CDLL]) -> None:
    """The driver is loaded by ``load``, now and not before."""
    library = functools.cache(cuda._library.__wrapped__)
    monkeypatch.setattr(cuda, "_library", library)
    monkeypatch.setattr(cuda, "_function", functools.cache(cuda._function.__wrapped__))
    monkeypatch.setattr(cuda.ctypes, "CDLL", load)


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A driver that answers; gives the names under which it was looked for."""
    asked: list[str] = []
    real = ctypes.CDLL

    def load(name: str) -> ctypes.CDLL:
        asked.append(name)
        return real(str(library))

    load_anew(monkeypatch, load)
    monkeypatch.delenv("FAKE_CUDA_FAIL", raising=False)
    monkeypatch.delenv("FAKE_CUDA_FREE", raising=False)
    return asked


def test_the_driver_is_asked_in_the_order_that_it_wants(driver: list[str]) -> None:
    """Initialised, device 0, its primary context, made current; then it tells its memory."""
    open_context(job()).wait()
    assert driver == ["libcuda.so.1"]
    assert cuda.memory() == (80 << 30, 80 << 30)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("cuInit", r"cuInit gave CUDA error 100 \(CUDA_ERROR_NO_DEVICE\)"),
        ("cuDeviceGet", r"cuDeviceGet gave CUDA error 101 \(unknown\)"),
        ("cuDevicePrimaryCtxRetain", r"cuDevicePrimaryCtxRetain gave CUDA error 2 \(CUDA_ERROR_OUT_OF_MEMORY\)"),
    ],
)
def test_a_driver_that_fails_is_told_with_the_call(
    driver: list[str], monkeypatch: pytest.MonkeyPatch, call: str, words: str
) -> None:
    """By the number and by the name that CUDA gives it, if it has one."""
    monkeypatch.setenv("FAKE_CUDA_FAIL", call)
    with pytest.raises(DeviceFailed, match=words):
        open_context(job()).wait()


def test_no_driver_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised by `wait`, not by the start; as often as it is asked."""

    def load(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    load_anew(monkeypatch, load)
    pending = open_context(job())
    for _ in range(2):
        with pytest.raises(DeviceFailed, match=r"there is no NVIDIA driver .*libcuda"):
            pending.wait()


def test_short_memory_is_told_to_the_byte(driver: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free, what is needed, how much is short, and on which GPU."""
    needed = 1000 + 300 + _OVERHEAD
    monkeypatch.setenv("FAKE_CUDA_FREE", str(needed - 7))
    with pytest.raises(GpuMemoryShort, match=r"GPU GPU-1 has .* 7 B short") as info:
        open_context(job()).wait()
    assert info.value.facts == {"gpu": "GPU-1", "free_bytes": needed - 7, "needed_bytes": needed, "short_bytes": 7}
    monkeypatch.setenv("FAKE_CUDA_FREE", str(needed))
    open_context(job()).wait()


@pytest.mark.parametrize(("strip", "needed"), [("plan", 500 + 70), ("zeros", 1000)])
def test_of_several_plans_the_largest_counts(strip: str, needed: int) -> None:
    """They are made one after the other, each from its own files."""
    files = {"a": 7, "b": 30, "c": 40}
    located = tuple(Located(path=p, ref=FileRef(path=p, size=s, sha256=_HASH)) for p, s in files.items())
    first = job(strip, plan_size=100 if strip == "plan" else 1000)
    rank = Plan(path="r", size=1, sha256=_HASH, plan_size=500, safetensors=("b", "c"))
    whole = Plan(path="r", size=1, sha256=_HASH, plan_size=300)
    engine = msgspec.structs.replace(first.engine, safetensors=("a",), ranks=(rank, whole))
    spread = msgspec.structs.replace(first, engine=engine, weights=None, safetensors=located, ranks=("/r", "/r"))
    assert needed_bytes(spread) == needed + _OVERHEAD


@pytest.mark.parametrize(("strip", "needed"), [("plan", 1000 + 300 + 20 + 3), ("zeros", 1000), ("none", 1000)])
def test_a_stripped_plan_grows_by_its_weights(strip: str, needed: int) -> None:
    """One with zeros in their place has its size already."""
    assert needed_bytes(job(strip, external=(20, 3))) == needed + _OVERHEAD


def test_the_start_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context takes a third of a second, in which the caller imports and unpacks."""
    answered = threading.Event()
    monkeypatch.setattr(cuda, "enter_context", lambda: answered.wait(30))
    monkeypatch.setattr(cuda, "memory", lambda: (80 << 30, 80 << 30))
    pending = open_context(job())
    waited: list[bool] = []
    waiter = threading.Thread(target=lambda: (pending.wait(), waited.append(True)))
    waiter.start()
    waiter.join(0.05)
    assert waited == []
    answered.set()
    waiter.join(30)
    assert waited == [True]


def test_whatever_goes_wrong_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that stayed in the thread would let the Runtime be made, and crash."""

    def fail() -> int:
        raise MemoryError("no memory for a thread's stack")

    monkeypatch.setattr(cuda, "enter_context", fail)
    with pytest.raises(MemoryError, match="stack"):
        open_context(job()).wait()
