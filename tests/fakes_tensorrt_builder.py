"""A stand-in for a TensorRT that builds: `fakes_tensorrt.FakeTensorRt` with a parser and a builder.

It reads the ONNX file for real and names weights as the parser of its version does (a BatchNormalization with
constant parameters becomes two numbered ones), refuses the combinations of flags that the real one refuses, and
writes a plan that its own Runtime opens. What it was told lies in the plan, as JSON: see `told`.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from fakes_tensorrt import Dims, FakeTensorRt, plan
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.weight_map.batch_norm import fold, widen
from refit_agent.weights import OnnxWeights

_FLAGS = ("FP16", "INT8", "REFIT", "TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8")
_FLAGS_10 = ("BF16", "STRIP_PLAN", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL")
_PRECISIONS = {"FP16", "BF16", "INT8", "FP8"}
_MEMBERS = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8"}


def told(plan_path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the builder was told, out of a plan: flags, level, profile, pools, hardware, network flags, values."""
    body: dict[str, Any] = json.loads(Path(plan_path).read_bytes()[28:])
    return body


def machine(*runtimes: tuple[str, str, str], gpus: int = 1, **changes: Any) -> Machine:
    """A machine with H100s and the runtimes (module, version, folder)."""
    found = [Gpu(index=i, name="NVIDIA H100 80GB HBM3", uuid=f"GPU-{i}", compute_capability="9.0") for i in range(gpus)]
    installed = tuple(InstalledRuntime(module=m, version=v, folder=f) for m, v, f in runtimes)
    facts: dict[str, Any] = {"os": "linux", "arch": "x86_64", "gpus": tuple(found), "driver": "580.159.04"}
    return Machine(**{**facts, "runtimes": installed, **changes})


