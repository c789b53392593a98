# ruff: noqa: N802  the names are CUDA's
"""Stand-ins at the runtime seam: a TensorRT module, CUDA's runtime and driver, and plans that they take.

They behave as TensorRT is documented and as it was measured, its treachery included: a refit succeeds
and reports nothing missing with weights never set, weights are read from their addresses only at the
refit, and a stripped engine is written without weights unless it is told otherwise. "GPU" memory is
host memory. In a worker, `write_package` puts the module into a folder for its search path.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refit_agent.gpu import driver

_MODERN = {
    "FLOAT": "<f4", "HALF": "<f2", "INT8": "|i1", "INT32": "<i4", "BOOL": "|b1", "UINT8": "|u1", "FP8": "|u1",
    "BF16": "<u2", "INT64": "<i8", "INT4": "", "FP4": "", "E8M0": "|u1",
}  # fmt: skip
_OLD = ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8")
STUB_ERROR = "Error Code 6: API Usage Error (Unexpected call to stub loadRunner.)"


# ---------------------------------------------------------------- plans


def tensor(name: str, dtype: str = "FLOAT", shapes: Any = ((1, 4), (2, 4), (8, 4)), **more: Any) -> dict[str, Any]:
    """An input; ``shapes`` is (least, best, most), or a list of such for several profiles."""
    profiles = shapes if isinstance(shapes, list) else [shapes]
    return {"name": name, "mode": "INPUT", "dtype": dtype, "profiles": profiles, "location": "DEVICE", **more}


def output(name: str, like: str, dtype: str = "FLOAT", **more: Any) -> dict[str, Any]:
    """An output of the shape of the input ``like``, whose bytes it copies (times the weights, if it has any)."""
    return {"name": name, "mode": "OUTPUT", "dtype": dtype, "like": like, "location": "DEVICE", **more}


def plan(
    weights: Mapping[str | None, tuple[str, int]] | None = None,
    io: Iterable[dict[str, Any]] = (),
    *,
    version: tuple[int, ...] = (10, 16, 1, 11),
    stripped: bool = True,
    refittable: bool = True,
    values: Mapping[str, bytes] | None = None,
    **more: Any,
) -> bytes:
    """A plan with the real header. ``weights`` maps names to (member of DataType, count)."""
    body = {
        "weights": [[name, *spec] for name, spec in (weights or {}).items()],
        "io": list(io),
        "version": list(version),
        "stripped": stripped,
        "refittable": refittable,
        "values": {k: base64.b64encode(v).decode() for k, v in (values or {}).items()},
        **more,
    }
    data = json.dumps(body).encode()
    return struct.pack("<4s12xQ4B", b"ftrt", 28 + len(data), *version) + data


def fingerprint(weights: Iterable[tuple[str, Any]]) -> float:
    """One number that every weight's every element moves."""
    total = 1.0
    for name, array in sorted(weights):
        flat = np.asarray(array).astype(np.float64).ravel()
        total += len(name) * float(flat @ np.cos(np.arange(flat.size)))
    return total


# ---------------------------------------------------------------- tensorrt


class Dims:
    """A sequence as pybind11 gives it: a length and items, nothing more. None: no dimensions at all."""

    def __init__(self, values: Iterable[int] | None) -> None:
        self._values = None if values is None else tuple(values)

    def __len__(self) -> int:
        if self._values is None:
            raise ValueError("__len__() should return >= 0")
        return len(self._values)

    def __getitem__(self, index: int) -> int:
        assert self._values is not None
        return self._values[index]


class FakeTensorRt(ModuleType):
    """A TensorRT of ``version``: before 10 without prototypes, flags for the writing, weights by address
    and the ranges of shape inputs. ``state`` tells what was done with it.

    Args (any value; most are there or not):
        no_runtime, no_refitter, no_context, no_serialise, no_refit, no_run: that step fails.
        missing: what get_missing_weights gives after a refit.
        deserialise_error: what is logged in place of an engine.
        lean_version: version of the runtimes that load_runtime gives; "" means it fails.

    ``plugins`` are the registered ones: a plan that names others in its ``plugins`` is not deserialised. Nor is a
    finished one that is ``unloadable``.
    """

    def __init__(self, name: str = "tensorrt", version: str = "10.16.1.11", **faults: Any) -> None:
        super().__init__(name)
        self.__version__ = version
        self.prototypes = int(version.split(".")[0]) >= 10
        self.faults = faults
        self.plugins: set[str] = set()
        self.state = SimpleNamespace(runtimes=[], engines=[], refits=0, configs=[], contexts=[])
        kept = _MODERN if self.prototypes else _OLD
        self.DataType = enum.Enum("DataType", list(kept))  # type: ignore[misc]
        self.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
        self.TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
        self.ILogger = _logger_class()
        self.Weights = _weights_class(self)
        self.Refitter = _refitter_class(self)
        self.Runtime = _runtime_class(self)
        if self.prototypes:
            self.SerializationFlag = enum.Enum(
                "SerializationFlag", ["EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME", "INCLUDE_REFIT"]
            )

    def engine(self, data: bytes, logger: Any = None) -> Any:
        """The engine in a plan, with no Runtime around it."""
        return _engine_class(self)(data, logger or self.ILogger())


