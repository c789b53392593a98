"""What we use of TensorRT, CUDA and NVML is what these packages say they have. Needs no GPU.

No Runtime is made here: without a driver that ends the process. Documentation strings are read in a
process of their own, which leaves without the libraries' exit handlers.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import refit_agent
from fakes_tensorrt import build_driver
from module_contract import Answers, ask, faults_of, installed, unavailable, uses
from refit_agent.runtimes.tensorrt_plan import DTYPES
from refit_agent.runtimes.tensorrt_run import _NUMPY

SOURCE = Path(refit_agent.__file__).parent
OLDER = "10.16.1.11"
OLDER_BINDINGS = "12.9.0"

# ---------------------------------------------------------------- what is used

#: File -> expression -> the class that it is an instance of; "" is the module.
TYPES: dict[str, dict[str, str]] = {
    "runtimes/tensorrt.py": {
        "self._trt": "",
        "runtime": "Runtime",
        "self._ready()": "Runtime",
        "self._parent_runtime": "Runtime",
        "engine": "ICudaEngine",
    },
    "runtimes/tensorrt_plan.py": {
        "self._trt": "",
        "module": "",
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "self._refitter": "Refitter",
        "self._trt.Refitter": "Refitter",
        "config": "ISerializationConfig",
        "weights": "Weights",
        "self._trt.SerializationFlag": "SerializationFlag",
    },
    "runtimes/tensorrt_run.py": {
        "module": "",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "module.TensorIOMode": "TensorIOMode",
        "module.TensorLocation": "TensorLocation",
    },
    "runtimes/tensorrt_log.py": {"module": "", "module.ILogger": "ILogger"},
}

_NAME = r"\w+: str"
_INDEX = r"\w+: (int|typing\.SupportsInt|typing\.SupportsIndex)"
#: (class, name) -> how its signature must read; "property", "settable", "member" or "class" where it has none.
CONTRACT: dict[tuple[str, str], str] = {
    ("", "__version__"): "str",
    ("", "DataType"): "class",
    ("", "ILogger"): "class",
    ("", "Refitter"): "class",
    ("", "Runtime"): "class",
    ("", "SerializationFlag"): "class",
    ("", "TensorIOMode"): "class",
    ("", "TensorLocation"): "class",
    ("", "Weights"): "class",
    ("ILogger", "__init__"): r"\(self: [\w.]+\) -> None",
    ("Runtime", "deserialize_cuda_engine"): r"\(self: [\w.]+, serialized_engine: [\w.]*[Bb]uffer\) -> [\w.]+ICudaEngine",
    ("Runtime", "load_runtime"): r"\(self: [\w.]+, path: str\) -> [\w.]+Runtime",
    ("Runtime", "max_threads"): "settable",
    ("Runtime", "engine_host_code_allowed"): "settable",
    ("Refitter", "get_all_weights"): r"\(self: [\w.]+\) -> [lL]ist\[str\]",
    ("Refitter", "get_weights_prototype"): rf"\(self: [\w.]+, {_NAME}\) -> [\w.]+Weights",
    ("Refitter", "set_named_weights"): rf"\(self: [\w.]+, {_NAME}, weights: [\w.]+Weights\) -> bool",
    ("Refitter", "refit_cuda_engine"): r"\(self: [\w.]+\) -> bool",
    ("Refitter", "get_missing_weights"): r"\(self: [\w.]+\) -> [lL]ist\[str\]",
    ("Refitter", "max_threads"): "settable",
    ("Weights", "size"): "property",
    ("Weights", "dtype"): "property",
    ("ICudaEngine", "refittable"): "property",
    ("ICudaEngine", "create_serialization_config"): r"\(self: [\w.]+\) -> [\w.]+ISerializationConfig",
    ("ICudaEngine", "serialize_with_config"): r"\(self: [\w.]+, \w+: [\w.]+ISerializationConfig\) -> [\w.]+IHostMemory",
    ("ICudaEngine", "serialize"): r"\(self: [\w.]+\) -> [\w.]+IHostMemory",
    ("ICudaEngine", "num_io_tensors"): "property",
    ("ICudaEngine", "num_optimization_profiles"): "property",
    ("ICudaEngine", "get_tensor_name"): rf"\(self: [\w.]+, {_INDEX}\) -> str",
    ("ICudaEngine", "get_tensor_mode"): rf"\(self: [\w.]+, {_NAME}\) -> [\w.]+TensorIOMode",
    ("ICudaEngine", "get_tensor_dtype"): rf"\(self: [\w.]+, {_NAME}\) -> [\w.]+DataType",
    ("ICudaEngine", "get_tensor_location"): rf"\(self: [\w.]+, {_NAME}\) -> [\w.]+TensorLocation",
    ("ICudaEngine", "get_tensor_shape"): rf"\(self: [\w.]+, {_NAME}\) -> [\w.]+Dims",
    ("ICudaEngine", "is_shape_inference_io"): rf"\(self: [\w.]+, {_NAME}\) -> bool",
    ("ICudaEngine", "get_tensor_profile_shape"): rf"\(self: [\w.]+, {_NAME}, {_INDEX}\) -> [lL]ist\[[\w.]+Dims\]",
    # Its documentation has the names the wrong way round; the profile comes first.
    ("ICudaEngine", "get_tensor_profile_values"): rf"\(self: [\w.]+, {_INDEX}, {_NAME}\) -> [lL]ist\[[lL]ist\[int\]\]",
    ("ICudaEngine", "create_execution_context"): r"\(self: [\w.]+, strategy: [\w.]+ = .*\) -> [\w.]+IExecutionContext",
    ("ISerializationConfig", "clear_flag"): r"\(self: [\w.]+, flag: [\w.]+SerializationFlag\) -> bool",
    ("ISerializationConfig", "set_flag"): r"\(self: [\w.]+, flag: [\w.]+SerializationFlag\) -> bool",
    ("SerializationFlag", "EXCLUDE_WEIGHTS"): "member",
    ("SerializationFlag", "INCLUDE_REFIT"): "member",
    ("TensorIOMode", "INPUT"): "member",
    ("TensorLocation", "HOST"): "member",
    ("IExecutionContext", "set_input_shape"): rf"\(self: [\w.]+, {_NAME}, shape: tuple\) -> bool",
    ("IExecutionContext", "set_tensor_address"): rf"\(self: [\w.]+, {_NAME}, {_INDEX}\) -> bool",
    ("IExecutionContext", "get_tensor_shape"): rf"\(self: [\w.]+, {_NAME}\) -> [\w.]+Dims",
    ("IExecutionContext", "execute_async_v3"): rf"\(self: [\w.]+, {_INDEX}\) -> bool",
    ("IExecutionContext", "set_optimization_profile_async"): rf"\(self: [\w.]+, {_INDEX}, {_INDEX}\) -> bool",
}  # fmt: skip

#: What our source relies on without naming it as an attribute.
ALSO: dict[tuple[str, str], str] = {
    ("Runtime", "__init__"): r"\(self: [\w.]+, logger: [\w.]+ILogger\) -> None",
    ("Refitter", "__init__"): r"\(self: [\w.]+, engine: [\w.]+ICudaEngine, logger: [\w.]+ILogger\) -> None",
    ("Weights", "__init__"): rf"\(self: [\w.]+, type: [\w.]+DataType, ptr: \S+, {_INDEX}\) -> None",
    ("ILogger", "log"): r"\(self: [\w.]+, severity: [\w.]+Severity, msg: str\) -> None",
    ("ILogger", "Severity"): "class",
    ("IHostMemory", "nbytes"): "property",
    ("Dims", "__len__"): r"\(self: [\w.]+\) -> int",
    ("Dims", "__getitem__"): rf"\(self: [\w.]+, {_INDEX}\) -> int",
    **{("ILogger.Severity", name): "member" for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")},
    **{("DataType", name): "member" for name in (*DTYPES.values(), *_NUMPY)},
}


def test_every_use_of_tensorrt_has_a_line_in_the_contract() -> None:
    """And no line is there for what nothing uses."""
    found = {use for file, types in TYPES.items() for use in uses(SOURCE / file, types)}
    assert found == set(CONTRACT)


# ---------------------------------------------------------------- what there is

WHOLE = {**CONTRACT, **ALSO}


def ask_in(folder: Path | None, module: str) -> Answers:
    """What the module in ``folder`` (None: the one installed) says of every name of the contract."""
    return ask(module, WHOLE, {**os.environ, "PYTHONPATH": "" if folder is None else str(folder)})


@pytest.fixture(scope="session")
def older_lean() -> Path:
    """The folder of tensorrt-lean 10.16."""
    packages = [f"tensorrt-lean-cu12{part}=={OLDER}" for part in ("", "-bindings", "-libs")]
    return installed(f"tensorrt-lean-{OLDER}", packages)


@pytest.fixture(scope="session")
def older_bindings() -> Path:
    """The folder of the oldest cuda-bindings that the extra cu12 takes."""
    return installed(f"cuda-bindings-{OLDER_BINDINGS}", [f"cuda-bindings=={OLDER_BINDINGS}"])


def test_tensorrt_lean_10_has_all_that_we_use(older_lean: Path) -> None:
    """The oldest lean runtime that refits on its own."""
    answers = ask_in(older_lean, "tensorrt_lean")
    assert answers["__version__"] == OLDER
    assert faults_of(answers, WHOLE) == []


def test_the_installed_tensorrt_lean_has_all_that_we_use() -> None:
    """The one that the project depends on."""
    if importlib.util.find_spec("tensorrt_lean") is None:
        unavailable("tensorrt_lean is not installed")
    assert faults_of(ask_in(None, "tensorrt_lean"), WHOLE) == []


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_other_modules_have_all_that_we_use(module: str) -> None:
    """The same classes under other names; TensorRT before 10 may lack what we ask it for first."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    answers = ask_in(None, module)
    old = module == "tensorrt" and int(answers["__version__"].split(".")[0]) < 10
    lacks = {"get_weights_prototype", "create_serialization_config", "serialize_with_config", "clear_flag"}
    lacks |= {"get_tensor_profile_values"}
    lacks |= {"SerializationFlag", "EXCLUDE_WEIGHTS", "INCLUDE_REFIT", *DTYPES.values()}
    assert faults_of(answers, WHOLE, without=lacks if old else ()) == []


