"""What the build uses of TensorRT is what its Python modules have: 8.6.0, 10.16 and 11.4. Needs no GPU.

10.16 and 11.4 are the real binding packages, whose libraries are replaced by empty ones that define the handful of
functions they link to; nothing is called. 8.6.0 is looked at where REFIT_AGENT_TENSORRT86 names a folder that holds
its package ``tensorrt`` (for CPython 3.10), and REFIT_AGENT_PYTHON310 that interpreter if the tests run in another.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import refit_agent
from module_contract import Answers, ask, faults_of, installed, uses
from refit_agent.authoring.build import builder
from refit_agent.authoring.build.options import BuilderVersion, BuildOptions, settle
from refit_agent.authoring.errors import BuilderLacks

SOURCE = Path(refit_agent.__file__).parent / "authoring" / "build"
#: Version -> its distribution, and the number in its libraries' names.
BINDINGS = {"10.16.1.11": ("tensorrt-cu12-bindings", 10), "11.4.0.106": ("tensorrt-cu13-bindings", 11)}
#: Read when the tests are collected: their fixtures clear all settings of ours.
FOLDER_86 = os.environ.get("REFIT_AGENT_TENSORRT86", "")
PYTHON_310 = os.environ.get("REFIT_AGENT_PYTHON310", sys.executable)

# ---------------------------------------------------------------- what is used

#: File -> expression -> the class that it is an instance of; "" is the module.
TYPES: dict[str, dict[str, str]] = {
    "builder.py": {
        "module": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "config.get_timing_cache()": "ITimingCache",
        "added": "IOptimizationProfile",
        "tensor": "ITensor",
        "tensors[name]": "ITensor",
        "flags": "NetworkDefinitionCreationFlag",
    },
    "weight_list.py": {"module": "", "runtime": "Runtime", "engine": "ICudaEngine"},
}

_NAME = r"\w+: str"
_INT = r"\w+: (int|typing\.SupportsInt|typing\.SupportsIndex)"
_INTS = r"(List\[int\]|collections\.abc\.Sequence\[typing\.SupportsInt\])"
_BUFFER = r"\w+: [\w.]*[Bb]uffer"
_SELF = r"\(self: [\w.]+"
#: (class, name) -> how its signature must read; "property", "settable", "class" or "callable" where it has none.
CONTRACT: dict[tuple[str, str], str] = {
    ("", "Builder"): "class",
    ("", "OnnxParser"): "class",
    ("", "Runtime"): "class",
    ("", "BuilderFlag"): "class",
    ("", "NetworkDefinitionCreationFlag"): "class",
    ("", "HardwareCompatibilityLevel"): "class",
    ("", "MemoryPoolType"): "class",
    ("", "__version__"): "str",
    ("", "init_libnvinfer_plugins"): rf"\(logger: \S+, {_NAME}\) -> bool",
    ("Builder", "create_network"): rf"{_SELF}, flags: (int|typing\.SupportsInt) = 0\) -> [\w.]+INetworkDefinition",
    ("Builder", "create_builder_config"): rf"{_SELF}\) -> [\w.]+IBuilderConfig",
    ("Builder", "create_optimization_profile"): rf"{_SELF}\) -> [\w.]+IOptimizationProfile",
    ("Builder", "build_serialized_network"): rf"{_SELF}, network: [\w.]+, config: [\w.]+\) -> [\w.]+IHostMemory",
    ("INetworkDefinition", "num_inputs"): "property",
    ("INetworkDefinition", "get_input"): rf"{_SELF}, {_INT}\) -> [\w.]+ITensor",
    ("INetworkDefinition", "mark_weights_refittable"): rf"{_SELF}, {_NAME}\) -> bool",
    ("INetworkDefinition", "are_weights_marked_refittable"): rf"{_SELF}, {_NAME}\) -> bool",
    ("OnnxParser", "parse_from_file"): rf"{_SELF}, {_NAME}\) -> bool",
    ("OnnxParser", "num_errors"): "property",
    ("OnnxParser", "get_error"): rf"{_SELF}, {_INT}\) -> \S*IParserError",
    ("ParserError", "node"): rf"{_SELF}\) -> int",
    ("ParserError", "desc"): rf"{_SELF}\) -> str",
    ("IBuilderConfig", "set_flag"): rf"{_SELF}, \w+: [\w.]+BuilderFlag\) -> None",
    ("IBuilderConfig", "clear_flag"): rf"{_SELF}, \w+: [\w.]+BuilderFlag\) -> None",
    ("IBuilderConfig", "hardware_compatibility_level"): "settable",
    ("IBuilderConfig", "builder_optimization_level"): "settable",
    ("IBuilderConfig", "set_memory_pool_limit"): rf"{_SELF}, \w+: [\w.]+MemoryPoolType, {_INT}\) -> None",
    ("IBuilderConfig", "add_optimization_profile"): rf"{_SELF}, \w+: [\w.]+IOptimizationProfile\) -> int",
    ("IBuilderConfig", "create_timing_cache"): rf"{_SELF}, {_BUFFER}\) -> [\w.]+ITimingCache",
    ("IBuilderConfig", "set_timing_cache"): rf"{_SELF}, cache: [\w.]+ITimingCache, \w+: bool\) -> bool",
    ("IBuilderConfig", "get_timing_cache"): rf"{_SELF}\) -> [\w.]+ITimingCache",
    ("ITimingCache", "serialize"): rf"{_SELF}\) -> [\w.]+IHostMemory",
    ("IOptimizationProfile", "set_shape"): rf"{_SELF}, {_NAME}, \w+: [\w.]+Dims, \w+: [\w.]+Dims, \w+: [\w.]+Dims\) -> None",
    ("IOptimizationProfile", "set_shape_input"): rf"{_SELF}, {_NAME}, \w+: {_INTS}, \w+: {_INTS}, \w+: {_INTS}\) -> None",
    ("ITensor", "name"): "property",
    ("ITensor", "shape"): "property",
    ("ITensor", "is_shape_tensor"): "property",
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"): "member",
    ("Runtime", "engine_host_code_allowed"): "settable",
    ("Runtime", "deserialize_cuda_engine"): rf"{_SELF}, {_BUFFER}\) -> [\w.]+ICudaEngine",
    ("ICudaEngine", "refittable"): "property",
}  # fmt: skip

#: What our source relies on without naming it as an attribute.
ALSO: dict[tuple[str, str], str] = {
    ("Builder", "__init__"): rf"{_SELF}, logger: [\w.]+ILogger\) -> None",
    ("OnnxParser", "__init__"): rf"{_SELF}, network: [\w.]+, logger: [\w.]+ILogger\) -> None",
}

#: What only some versions have; the code asks before it uses it.
OPTIONAL = {"EXPLICIT_BATCH", "mark_weights_refittable", "are_weights_marked_refittable"}

#: An option -> the member that it takes. Only what is refused beforehand may be missing.
MEMBERS: list[tuple[dict[str, Any], str]] = [
    ({"strip": "plan"}, "BuilderFlag.STRIP_PLAN"),
    ({"strip": "zeros"}, "BuilderFlag.REFIT"),
    ({"strip": "none", "refit": "identical"}, "BuilderFlag.REFIT_IDENTICAL"),
    ({"strip": "none", "refittable": ("a",)}, "BuilderFlag.REFIT_INDIVIDUAL"),
    ({"strip": "none", "version_compatible": True}, "BuilderFlag.VERSION_COMPATIBLE"),
    ({"strip": "none", "version_compatible": True, "exclude_lean_runtime": True}, "BuilderFlag.EXCLUDE_LEAN_RUNTIME"),
    ({"tf32": False}, "BuilderFlag.TF32"),
    ({"fp16": True}, "BuilderFlag.FP16"),
    ({"bf16": True}, "BuilderFlag.BF16"),
    ({"int8": True}, "BuilderFlag.INT8"),
    ({"fp8": True}, "BuilderFlag.FP8"),
    ({"strongly_typed": True}, "NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
    ({"hardware_compatibility": "ampere-plus"}, "HardwareCompatibilityLevel.AMPERE_PLUS"),
    ({"hardware_compatibility": "same-compute-capability"}, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
    ({"memory_pools": {"workspace": 1}}, "MemoryPoolType.WORKSPACE"),
]


def test_every_use_of_tensorrt_has_a_line_in_the_contract() -> None:
    """And no line is there for what nothing uses."""
    found = {use for file, types in TYPES.items() for use in uses(SOURCE / file, types)}
    assert found == set(CONTRACT)


def test_every_member_that_the_builder_looks_up_is_in_the_table() -> None:
    """The names in its tables, and no others."""
    looked_up = {f"BuilderFlag.{name}" for name in builder._REFIT_FLAGS.values()}
    looked_up |= {f"HardwareCompatibilityLevel.{name}" for name in builder._HARDWARE.values()}
    looked_up |= {f"MemoryPoolType.{name}" for name in builder._POOLS.values()}
    listed = {member for _, member in MEMBERS}
    # The pool came with some 10.x, which nobody knows exactly: it is looked up and not promised.
    assert looked_up - listed == {"MemoryPoolType.TACTIC_SHARED_MEMORY"}


# ---------------------------------------------------------------- what there is

WHOLE = {**CONTRACT, **ALSO}


def ask_in(python: str, module: str, folder: Path, libraries: Path) -> Answers:
    """What the module in ``folder`` says of every name of the contract, and of every member that an option takes."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env = {**own, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(libraries)}
    return ask(module, WHOLE, env, more=[member for _, member in MEMBERS], python=python)