def _logger_class() -> type:
    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

        def log(self, severity: Any, msg: str) -> None:
            """Pure virtual in C++."""

        def say(self, severity: str, msg: str) -> None:
            self.log(self.Severity[severity], msg)

    return ILogger


def _weights_class(module: FakeTensorRt) -> type:
    class Weights:
        """An address and a count: nothing is copied, and no array kept alive."""

        def __init__(self, *args: Any) -> None:
            if len(args) == 1 and isinstance(args[0], np.ndarray):
                found = [m for m, d in _MODERN.items() if d == args[0].dtype.str and hasattr(module.DataType, m)]
                if not found:
                    raise TypeError(f"Could not implicitly convert NumPy data type: {args[0].dtype} to TensorRT.")
                self.dtype, self.size = module.DataType[found[0]], args[0].size
                self.pointer = args[0].ctypes.data
            elif module.prototypes and len(args) == 3:
                self.dtype, self.pointer, self.size = args
            else:
                raise TypeError("__init__(): incompatible constructor arguments.")

    return Weights


def _refitter_class(module: FakeTensorRt) -> type:
    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None:
            if not engine.refittable or "no_refitter" in module.faults:
                logger.say("ERROR", "the engine is not refittable")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._engine, self._logger = engine, logger
            self._set: dict[str, Any] = {}
            self.max_threads = 1

        def get_all_weights(self) -> list[str | None]:
            return [name for name, _, _ in self._engine.body["weights"]]

        def _spec(self, name: str) -> tuple[Any, int] | None:
            found = [w for w in self._engine.body["weights"] if w[0] == name]
            return (module.DataType[found[0][1]], found[0][2]) if found else None

        def set_named_weights(self, name: str, weights: Any) -> bool:
            if self._spec(name) != (weights.dtype, weights.size):
                self._logger.say("ERROR", f"{name}: count or type mismatch")
                return False
            self._set[name] = weights
            return True

        def refit_cuda_engine(self) -> bool:
            module.state.refits += 1
            if "no_refit" in module.faults:
                self._logger.say("ERROR", "refit went wrong")
                return False
            for name, weights in self._set.items():
                self._engine.values[name] = ctypes.string_at(weights.pointer, _nbytes(weights.dtype.name, weights.size))
            return True  # with weights never set, too

        def get_missing_weights(self) -> list[str | None]:
            return list(module.faults.get("missing", []))

        if module.prototypes:

            def get_weights_prototype(self, name: str) -> Any:
                spec = self._spec(name)
                return SimpleNamespace(dtype=spec[0], size=spec[1]) if spec else SimpleNamespace(dtype=None, size=-1)

    return Refitter


def _nbytes(member: str, count: int) -> int:
    return (count + 1) // 2 if not _MODERN[member] else np.dtype(_MODERN[member]).itemsize * count