def test_a_contract_that_is_broken_is_seen() -> None:
    """The check itself: a name gone, a signature changed, a property that cannot be set any more."""
    if importlib.util.find_spec("tensorrt_lean") is None:
        unavailable("tensorrt_lean is not installed")
    answers = ask_in(None, "tensorrt_lean")
    answers["Refitter.set_named_weights"] = "set_named_weights(self: a.Refitter, name: str) -> bool"
    answers["Runtime.max_threads"] = "property"
    answers["DataType.BF16"] = None
    assert [fault.split(":")[0] for fault in faults_of(answers, WHOLE)] == [
        "Runtime.max_threads",
        "Refitter.set_named_weights",
        "DataType.BF16",
    ]


# ---------------------------------------------------------------- CUDA and NVML

#: Function -> number of its arguments.
CUDA_CALLS = {
    "cuInit": 1,
    "cuDeviceGet": 1,
    "cuDevicePrimaryCtxRetain": 1,
    "cuDevicePrimaryCtxRelease": 1,
    "cuCtxSetCurrent": 1,
    "cuStreamCreate": 1,
    "cuStreamDestroy": 1,
    "cuStreamSynchronize": 1,
    "cuMemAlloc": 1,
    "cuMemFree": 1,
    "cuMemcpyHtoDAsync": 4,
    "cuMemcpyDtoHAsync": 4,
    "cuGetErrorName": 1,
}