_LINKED = ("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins")  # fmt: skip


@functools.cache
def bindings(version: str) -> Answers:
    """The answers of the real bindings of that version, which are installed once beside the tests."""
    distribution, number = BINDINGS[version]
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stand-ins for TensorRT's libraries need Linux and a C compiler")

    def stand_ins(folder: Path) -> None:
        source = folder / "linked.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _LINKED))
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            name = f"lib{library}.so.{number}"
            target = folder / "tensorrt_bindings" / name
            subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source, f"-Wl,-soname,{name}"], check=True)

    folder = installed(f"{distribution}-{version}", [f"{distribution}=={version}"], stand_ins)
    return ask_in(sys.executable, "tensorrt_bindings", folder, folder / "tensorrt_bindings")


@functools.cache
def of_86() -> Answers:
    """The answers of 8.6.0."""
    if not FOLDER_86:
        pytest.skip("REFIT_AGENT_TENSORRT86 does not name the folder of TensorRT 8.6's Python package")
    folder = Path(FOLDER_86)
    return ask_in(PYTHON_310, "tensorrt", folder, folder / "tensorrt")


def answers_of(version: str) -> Answers:
    return of_86() if version == "8.6.0" else bindings(version)


VERSIONS = ["8.6.0", *BINDINGS]


