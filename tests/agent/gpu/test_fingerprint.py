"""The fingerprint changes with everything that the answer depends on, and with nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refit_agent.gpu import _linux, _windows
from refit_agent.gpu.fingerprint import fingerprint


def linux(root: Path) -> str:
    """A small tree in the shape of /proc and /dev."""

    def put(path: str, text: str = "") -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("proc/sys/kernel/random/boot_id", "866bd8dd\n")
    put("proc/driver/nvidia/version", "NVRM version: 580.159.04\nGCC version: 12\n")
    put("proc/driver/nvidia/gpus/0000:01:00.0/information")
    put("proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access")
    put("proc/driver/nvidia/capabilities/mig/config")
    put("dev/nvidia0")
    put("dev/nvidiactl")
    put("dev/dxg")
    put("usr/lib/wsl/lib/libnvidia-ml.so.1", "elf")
    return str(root)


def _write(path: str, text: str = "") -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _write("proc/sys/kernel/random/boot_id", "another"),
        _write("proc/driver/nvidia/version", "NVRM version: 581\n"),
        _write("proc/driver/nvidia/gpus/0000:02:00.0/information"),
        _write("proc/driver/nvidia/capabilities/gpu0/mig/gi2/access"),
        _write("proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci1/access"),
        _write("dev/nvidia1"),
        _write("usr/lib/wsl/lib/libnvidia-ml.so.1", "another"),
        lambda root: (root / "dev/dxg").unlink(),
        lambda root: (root / "proc/driver/nvidia/version").unlink(),
        lambda root: (root / "dev/nvidia0").unlink(),
    ],
)
def test_linux_notices(tmp_path: Path, change: Callable[[Path], object]) -> None:
    root = linux(tmp_path)
    before = _linux.parts(root)
    assert before == _linux.parts(root)
    change(tmp_path)
    assert _linux.parts(root) != before


@pytest.mark.parametrize("path", ["dev/nvidia-uvm", "dev/sda1", "proc/driver/nvidia/params"])
def test_linux_does_not_mind(tmp_path: Path, path: str) -> None:
    before = _linux.parts(linux(tmp_path))
    _write(path)(tmp_path)
    os.utime(tmp_path / "dev/dxg")
    assert _linux.parts(str(tmp_path)) == before


def test_linux_without_anything(tmp_path: Path) -> None:
    assert all(line.split(" ")[1] == "" for line in _linux.parts(str(tmp_path)))


def test_no_part_holds_a_line_break(tmp_path: Path) -> None:
    assert not any("\n" in part for part in _linux.parts(linux(tmp_path)))


def test_windows_in_shape(tmp_path: Path) -> None:
    before = _windows.parts(str(tmp_path))
    (tmp_path / "System32").mkdir()
    (tmp_path / "System32" / "nvml.dll").write_text("x")
    after = _windows.parts(str(tmp_path))
    assert before[1:] == ["nvml.dll ", "nvcuda.dll "] and after[1] != before[1]


def test_the_environment_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = [fingerprint()]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen.append(fingerprint())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "None")
    seen.append(fingerprint())
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    seen.append(fingerprint())
    monkeypatch.setenv("REFIT_AGENT_RUNTIMES", str(tmp_path))
    seen.append(fingerprint())
    (tmp_path / "tensorrt_lean").mkdir()
    seen.append(fingerprint())
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    assert fingerprint() == seen[-1]


def test_a_package_that_comes_with_its_own_times_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An archive that is unpacked over the folder sets the folder's time back to what it was."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    os.utime(tmp_path, (1_800_000_000, 1_800_000_000))
    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "onnxruntime").mkdir()
    os.utime(tmp_path, (1_800_000_000, 1_800_000_000))
    assert fingerprint() != before