def _runtime_class(module: FakeTensorRt) -> type:
    class Runtime:
        def __init__(self, logger: Any) -> None:
            module.state.runtimes.append(self)
            self._logger = logger
            self.max_threads = 1
            self.engine_host_code_allowed = False
            if "no_runtime" in module.faults:
                logger.say("ERROR", "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def load_runtime(self, path: str) -> Any:
            self.loaded_from = path
            if module.faults.get("lean_version") == "":
                self._logger.say("ERROR", f"{path} is no library")
                return None
            return Runtime(self._logger)

        def deserialize_cuda_engine(self, data: Any) -> Any:
            with memoryview(data) as view:  # type: ignore[arg-type]
                plain = bytes(view)
            error = module.faults.get("deserialise_error")
            try:
                engine = _engine_class(module)(plain, self._logger)
            except ValueError:
                error = "Serialization assertion magicTagRead == kMAGIC_TAG failed"
            if error:
                self._logger.say("ERROR", error)
                return None
            if engine.body.get("unloadable") and not engine.body["stripped"]:
                self._logger.say("ERROR", "what was written is no engine")
                return None
            for name in engine.body.get("plugins", ()):
                if name not in module.plugins:
                    self._logger.say("ERROR", f"getPluginCreator could not find plugin: {name} version: 1")
                    return None
            for _ in range(module.faults.get("warnings", 0)):
                self._logger.say("WARNING", "Using an engine plan file across different models of devices ...")
            if engine.body.get("host_code") and not self.engine_host_code_allowed:
                self._logger.say("ERROR", "the plan holds host code, which is not allowed")
                return None
            return engine

    return Runtime


def _engine_class(module: FakeTensorRt) -> type:
    class ICudaEngine:
        def __init__(self, data: bytes, logger: Any) -> None:
            module.state.engines.append(self)
            self.body = json.loads(data[28:])
            self.logger = logger
            self.refittable = self.body["refittable"]
            self.values = {k: base64.b64decode(v) for k, v in self.body["values"].items()}
            self.num_io_tensors = len(self.body["io"])
            self._io = {spec["name"]: spec for spec in self.body["io"]}
            self.num_optimization_profiles = max(
                (len(s["profiles"]) for s in self._io.values() if "profiles" in s), default=1
            )

        def _written(self, *, exclude: bool, refittable: bool = False) -> Any:
            if "no_serialise" in module.faults:
                self.logger.say("ERROR", "out of memory")
                return None
            body = {**self.body, "stripped": exclude, "refittable": refittable}
            weights = {w[0]: tuple(w[1:]) for w in body.pop("weights")}
            io, version = body.pop("io"), tuple(body.pop("version"))
            body["values"] = {} if exclude else self.values
            data = plan(weights, io, version=version, **body)
            return (ctypes.c_char * len(data)).from_buffer_copy(data)  # of format "c", as IHostMemory is not bytes

        def serialize(self) -> Any:
            return self._written(exclude=self.body["stripped"])

        if module.prototypes:

            def create_serialization_config(self) -> Any:
                flags = {module.SerializationFlag.EXCLUDE_WEIGHTS} if self.body["stripped"] else set()
                config = SimpleNamespace(flags=flags, clear_flag=flags.discard, set_flag=flags.add)
                module.state.configs.append(config)
                return config

            def serialize_with_config(self, config: Any) -> Any:
                flags = module.SerializationFlag
                return self._written(
                    exclude=flags.EXCLUDE_WEIGHTS in config.flags, refittable=flags.INCLUDE_REFIT in config.flags
                )

        def get_tensor_name(self, index: int) -> str:
            return list(self._io)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode[self._io[name]["mode"]]

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType[self._io[name]["dtype"]]

        def get_tensor_location(self, name: str) -> Any:
            return module.TensorLocation[self._io[name]["location"]]

        def is_shape_inference_io(self, name: str) -> bool:
            return "values" in self._io[name]

        def get_tensor_shape(self, name: str) -> Dims:
            return Dims(self._io[name]["shape"])

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[Dims]:
            if self.is_shape_inference_io(name):
                return [Dims(None)] * 3
            return [Dims(shape) for shape in self._io[name]["profiles"][profile]]

        if module.prototypes:

            def get_tensor_profile_values(self, profile: int, name: str) -> list[list[int]]:
                assert self.is_shape_inference_io(name), "Binding index does not correspond to an input shape tensor."
                values = self._io[name]["values"]
                return [list(v) for v in values[profile]] if values else []

        def create_execution_context(self) -> Any:
            if "no_context" in module.faults:
                return None
            context = Context(self)
            module.state.contexts.append(context)
            return context

    class Context:
        def __init__(self, engine: Any) -> None:
            self.engine = engine
            self.profile = 0
            self.profile_stream: int | None = None
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            self.profile, self.profile_stream = index, stream
            return "no_profile" not in module.faults

        def set_input_shape(self, name: str, shape: Any) -> bool:
            self.shapes[name] = tuple(shape)
            spec = self.engine._io[name]
            if "values" in spec:
                return tuple(shape) == tuple(spec["shape"])
            least, _, most = spec["profiles"][self.profile]
            return all(a <= d <= b for a, d, b in zip(least, shape, most, strict=True))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def get_tensor_shape(self, name: str) -> Dims:
            spec = self.engine._io[name]
            return Dims(spec.get("shape") or self.shapes[spec["like"]])

        def execute_async_v3(self, stream: int) -> bool:
            if "no_run" in module.faults:
                return False
            engine = self.engine
            for name, spec in engine._io.items():
                if spec["mode"] == "OUTPUT":
                    shape = self.shapes[spec["like"]]
                    nbytes = _nbytes(spec["dtype"], int(np.prod(shape)))
                    data = ctypes.string_at(self.addresses[spec["like"]], nbytes)
                    if engine.body["weights"]:
                        arrays = {
                            n: np.frombuffer(engine.values.get(n, b""), _MODERN[d])
                            for n, d, _ in engine.body["weights"]
                        }
                        data = (np.frombuffer(data, np.float32) * np.float32(fingerprint(arrays.items()))).tobytes()
                    ctypes.memmove(self.addresses[name], data, nbytes)
            return True

    return ICudaEngine


def write_package(folder: Path, name: str = "tensorrt", version: str = "10.16.1.11", **faults: Any) -> Path:
    """A folder for a worker's search path: the module ``name``."""
    code = f"import sys\nimport fakes_tensorrt as f\nsys.modules[__name__] = f.FakeTensorRt({name!r}, {version!r}, **{faults!r})\n"
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(code)
    return folder


# ---------------------------------------------------------------- CUDA


_DEVICE, _CONTEXT = 5, 1000


class FakeCuda:
    """The CUDA driver over host memory, below `gpu.driver`. ``fail`` names calls that report error 2.

    ``live`` holds what is allocated, ``made`` every address ever given, ``streams`` the streams that exist,
    ``retained`` how often the primary context is held. What is copied to the host is there after the stream was
    waited for, and not before.
    """

    class CUresult(enum.IntEnum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_OUT_OF_MEMORY = 2

    def __init__(self, *fail: str) -> None:
        self.fail = fail
        self.live: dict[int, Any] = {}
        self.made: list[int] = []
        self.streams: set[int] = set()
        self.synchronized: list[int] = []
        self.retained = 0
        self.current: Any = None
        self._coming: list[tuple[int, int, int]] = []

    def _answer(self, call: str, *values: Any) -> tuple[Any, ...]:
        if call in self.fail:
            return (self.CUresult(2), *(None for _ in values))
        return (self.CUresult(0), *values)

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        return self._answer("cuInit")

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self._answer("cuDeviceGet", _DEVICE + ordinal)

    def cuDevicePrimaryCtxRetain(self, device: Any) -> tuple[Any, ...]:
        answer = self._answer("cuDevicePrimaryCtxRetain", _CONTEXT + device)
        self.retained += answer[0] == 0
        return answer

    def cuDevicePrimaryCtxRelease(self, device: Any) -> tuple[Any, ...]:
        assert device == _DEVICE
        assert self.retained > 0
        self.retained -= 1
        return self._answer("cuDevicePrimaryCtxRelease")

    def cuCtxSetCurrent(self, context: Any) -> tuple[Any, ...]:
        self.current = context
        return self._answer("cuCtxSetCurrent")

    def _require_context(self) -> None:
        assert self.retained
        assert self.current == _CONTEXT + _DEVICE

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        self._require_context()
        assert size > 0
        answer = self._answer("cuMemAlloc", 0)
        if int(answer[0]):
            return answer
        buffer = (ctypes.c_ubyte * size)()
        self.live[ctypes.addressof(buffer)] = buffer
        self.made.append(ctypes.addressof(buffer))
        return self._answer("cuMemAlloc", ctypes.addressof(buffer))

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        self._require_context()
        del self.live[address]
        return self._answer("cuMemFree")

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Any, ...]:
        self._require_context()
        assert stream in self.streams
        assert ctypes.sizeof(self.live[target]) >= size
        ctypes.memmove(target, source, size)
        return self._answer("cuMemcpyHtoDAsync")

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Any, ...]:
        self._require_context()
        assert stream in self.streams
        assert ctypes.sizeof(self.live[source]) >= size
        self._coming.append((target, source, size))
        return self._answer("cuMemcpyDtoHAsync")

    def cuStreamCreate(self, flags: int) -> tuple[Any, ...]:
        self._require_context()
        assert flags == 0
        answer = self._answer("cuStreamCreate", 77)
        if not int(answer[0]):
            self.streams.add(77)
        return answer

    def cuStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self._require_context()
        self.streams.remove(stream)
        return self._answer("cuStreamDestroy")

    def cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self.synchronized.append(stream)
        for copy in self._coming:
            ctypes.memmove(*copy)
        self._coming.clear()
        return self._answer("cuStreamSynchronize")

    def cuGetErrorName(self, error: int) -> tuple[Any, ...]:
        return (self.CUresult(0), self.CUresult(error).name.encode())

    def _function(self, symbol: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            filled = [a._obj for a in arguments if hasattr(a, "_obj")]
            code, *values = getattr(self, symbol.removesuffix("_v2"))(*(a for a in arguments if not hasattr(a, "_obj")))
            for place, value in zip(filled, values, strict=True):
                if value is not None:
                    place.value = value
            return int(code)

        return call

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        """Take the place of the real one in this process."""
        monkeypatch.setattr(driver, "_function", self._function)
        return self


_DRIVER = """
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static int step = 0;
static int fails(const char *call) { const char *f = getenv("FAKE_CUDA_FAIL"); return f && !strcmp(f, call); }
static size_t bytes(const char *name) { const char *v = getenv(name); return v ? strtoull(v, 0, 10) : (size_t)80 << 30; }
/* every call checks that the one before it was made: CUDA refuses another order too */
int cuInit(unsigned flags) { if (fails("cuInit")) return 100; step = 1; return flags; }
int cuDeviceGet(int *device, int ordinal) { if (fails("cuDeviceGet")) return 101; if (step != 1) return 3; *device = ordinal + 5; step = 2; return 0; }
int held = 0;
int cuDevicePrimaryCtxRetain(void **context, int device) { if (fails("cuDevicePrimaryCtxRetain")) return 2; if (step != 2 || device != 5) return 3; *context = (void *)0x7fff12345678; step = 3; held++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { if (device != 5 || !held) return 101; held--; return 0; }
int cuCtxSetCurrent(void *context) { if (step != 3 || context != (void *)0x7fff12345678) return 201; step = 4; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { if (step != 4) return 201; *free = bytes("FAKE_CUDA_FREE"); *total = (size_t)80 << 30; return 0; }
int cuGetErrorName(int code, const char **name) { *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : 0; return *name ? 0 : 1; }
/* memory is the host's; what goes to the host is there when the stream was waited for */
static struct { void *to; uintptr_t from; size_t size; } coming[64];
static int copies = 0;
int allocations = 0, streams = 0;
int cuStreamCreate(void **stream, unsigned flags) { if (step != 4) return 201; if (flags) return 1; *stream = (void *)0x77; streams++; return 0; }
int cuStreamDestroy_v2(void *stream) { if (stream != (void *)0x77) return 400; streams--; return 0; }
int cuMemAlloc_v2(uintptr_t *address, size_t size) { if (step != 4) return 201; if (!size) return 1; if (fails("cuMemAlloc")) return 2; *address = (uintptr_t)malloc(size); allocations++; return 0; }
int cuMemFree_v2(uintptr_t address) { free((void *)address); allocations--; return 0; }
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t size, void *stream) { if (stream != (void *)0x77) return 400; memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t size, void *stream) { if (stream != (void *)0x77 || copies == 64) return 400; coming[copies].to = to; coming[copies].from = from; coming[copies++].size = size; return 0; }
int cuStreamSynchronize(void *stream) { if (stream != (void *)0x77) return 400; if (fails("cuStreamSynchronize")) return (int)bytes("FAKE_CUDA_CODE"); while (copies) { copies--; memcpy(coming[copies].to, (void *)coming[copies].from, coming[copies].size); } return 0; }
"""


def build_driver(folder: Path) -> Path:
    """A libcuda.so.1 without a GPU, for ctypes and for LD_LIBRARY_PATH; skips where there is no C compiler.

    FAKE_CUDA_FAIL names the call that fails, FAKE_CUDA_CODE the number with which it does in cuStreamSynchronize,
    FAKE_CUDA_FREE gives the free memory in bytes. ``allocations``, ``streams`` and ``held`` count what is not
    given back.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a stand-in for the CUDA driver needs Linux and a C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "driver.c").write_text(_DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, folder / "driver.c"], check=True)
    return library