@pytest.mark.parametrize("version", VERSIONS)
def test_this_version_has_all_that_the_build_uses(version: str) -> None:
    """Every function with the arguments that we give it, every property that we set."""
    answers = answers_of(version)
    assert answers["__version__"].startswith(version)
    assert faults_of(answers, WHOLE, without=OPTIONAL) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("options", "member"), MEMBERS, ids=[member for _, member in MEMBERS])
def test_what_a_version_lacks_is_refused_beforehand(version: str, options: dict[str, Any], member: str) -> None:
    """And what it has is not, unless another option stands against it."""
    has = answers_of(version)[member] == "member"
    try:
        settle(BuildOptions(**options), BuilderVersion("tensorrt", version))
        assert has, f"{version} has no {member}, and it was let through"
    except BuilderLacks:
        assert not has, f"{version} has {member}, and it was refused"


def test_single_weights_can_be_marked_where_there_is_a_flag_for_them() -> None:
    """From 10 on; before, the flag is refused."""
    for version in BINDINGS:
        assert answers_of(version)["INetworkDefinition.mark_weights_refittable"]


def test_a_contract_that_is_broken_is_seen() -> None:
    """The check itself: a name gone, a signature changed, a property that cannot be set any more."""
    answers = dict(bindings("10.16.1.11"))
    answers["Builder.create_network"] = "create_network(self: a.Builder) -> a.INetworkDefinition"
    answers["IBuilderConfig.builder_optimization_level"] = "property"
    answers["OnnxParser.num_errors"] = None
    assert [fault.split(":")[0] for fault in faults_of(answers, WHOLE, without=OPTIONAL)] == [
        "Builder.create_network",
        "OnnxParser.num_errors",
        "IBuilderConfig.builder_optimization_level",
    ]
