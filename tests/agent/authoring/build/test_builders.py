"""Which builder and which GPU."""

from __future__ import annotations

import pytest

from fakes_tensorrt_builder import machine
from refit_agent.authoring.build.builders import find_builder, find_gpu
from refit_agent.authoring.errors import BuilderMissing, BuildOptionsInvalid
from refit_agent.errors import DeviceFailed

INSTALLED = [("tensorrt_lean", "11.4.0.106", ""), ("tensorrt", "8.6.0", "/old"), ("tensorrt", "10.16.1.11", "/new"), ("tensorrt_rtx", "1.7.1", "")]  # fmt: skip


def test_the_newest_unless_another_is_named() -> None:
    """By the leading numbers of its version."""
    here = machine(*INSTALLED)
    assert find_builder(here).folder == "/new"
    assert find_builder(here, version="8.6").folder == "/old"
    assert find_builder(here, version="8").folder == "/old"
    assert find_builder(here, "tensorrt-rtx").module == "tensorrt_rtx"


def test_none() -> None:
    """A stable code, what there is instead, and which package to install."""
    with pytest.raises(BuilderMissing, match=r"no tensorrt here, only tensorrt_lean 11\.4\.0\.106\.") as caught:
        find_builder(machine(INSTALLED[0]))
    error = caught.value
    assert (error.code, error.exit_code) == ("builder-missing", 3)
    assert "pip install tensorrt (10 or later)" in error.hint and "tensorrt==8.6.0" in error.hint
    with pytest.raises(BuilderMissing, match=r"there is no tensorrt_rtx here\."):
        find_builder(machine(("onnxruntime", "1.31.1", "")), "tensorrt-rtx")
    with pytest.raises(BuilderMissing, match=r"no tensorrt 9\.1 here"):
        find_builder(machine(*INSTALLED), version="9.1")
    with pytest.raises(BuilderMissing, match="version of tensorrt in /odd cannot be read"):
        find_builder(machine(("tensorrt", "", "/odd")))


def test_gpus() -> None:
    """The first one, or the one with this ordinal."""
    two = machine(gpus=2)
    assert find_gpu(two).uuid == "GPU-0"
    assert find_gpu(two, 1).uuid == "GPU-1"
    with pytest.raises(BuildOptionsInvalid, match=r"--device 2 .*0 \(NVIDIA H100 80GB HBM3\), 1 \(NVIDIA"):
        find_gpu(two, 2)
    with pytest.raises(DeviceFailed, match="there is none: no driver"):
        find_gpu(machine(gpus=0, no_gpu_reason="no driver"))
