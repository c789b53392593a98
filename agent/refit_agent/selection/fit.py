"""Whether one engine runs on one target: operating system, driver, GPU, and at last the runtime."""

from __future__ import annotations

from typing import NamedTuple

from refit_agent.machine import Gpu, InstalledRuntime, Machine, version_tuple
from refit_agent.manifest import Engine
from refit_agent.selection.records import Tier
from refit_agent.selection.versions import Loader, Misfit, loader

_AMPERE = (8, 0)
#: What TensorRT-RTX 1.x names when it refuses another GPU. Newer GPUs than the newest here are let through.
_RTX = frozenset([(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
_RTX_NEWER = (12, 0)


class Fit(NamedTuple):
    """How well it fits; see `records.Candidate`."""

    tier: Tier
    runtime: InstalledRuntime
    reason: str


def os_misfit(engine: Engine, machine: Machine) -> Misfit | None:
    """Whether the engine is for another operating system; an engine that names none is for all."""
    if not engine.os or machine.os in engine.os:
        return None
    named = " or ".join(engine.os)
    return Misfit("wrong-os", f"built for {named}; this machine runs {machine.os}", named)


def cpu_fit(engine: Engine, machine: Machine) -> Fit | Misfit:
    """An ONNX Runtime engine on the CPU."""
    found = loader(engine, machine)
    if isinstance(found, Misfit):
        return found
    return Fit("cpu", found.runtime, f"runs on the CPU: {found.reason}")


def gpu_fit(engine: Engine, gpu: Gpu, machine: Machine) -> Fit | Misfit:
    """A TensorRT or TensorRT-RTX engine on ``gpu``. What no installation can mend is asked first."""
    place = _rtx_place(engine, gpu) if engine.runtime == "tensorrt-rtx" else _place(engine, gpu)
    if isinstance(place, Misfit):
        return place
    found: Loader | Misfit | None = _trt_llm_misfit(engine, gpu, machine, place[0])
    if isinstance(found, Misfit):
        return found
    found = _min_driver_misfit(engine, machine.driver)
    if found is None:
        found = loader(engine, machine)
    if isinstance(found, Misfit):
        return found
    tier, why = place
    return Fit(tier, found.runtime, f"{why}; {found.reason}")


def _place(engine: Engine, gpu: Gpu) -> tuple[Tier, str] | Misfit:
    misfit = _capability_misfit(engine, gpu)
    if misfit is not None:
        return misfit
    here = f"{gpu.name} (compute capability {gpu.compute_capability})"
    if engine.hardware_compatibility == "ampere-plus":
        return "ampere-plus", f"built for every GPU from Ampere on, which {here} is"
    if engine.gpu is not None and _model(engine.gpu) == _model(gpu.name):
        return "this-gpu", f"built on this very GPU model, {here}"
    if engine.hardware_compatibility == "same-compute-capability":
        return "same-compute-capability", f"built for every GPU of compute capability {gpu.compute_capability}"
    return (
        "same-sm-unpromised",
        f"built on {engine.gpu or 'an unnamed GPU'} of the same compute capability as {here}; "
        "TensorRT does not promise that it works, so it is checked first",
    )


def _trt_llm_misfit(engine: Engine, gpu: Gpu, machine: Machine, tier: Tier) -> Misfit | None:
    """What an engine of TensorRT-LLM wants besides: as many GPUs of one model as it has plans, ``gpu`` the first."""
    if engine.config is None:
        return None
    if tier == "same-sm-unpromised":
        return Misfit(
            "other-gpu-model",
            f"built on {engine.gpu}; {gpu.name} is another GPU of the same compute capability, on which TensorRT does "
            "not promise that it works, and an engine of TensorRT-LLM cannot be run by itself to see",
            f"{engine.gpu}",
        )
    count = len(engine.plans)
    # TensorRT-LLM gives rank after rank the next GPU; a MIG slice cannot talk to another one.
    alike = [g for g in machine.gpus if g.index >= gpu.index and _alike(g, gpu) and not g.mig]
    if count == 1 or len(alike) >= count:
        return None
    return Misfit(
        "too-few-gpus",
        f"it is spread over {count} GPUs of one model, and from cuda:{gpu.index} on this machine has {len(alike)} "
        f"{gpu.name} (compute capability {gpu.compute_capability})",
        f"{count} GPUs of one model",
    )


def _alike(one: Gpu, other: Gpu) -> bool:
    return _model(one.name) == _model(other.name) and one.compute_capability == other.compute_capability


def _rtx_place(engine: Engine, gpu: Gpu) -> tuple[Tier, str] | Misfit:
    capability = version_tuple(gpu.compute_capability)
    if capability not in _RTX and capability < _RTX_NEWER:
        named = ", ".join(f"{major}.{minor}" for major, minor in sorted(_RTX))
        return Misfit(
            "gpu-unsupported-by-runtime",
            f"TensorRT-RTX supports compute capability {named}; this GPU, {gpu.name}, has {gpu.compute_capability}",
            "a GPU that TensorRT-RTX supports",
        )
    if engine.compute_capabilities or engine.min_compute_capability is not None:
        misfit = _capability_misfit(engine, gpu)
        if misfit is not None:
            return misfit
    return "rtx", f"a TensorRT-RTX plan, compiled for {gpu.name} when it is loaded"


def _capability_misfit(engine: Engine, gpu: Gpu) -> Misfit | None:
    capability = version_tuple(gpu.compute_capability)
    if engine.hardware_compatibility == "ampere-plus":
        least = max(version_tuple(engine.min_compute_capability or "8.0"), _AMPERE)
        if capability >= least:
            return None
        named = f"{least[0]}.{least[1]} or newer"
    else:
        if capability in [version_tuple(c) for c in engine.compute_capabilities]:
            return None
        named = " or ".join(engine.compute_capabilities) or "that the manifest does not name"
    return Misfit(
        "wrong-compute-capability",
        f"built for compute capability {named}; this GPU, {gpu.name}, has {gpu.compute_capability}",
        f"compute capability {named}",
    )


def _min_driver_misfit(engine: Engine, driver: str) -> Misfit | None:
    if engine.min_driver is None or version_tuple(driver) >= version_tuple(engine.min_driver):
        return None
    return Misfit(
        "driver-too-old",
        f"the NVIDIA driver {driver or 'of unknown version'} is too old: the engine needs {engine.min_driver} "
        "or newer: update the NVIDIA driver",
        f"NVIDIA driver {engine.min_driver} or newer (update the NVIDIA driver)",
    )


def _model(name: str) -> str:
    """Older drivers leave the maker's name away: "A100-SXM4-40GB"."""
    return " ".join(name.split()).lower().removeprefix("nvidia ")
