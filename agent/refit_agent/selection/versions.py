"""Which installed runtime loads a plan: the rules of versions, and of drivers for CUDA majors."""

from __future__ import annotations

from typing import NamedTuple

from refit_agent.machine import InstalledRuntime, Machine, version_tuple
from refit_agent.manifest import Engine
from refit_agent.selection.records import Code

_Version = tuple[int, ...]

#: The oldest driver major that a runtime built for this CUDA major works with.
_DRIVER_FOR_CUDA = {12: 525, 13: 580}


class Misfit(NamedTuple):
    """Why not: see `records.Refusal`."""

    code: Code
    reason: str
    need: str


class Loader(NamedTuple):
    """The runtime that loads the plan, and in words why it can."""

    runtime: InstalledRuntime
    reason: str


def loader(engine: Engine, machine: Machine) -> Loader | Misfit:
    """The best installed runtime for the engine on this machine, or what is missing.

    The version-compatible way before the exact one, newer before older, and only what the driver bears.
    """
    if engine.runtime == "onnxruntime":
        return _onnxruntime(engine, machine)
    fitting = _rtx(engine, machine) if engine.runtime == "tensorrt-rtx" else _tensorrt(engine, machine)
    if isinstance(fitting, Misfit):
        return fitting
    too_old: Misfit | None = None
    for found in fitting:
        misfit = driver_misfit(found.runtime, machine.driver)
        if misfit is None:
            return found
        too_old = too_old or misfit
    assert too_old is not None
    return too_old


def driver_misfit(runtime: InstalledRuntime, driver: str) -> Misfit | None:
    """Whether the driver is too old for the CUDA that the runtime was built for."""
    needed = _DRIVER_FOR_CUDA.get(runtime.cuda_major)
    if needed is None or version_tuple(driver) >= (needed,):
        return None
    remedy = "update the NVIDIA driver"
    if runtime.cuda_major == 13 and version_tuple(driver) >= (_DRIVER_FOR_CUDA[12],):
        remedy += " or install the cu12 extra"
    return Misfit(
        "driver-too-old",
        f"the NVIDIA driver {driver or 'of unknown version'} is too old for {shown(runtime)}, built for CUDA "
        f"{runtime.cuda_major}, which needs driver {needed} or newer: {remedy}",
        f"NVIDIA driver {needed} or newer ({remedy})",
    )


def _tensorrt(engine: Engine, machine: Machine) -> list[Loader] | Misfit:
    leans = machine.installed("tensorrt_lean") if engine.version_compatible else ()
    fulls = machine.installed("tensorrt")
    ways = [Loader(runtime, lean_loads(engine, runtime.version)) for runtime in leans]
    fitting = [way for way in ways if way.reason]
    fitting += [
        Loader(runtime, f"{shown(runtime)} is the version that built it")
        for runtime in fulls
        if same_release(engine.built_with, runtime.version)
    ]
    if fitting:
        return fitting
    tried = ", ".join(shown(r) for r in (*leans, *fulls))
    built = f"the plan was built with TensorRT {engine.built_with}"
    if not engine.version_compatible:
        need = f"TensorRT {engine.built_with} exactly"
        if tried:
            return Misfit("runtime-version", f"{built} and is for that version alone; installed: {tried}", need)
        return Misfit(
            "runtime-missing",
            f"{built} and is for that version alone; no package 'tensorrt' is installed",
            f"{need} (package 'tensorrt')",
        )
    need = f"tensorrt_lean that loads plans of TensorRT {engine.built_with}"
    if not tried:
        return Misfit(
            "runtime-missing",
            _suited(f"{built}; tensorrt_lean is not installed (pip install 'refit-agent[cu13]')"),
            _suited(f"{need} (pip install 'refit-agent[cu13]')"),
        )
    faults = [_lean_fault(engine.built_with, r) for r in leans]
    return Misfit("runtime-version", f"{built}: {'; '.join(faults) or f'installed is {tried}'}", need)