def test_cuda_bindings_have_all_that_we_use() -> None:
    """Every function with as many arguments as we give it, as its documentation tells."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    found = {name for _, name in uses(SOURCE / "runtimes/tensorrt_run.py", {"self._cuda": ""})}
    assert found == set(CUDA_CALLS)
    for name, count in CUDA_CALLS.items():
        signature = re.match(rf"{name}\((.*?)\)", getattr(driver, name).__doc__)
        assert signature is not None, name
        assert len([part for part in signature[1].split(",") if part.strip()]) == count, signature[0]


_CHECK_RUN = """
import ctypes, json, sys
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
left = [ctypes.c_int.in_dll(library, name).value for name in ("allocations", "streams", "held")]
from cuda import bindings
print(json.dumps([bindings.__version__, answers, left, "cuda.bindings.runtime" in sys.modules]))
"""


def check_run(bindings: Path | None, driver: Path, **environment: str) -> tuple[str, dict[str, Any]]:
    """Two check runs by the real bindings in ``bindings`` (None: those installed) on a stand-in for the driver.

    Gives the version of the bindings, and of every run whether it was right, or the error's text.
    """
    path = [str(Path(__file__).parents[2]), *([str(bindings)] if bindings else [])]
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join(path), **environment}
    run = subprocess.run([sys.executable, "-c", _CHECK_RUN], env=env, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    version, answers, left, by_runtime = json.loads(run.stdout.splitlines()[-1])
    assert left == [0, 0, 0], "memory, streams or contexts were not given back"
    assert not by_runtime, "the bindings of the CUDA runtime are 5 MB more than the check run needs"
    return version, answers


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver")).parent


@pytest.fixture(params=["12", "13"])
def bindings(request: pytest.FixtureRequest) -> Path | None:
    """The oldest of CUDA 12, and those that are installed, of CUDA 13."""
    if request.param == "12":
        folder: Path = request.getfixturevalue("older_bindings")
        return folder
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    return None


@pytest.mark.parametrize("per_thread", ["0", "1"])
def test_the_real_bindings_make_check_runs(bindings: Path | None, driver: Path, per_thread: str) -> None:
    """Every function takes what it is given, twice in one process, whatever the default stream is."""
    version, answers = check_run(bindings, driver, CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM=per_thread)
    assert answers == {"1": True, "2": True}
    assert bindings is None or version == OLDER_BINDINGS


@pytest.mark.parametrize(
    ("call", "code", "told"),
    [
        ("cuDevicePrimaryCtxRetain", 2, "CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY)"),
        ("cuMemAlloc", 2, "CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY)"),
        ("cuStreamSynchronize", 719, "CUDA error 719 (CUDA_ERROR_LAUNCH_FAILED)"),
        ("cuStreamSynchronize", 9999, "9999"),
    ],
)
def test_the_real_bindings_tell_errors(bindings: Path | None, driver: Path, call: str, code: int, told: str) -> None:
    """By number and name; one that they do not know is an error of the GPU's as well."""
    _, answers = check_run(bindings, driver, FAKE_CUDA_FAIL=call, FAKE_CUDA_CODE=str(code))
    assert told in answers["1"]
    assert told in answers["2"]


def test_nvidia_ml_py_has_all_that_we_use() -> None:
    """Names that we cannot do without; those that are asked for as optional exist too, unless misspelt."""
    import pynvml

    names = {name for _, name in uses(SOURCE / "gpu/nvml.py", {"pynvml": "", "nvml": ""})}
    tree = ast.parse((SOURCE / "gpu/nvml.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_optional":
            assert isinstance(node.args[1], ast.Constant)
            names.add(node.args[1].value)
    assert {"nvmlInit", "nvmlDeviceGetUUID", "nvmlDeviceGetMigMode", "NVML_CLOCK_SM"} <= names
    assert sorted(name for name in names if not hasattr(pynvml, name)) == []