def write_builder(folder: Path, name: str = "tensorrt", version: str = "10.16.1.11", **faults: Any) -> Path:
    """A folder for a worker's search path with the module ``name``, which builds."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    code = (
        "import sys\nimport fakes_tensorrt_builder as f\n"
        f"sys.modules[__name__] = f.FakeBuilder({name!r}, {version!r}, **{faults!r})\n"
    )
    (folder / name / "__init__.py").write_text(code)
    return folder


class FakeBuilder(FakeTensorRt):
    """A full TensorRT of ``version``; before 10, from 11 on and as tensorrt_rtx with the flags that these have.

    Args (besides those of FakeTensorRt):
        no_builder, no_plan, parse_error: that step fails.
        drop: names of weights that the engine does not ask for after all.
        fold_zeros: weights that are zero throughout are folded away.
        unmarkable: names that cannot be marked refittable.
        stale_cache: a timing cache that is not empty is refused.
        unrefittable: the plan cannot be refitted, whatever was asked.
        refuse_without_lean: its runtime does not open a plan that leaves the lean runtime out.
        crash, hang, shout, garbage: what the build does instead of building.
    """

    def __init__(self, name: str = "tensorrt", version: str = "10.16.1.11", **faults: Any) -> None:
        super().__init__(name, version, **faults)
        major = int(version.split(".")[0])
        self.rtx = name == "tensorrt_rtx"
        typed = self.rtx or major >= 11
        names = [*_FLAGS, *(_FLAGS_10 if self.rtx or major >= 10 else ())]
        self.BuilderFlag = enum.IntEnum("BuilderFlag", [n for n in names if not (typed and n in _PRECISIONS)], start=0)  # type: ignore[misc]
        kinds = ["EXPLICIT_BATCH", "STRONGLY_TYPED"][1 if major >= 11 else 0 : 1 if major < 9 and not self.rtx else 2]
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", kinds, start=0)  # type: ignore[misc]
        levels = ["NONE", "AMPERE_PLUS", *(["SAME_COMPUTE_CAPABILITY"] if major >= 10 else [])]
        self.HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", levels, start=0)  # type: ignore[misc]
        pools = ["WORKSPACE", *(["TACTIC_SHARED_MEMORY"] if major >= 10 else [])]
        self.MemoryPoolType = enum.IntEnum("MemoryPoolType", pools, start=0)  # type: ignore[misc]
        self.plugins: list[str] = []
        self.Builder = _builder_class(self)
        self.OnnxParser = _parser_class(self)
        if "refuse_without_lean" in faults:
            self._refuse_without_lean()

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        self.plugins.append(namespace)
        return True

    def _refuse_without_lean(self) -> None:
        plain = self.Runtime.deserialize_cuda_engine

        def refuse(runtime: Any, data: Any) -> Any:
            engine = plain(runtime, data)
            return None if engine is not None and engine.body["lean_left_out"] else engine

        self.Runtime.deserialize_cuda_engine = refuse


class _Weight:
    def __init__(self, member: str, array: np.ndarray) -> None:
        self.member, self.raw, self.count = member, array.tobytes(), array.size


def _parser_class(module: FakeBuilder) -> type:
    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._logger = network, logger
            self._errors = module.faults.get("parse_error", [])
            self.num_errors = len(self._errors)

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(node=lambda: index, desc=lambda: self._errors[index])

        def parse_from_file(self, path: str) -> bool:
            if self._errors:
                return False
            for value in onnx.load(path, load_external_data=False).graph.input:
                dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
                shape_tensor = value.name in module.faults.get("shape_tensors", ())
                tensor = SimpleNamespace(name=value.name, shape=Dims(dims), is_shape_tensor=shape_tensor)
                self._network.tensors.append(tensor)
            with OnnxWeights(path) as weights:
                self._network.weights = dict(_named(weights, module))
            return True

    return OnnxParser


def _named(weights: OnnxWeights, module: FakeBuilder) -> Iterable[tuple[str, _Weight]]:
    """Weights as the parser of this version names them."""
    version = tuple(int(n) for n in module.__version__.split(".")[:2])
    new = module.rtx or version >= (10, 14)
    base = "tmp_refittable_weight" if new else "tmp_batch_norm_weight" if version >= (10, 0) else "tmp_weight"
    folded: dict[str, None] = {}
    made = 0
    for norm in weights.batch_norms:
        names = (norm.scale, norm.bias, norm.mean, norm.var)
        folded.update(dict.fromkeys(names))
        values = [widen(weights[n].array().reshape(-1), weights[n].dtype) for n in names]
        for array in fold(*values, norm.epsilon, "float32"):
            yield base if made == 0 else f"{base}_{made - 1}", _Weight("FLOAT", array)
            made += 1
    for key in weights:
        ref = weights[key]
        if ref.dtype in _MEMBERS and key not in folded:
            yield key, _Weight(_MEMBERS[ref.dtype], ref.array())


class _Network:
    def __init__(self, flags: int, module: FakeBuilder) -> None:
        self.flags, self._module = flags, module
        self.tensors: list[Any] = []
        self.weights: dict[str, _Weight] = {}
        self.marked: set[str] = set()

    @property
    def num_inputs(self) -> int:
        return len(self.tensors)

    def get_input(self, index: int) -> Any:
        return self.tensors[index]

    def mark_weights_refittable(self, name: str) -> bool:
        if name not in self.weights or name in self._module.faults.get("unmarkable", ()):
            return False
        self.marked.add(name)
        return True

    def are_weights_marked_refittable(self, name: str) -> bool:
        return name in self.marked


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(best), list(most)]

    def set_shape_input(self, name: str, least: list[int], best: list[int], most: list[int]) -> None:
        self.shapes[name] = ["values", least, best, most]


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> Any:
        return (ctypes.c_char * len(self.data)).from_buffer_copy(self.data)


class _Config:
    def __init__(self, module: FakeBuilder) -> None:
        self._module = module
        self.flags = {module.BuilderFlag.TF32}
        self.hardware_compatibility_level = module.HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.pools: dict[str, int] = {}
        self.profiles: list[Any] = []
        self.cache: _Cache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        if "no_profile" in self._module.faults:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> _Cache:
        return _Cache(data)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data and "stale_cache" in self._module.faults:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> _Cache | None:
        return self.cache


def _builder_class(module: FakeBuilder) -> type:
    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            if "no_builder" in module.faults:
                logger.say("ERROR", "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> _Network:
            return _Network(flags, module)

        def create_builder_config(self) -> _Config:
            return _Config(module)

        def create_optimization_profile(self) -> _Profile:
            return _Profile()

        def build_serialized_network(self, network: _Network, config: _Config) -> Any:
            _misbehave(module)
            names = {flag.name for flag in config.flags}
            fault = _refusal(names, module) or _shape_fault(network, config)
            if fault or "no_plan" in module.faults:
                self._logger.say("ERROR", fault or "out of memory")
                return None
            self._logger.say("WARNING", "a warning")
            if config.cache is not None:
                config.cache.data += b"measured"
            data = _plan(module, network, config, names)
            return (ctypes.c_char * len(data)).from_buffer_copy(data)

    return Builder


def _misbehave(module: FakeBuilder) -> None:
    if "crash" in module.faults:
        print("last words", flush=True)
        os.abort()
    if "hang" in module.faults:
        time.sleep(600)
    while "shout" in module.faults:
        print("x" * (1 << 20), flush=True)
    if "garbage" in module.faults:
        raise ValueError("what no binding raises")


def _refusal(names: set[str], module: FakeBuilder) -> str:
    """The real assertions."""
    if not module.prototypes and not module.rtx and {"REFIT", "VERSION_COMPATIBLE"} <= names:
        return "kVERSION_COMPATIBLE can not be set if kREFIT is set."
    if len(names & {"REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL"}) > 1:
        return "kREFIT, kREFIT_IDENTICAL and kREFIT_INDIVIDUAL are mutually exclusive."
    if "EXCLUDE_LEAN_RUNTIME" in names and "VERSION_COMPATIBLE" not in names:
        return "!flags[kEXCLUDE_LEAN_RUNTIME] || flags[kVERSION_COMPATIBLE]"
    return ""


def _shape_fault(network: _Network, config: _Config) -> str:
    dynamic = [t.name for t in network.tensors if t.is_shape_tensor or -1 in tuple(t.shape)]
    given = config.profiles[0].shapes if config.profiles else {}
    return "" if all(name in given for name in dynamic) else "no optimization profile has been defined"


def _plan(module: FakeBuilder, network: _Network, config: _Config, names: set[str]) -> bytes:
    weights = dict(reversed(network.weights.items()))  # its own order, as the real one has
    if "REFIT_INDIVIDUAL" in names:
        weights = {name: weight for name, weight in weights.items() if name in network.marked}
    if "fold_zeros" in module.faults:
        weights = {name: weight for name, weight in weights.items() if weight.raw.strip(b"\0")}
    for name in module.faults.get("drop", ()):
        del weights[name]
    refittable = bool(names & {"REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL"}) and "unrefittable" not in module.faults
    stripped = "STRIP_PLAN" in names
    version = (*(int(n) for n in module.__version__.split(".")), 0, 0, 0)[:4]
    lean = "VERSION_COMPATIBLE" in names
    data = plan(
        {name: (w.member, w.count) for name, w in weights.items()},
        version=version,
        stripped=stripped,
        refittable=refittable,
        values={} if stripped else {name: w.raw for name, w in weights.items()},
        host_code=lean and "EXCLUDE_LEAN_RUNTIME" not in names,
        lean_left_out="EXCLUDE_LEAN_RUNTIME" in names,
        flags=sorted(names),
        network_flags=network.flags,
        level=config.builder_optimization_level,
        hardware=config.hardware_compatibility_level.name,
        pools=config.pools,
        profiles=[profile.shapes for profile in config.profiles],
        code="kernel " * 2000,  # a plan is mostly code, which compresses well
    )
    return b"vtrt" + data[4:] if module.rtx else data
