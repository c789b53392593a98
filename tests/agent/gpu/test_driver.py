from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes_tensorrt import build_driver
from refit_agent.gpu import driver

TESTS = Path(__file__).parents[2]
_CHECK_RUNS = """
import ctypes, json
import numpy as np
from fakes_tensorrt import FakeTensorRt, output, plan, tensor
from refit_agent.errors import DeviceFailed
from refit_agent.runtimes.tensorrt_run import run_engine

module = FakeTensorRt()
empty = ((0, 4),) * 3
io = [tensor("x"), tensor("e", shapes=empty), output("y", "x"), output("z", "e")]
answers = {}
for factor in (1, 2):
    values = np.arange(8, dtype=np.float32).reshape(2, 4) * np.float32(factor)
    try:
        got = run_engine(module, module.engine(plan(io=io)), {"x": values, "e": np.zeros((0, 4), np.float32)})
        answers[factor] = got["y"].tolist() == values.tolist() and got["z"].shape == (0, 4)
    except DeviceFailed as error:
        answers[factor] = str(error)
library = ctypes.CDLL("libcuda.so.1")
print(json.dumps([answers, [ctypes.c_int.in_dll(library, name).value for name in ("allocations", "streams", "held")]]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


def check_runs(library: Path, **environment: str) -> dict[str, Any]:
    """Two check runs in one process, by ctypes on a stand-in for the driver that is compiled from C: of each whether
    it was right, or the error's text."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "PYTHONPATH": str(TESTS), **environment}
    run = subprocess.run([sys.executable, "-c", _CHECK_RUNS], env=env, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    answers, left = json.loads(run.stdout.splitlines()[-1])
    assert left == [0, 0, 0], "memory, streams or contexts were not given back"
    assert isinstance(answers, dict)
    return answers


def test_check_runs_by_way_of_c(library: Path) -> None:
    """Addresses beyond 32 bits, empty tensors, twice in one process."""
    assert check_runs(library) == {"1": True, "2": True}


@pytest.mark.parametrize(
    ("call", "code", "told"),
    [
        ("cuDevicePrimaryCtxRetain", 2, "CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY)"),
        ("cuMemAlloc", 2, "cuMemAlloc gave CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY)"),
        ("cuStreamSynchronize", 719, "CUDA error 719 (CUDA_ERROR_LAUNCH_FAILED)"),
        ("cuStreamSynchronize", 9999, "CUDA error 9999 (unknown)"),
    ],
)
def test_errors_by_way_of_c(library: Path, call: str, code: int, told: str) -> None:
    """By number and name; one that the driver has no name for is an error of the GPU's as well."""
    answers = check_runs(library, FAKE_CUDA_FAIL=call, FAKE_CUDA_CODE=str(code))
    assert told in answers["1"]
    assert told in answers["2"]


def test_a_driver_without_one_of_the_functions_is_the_gpus_fault(library: Path, tmp_path: Path) -> None:
    """Not an AttributeError from the depths of ctypes."""
    source = (library.parent / "driver.c").read_text()
    (tmp_path / "driver.c").write_text(source.replace("cuMemFree_v2", "cuMemFree_v9"))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    code = "from refit_agent.gpu import driver\ntry: driver.free(1)\nexcept Exception as e: print(type(e).__name__, e)"
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60).stdout
    assert told.startswith("DeviceFailed") and "has no cuMemFree_v2" in told


_C_TYPES = {"unsigned int": ctypes.c_uint, "int": ctypes.c_int, "size_t": ctypes.c_size_t}


def test_arguments_are_those_of_cudas_header() -> None:
    """Against cuda-bindings' declarations of the same functions, which are made from cuda.h."""
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    from cuda import bindings

    header = (Path(bindings.__file__).parent / "cydriver.pxd").read_text()
    for symbol, ours in driver._SYMBOLS.items():
        declared = re.search(rf"CUresult {symbol.removesuffix('_v2')}\((.*?)\) except", header)
        assert declared is not None, symbol
        assert [_kind(argument) for argument in declared[1].split(", ")] == list(ours), symbol


def _kind(argument: str) -> Any:
    """What a C argument must be passed as."""
    words = argument.rsplit(" ", 1)[0].removeprefix("const ")
    if "*" in argument or words in ("CUcontext", "CUstream"):
        return ctypes.c_void_p
    if words == "CUdeviceptr":
        return ctypes.c_uint64
    return ctypes.c_int if words in ("CUdevice", "CUresult") else _C_TYPES[words]
