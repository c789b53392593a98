"""CUDA_VISIBLE_DEVICES as CUDA reads it."""

from __future__ import annotations

import pytest

from refit_agent.gpu.nvml import Device
from refit_agent.gpu.visible import visible
from refit_agent.machine import Gpu


def device(uuid: str, name: str = "NVIDIA A10", speed: int = 1, problem: str = "") -> Device:
    unit = Gpu(index=0, name=name, uuid=uuid, compute_capability="8.6")
    return Device(uuid, name, () if problem else (unit,), speed, problem)


def sliced(uuid: str, *slices: str) -> Device:
    units = tuple(Gpu(index=0, name="H MIG", uuid=s, compute_capability="9.0", mig=True) for s in slices)
    return Device(uuid, "H", units)


THREE = [device("GPU-aaa1"), device("GPU-aab2"), device("GPU-ccc3")]


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        (None, ["GPU-aaa1", "GPU-aab2", "GPU-ccc3"]),
        ("2,0", ["GPU-ccc3", "GPU-aaa1"]),
        ("GPU-ccc3,GPU-aaa1", ["GPU-ccc3", "GPU-aaa1"]),
        ("GPU-c,GPU-aab", ["GPU-ccc3", "GPU-aab2"]),
        ("GPU-c,GPU-aa", ["GPU-ccc3"]),  # the second fits two
        ("GPU-c,0", ["GPU-ccc3"]),
        ("GPU-CCC3", ["GPU-ccc3"]),
        ("0,GPU-ccc3", ["GPU-aaa1"]),
    ],
)
def test_lists(listed: str | None, seen: list[str]) -> None:
    view = visible(THREE, listed, None)
    assert [g.uuid for g in view.gpus] == seen
    assert [g.index for g in view.gpus] == list(range(len(seen)))
    assert view.reason == ""


@pytest.mark.parametrize(
    "listed", ["", "-1", "NoDevFiles", "none", "9", "1,1", "GPU-c,GPU-ccc3", "GPU-x", "MIG-x", ",0", "1" * 10**6]
)
def test_lists_that_hide_everything(listed: str) -> None:
    view = visible(THREE, listed, None)
    assert view.gpus == ()
    assert "CUDA_VISIBLE_DEVICES" in view.reason and "hides every GPU" in view.reason


A, B = "GPU-3373486a-802a-9508-d453-12324b57d217", "GPU-3e6083e7-034c-f1a9-11e2-44671a40d519"


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        ("", []),
        ("0,1", [A, B]),
        ("1,0", [B, A]),
        ("0,0", []),
        ("0,1,1", []),
        ("0,5,1", [A]),
        ("-1", []),
        ("0,-1,1", [A]),
        (" 1 , 0", [B, A]),
        ("1gpu,0x", [B, A]),
        ("+1,0", [B, A]),
        ("0x1", [A]),
        ("01", [B]),
        (",0", []),
        ("0,,1", [A]),
        ("0;1", [A]),
        ("0.5", [A]),
        ("4294967296", [A]),
        ("4294967297,0", [B, A]),
        ("99999999999999999999,1", []),
        (f"{B},{A}", [B, A]),
        ("GPU-", []),
        ("GPU-3", []),
        (A[:9], [A]),
        (f"{A[:12]},{B[:12]}", [A, B]),
        (A.upper(), [A]),
        (A.replace("GPU", "gpu"), []),
        (f"{A},{A[:12]}", []),
        (f"{A},1", [A]),
        (f"1,{A}", [B]),
        (f"{A}x", [A]),
        (f" {A}", []),
        (f"{A} ,{B}", [A, B]),
        (f"{A}, {B}", [A]),
        (A[4:], []),
        ("MIG-x", []),
        ("1,0,GPU-x", [B, A]),
    ],
)
def test_what_libcuda_answered(listed: str, seen: list[str]) -> None:
    """Each row is what cuDeviceGetUuid said on a machine with these two GPUs (H200, driver 580.159.04)."""
    assert [g.uuid for g in visible([device(A), device(B)], listed, None).gpus] == seen


MIXED = [device("GPU-slow", "NVIDIA T4", speed=1), device("GPU-fast", "NVIDIA A10", speed=9)]


def test_numbers_mean_the_fastest_first_unless_told_otherwise() -> None:
    assert [g.uuid for g in visible(MIXED, "0", None).gpus] == ["GPU-fast"]
    assert [g.uuid for g in visible(MIXED, "0", "FASTEST_FIRST").gpus] == ["GPU-fast"]
    assert [g.uuid for g in visible(MIXED, "0", "PCI_BUS_ID").gpus] == ["GPU-slow"]
    assert [g.uuid for g in visible(MIXED, None, None).gpus] == ["GPU-slow", "GPU-fast"]


MIG = [device("GPU-whole", "H"), sliced("GPU-cut", "MIG-1a", "MIG-2b")]


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        (None, ["GPU-whole", "MIG-1a", "MIG-2b"]),
        ("MIG-2b", ["MIG-2b"]),
        ("MIG-2", ["MIG-2b"]),
        ("MIG-2b,MIG-1a", ["MIG-2b"]),
        ("1", ["MIG-1a"]),
        ("GPU-cut", ["MIG-1a"]),
        ("0", ["GPU-whole"]),
        ("0,1", ["MIG-1a"]),
    ],
)
def test_a_process_sees_one_slice_alone(listed: str | None, seen: list[str]) -> None:
    assert [g.uuid for g in visible(MIG, listed, None).gpus] == seen


def test_a_chosen_gpu_that_does_not_answer_is_named() -> None:
    devices = [device("GPU-a"), device("GPU-b", problem="GPU 1 does not answer: lost")]
    assert visible(devices, "1", None).reason == "GPU 1 does not answer: lost"
    assert [g.uuid for g in visible(devices, None, None).gpus] == ["GPU-a"]
    assert visible(devices[1:], None, None).reason == "GPU 1 does not answer: lost"


def test_mig_mode_without_slices_named_twice() -> None:
    empty = Device("GPU-e", "H", (), problem="no slice")
    assert visible([empty, empty._replace(uuid="GPU-f")], "0,1", None).reason == "no slice; no slice"


def test_nothing_at_all() -> None:
    assert visible([], None, None).reason == "the driver lists no GPU"
    assert visible([], "0", None).reason == "the driver lists no GPU"