def lean_loads(engine: Engine, lean: str) -> str:
    """Why tensorrt_lean of version ``lean`` loads this version-compatible plan, in words; "" if it does not."""
    built, version = version_tuple(engine.built_with), version_tuple(lean)
    if not version or _newer(built, version):
        return ""
    if _lean_reads(built, version):
        return f"tensorrt_lean {lean} loads version-compatible plans of TensorRT {engine.built_with}"
    if engine.lean_runtime is not None and version[0] >= 10:
        return f"tensorrt_lean {lean} loads it through the lean runtime of TensorRT {engine.built_with} in the bundle"
    return ""


def _lean_reads(built: _Version, lean: _Version) -> bool:
    if lean[0] >= 11:
        return built >= (10,)
    if lean[0] == 10:
        return built >= (8, 6)
    return lean[0] in (8, 9) and built[0] == lean[0] and built >= (8, 6)


def _lean_fault(built: str, runtime: InstalledRuntime) -> str:
    version = version_tuple(runtime.version)
    if not version:
        return f"the version of the installed {runtime.module} cannot be read"
    if _newer(version_tuple(built), version):
        return f"{shown(runtime)} is older than the plan"
    major = version[0]
    readable = "from 10.0 on" if major >= 11 else "from 8.6 on" if major == 10 else f"of TensorRT {major} from 8.6 on"
    return f"{shown(runtime)} loads plans {readable}"


def _rtx(engine: Engine, machine: Machine) -> list[Loader] | Misfit:
    installed = machine.installed("tensorrt_rtx")
    fitting = [
        Loader(runtime, f"{shown(runtime)} is the version that built it")
        for runtime in installed
        if same_release(engine.built_with, runtime.version)
    ]
    if fitting:
        return fitting
    need = f"TensorRT-RTX {engine.built_with} exactly"
    built = f"the plan was built with TensorRT-RTX {engine.built_with}"
    if not installed:
        return Misfit("runtime-missing", f"{built}; tensorrt_rtx is not installed", f"{need} (package 'tensorrt_rtx')")
    tried = ", ".join(shown(r) for r in installed)
    return Misfit("runtime-version", f"{built} and is for that version alone; installed: {tried}", need)


def _onnxruntime(engine: Engine, machine: Machine) -> Loader | Misfit:
    installed = machine.installed("onnxruntime")
    least = engine.min_runtime or ".".join(str(n) for n in version_tuple(engine.built_with)[:2])
    if not installed:
        return Misfit(
            "runtime-missing",
            _suited("onnxruntime is not installed: pip install 'refit-agent[cpu]'"),
            _suited("onnxruntime (pip install 'refit-agent[cpu]')"),
        )
    newest = installed[0]
    if version_tuple(newest.version) < version_tuple(least):
        return Misfit(
            "runtime-version",
            f"the graph is for ONNX Runtime {least} and newer, and {shown(newest)} is older: "
            + _suited("pip install -U 'refit-agent[cpu]'"),
            _suited(f"onnxruntime {least} or newer (pip install -U 'refit-agent[cpu]')"),
        )
    return Loader(newest, f"{shown(newest)} runs a graph for {least} and newer")


def _suited(text: str) -> str:
    from refit_agent.errors.advice import suited  # for what is missing alone

    return suited(text)


def same_release(built: str, installed: str) -> bool:
    """Whether both name one release: equal in every part that both give, three parts at least."""
    a, b = version_tuple(built), version_tuple(installed)
    common = min(len(a), len(b))
    return common >= 3 and a[:common] == b[:common]


def shown(runtime: InstalledRuntime) -> str:
    """ "tensorrt_lean 11.4.0.106", with the folder where it is not on the search path."""
    where = f" in {runtime.folder}" if runtime.folder else ""
    return f"{runtime.module} {runtime.version or '(version unknown)'}{where}"


def _newer(built: _Version, installed: _Version) -> bool:
    """Whether the plan is newer, in the parts that both give: "8.6" is not older than 8.6.0.12."""
    common = min(len(built), len(installed))
    return built[:common] > installed[:common]
