"""Which of the installed TensorRT packages builds, and on which GPU; nothing is imported or started."""

from __future__ import annotations

from refit_agent.authoring.build.options import BuilderKind
from refit_agent.authoring.errors import BuilderMissing, BuildOptionsInvalid
from refit_agent.errors import DeviceFailed
from refit_agent.machine import Gpu, InstalledRuntime, Machine, version_tuple

_MODULES: dict[BuilderKind, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def find_builder(machine: Machine, kind: BuilderKind = "tensorrt", version: str = "") -> InstalledRuntime:
    """The newest installed builder of that kind; with ``version`` ("8.6") the newest whose version begins so.

    Raises:
        BuilderMissing: there is none; says what there is instead.
    """
    module = _MODULES[kind]
    wanted = version_tuple(version)
    found = [r for r in machine.installed(module) if version_tuple(r.version)[: len(wanted)] == wanted]
    if found and found[0].version:
        return found[0]
    if found:
        raise BuilderMissing(detail=f"the version of {module} in {found[0].folder or 'the search path'} cannot be read")
    asked = f"{module} {version}".rstrip()
    others = ", ".join(f"{r.module} {r.version}".rstrip() for r in machine.runtimes if r.module != "onnxruntime")
    raise BuilderMissing(detail=f"there is no {asked} here, only {others}" if others else f"there is no {asked} here")


def find_gpu(machine: Machine, index: int | None = None) -> Gpu:
    """The GPU to build on, by CUDA ordinal; the first one if None.

    Raises:
        DeviceFailed: the driver names no GPU. Asked before TensorRT is: without a driver that ends its process.
        BuildOptionsInvalid: no GPU has this ordinal.
    """
    if not machine.gpus:
        raise DeviceFailed(
            detail=f"engines are built on a GPU, and there is none: {machine.no_gpu_reason}",
            hint="Build on a machine with the kind of GPU that the engine is for.",
        )
    if index is None:
        return machine.gpus[0]
    for gpu in machine.gpus:
        if gpu.index == index:
            return gpu
    known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in machine.gpus)
    raise BuildOptionsInvalid(detail=f"--device {index} is no GPU of this machine; there are: {known}")
