"""What we use of TensorRT, CUDA and NVML is what these packages say they have. Needs no GPU.

No Runtime is made here: without a driver that ends the process. Documentation strings are read in a
process of their own, which leaves without the libraries' exit handlers.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import pytest

import refit_agent
from module_contract import Answers, ask, faults_of, installed, unavailable, uses
from refit_agent.runtimes.tensorrt_plan import DTYPES
from refit_agent.runtimes.tensorrt_run import _NUMPY

SOURCE = Path(refit_agent.__file__).parent
OLDER = "10.16.1.11"

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
