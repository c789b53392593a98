"""Asks the driver through NVML (nvidia-ml-py), which needs no CUDA context and survives without a driver."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, NamedTuple

from refit_agent.machine import Gpu

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


class Device(NamedTuple):
    """One physical GPU in PCI order.

    ``units`` is what a CUDA process can be given of it: the GPU itself, or its MIG slices, or nothing
    (``problem`` then says why). ``speed`` is cores times MHz, 0 when unknown.
    """

    uuid: str
    name: str
    units: tuple[Gpu, ...]
    speed: int = 0
    problem: str = ""


class Answer(NamedTuple):
    """What NVML said. ``reason`` is words when ``devices`` is empty; ``lasting`` is False when asking
    again in a minute could give something else with no change that a fingerprint sees."""

    devices: tuple[Device, ...] = ()
    driver: str = ""
    cuda: str = ""
    reason: str = ""
    lasting: bool = True


def ask() -> Answer:
    """Every GPU of the machine, whatever CUDA_VISIBLE_DEVICES says. Raises nothing of NVML's.

    Safe from any thread; NVML counts its users, so that a host app's own session goes on.
    """
    try:
        import pynvml
    except ImportError:
        return Answer(reason="the Python package nvidia-ml-py, which asks the NVIDIA driver, is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _no_driver(pynvml, error)
    try:
        return _devices(pynvml)
    except pynvml.NVMLError as error:
        return Answer(reason=f"the NVIDIA driver did not answer: {error}", lasting=False)
    finally:
        with contextlib.suppress(pynvml.NVMLError):  # the driver went away meanwhile; the answer stands
            pynvml.nvmlShutdown()


def _no_driver(nvml: Any, error: Exception) -> Answer:
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return Answer(reason=f"no NVIDIA driver: {_LIBRARY} was not found")
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return Answer(reason=f"the NVIDIA driver is not running: {_LIBRARY} is there, its kernel module is not loaded")
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return Answer(
            reason="the NVIDIA driver's library and kernel module differ in version: restart after the update",
            lasting=False,
        )
    if code == nvml.NVML_ERROR_NO_PERMISSION:
        return Answer(reason="this user may not open the NVIDIA devices (/dev/nvidia*)", lasting=False)
    return Answer(reason=f"the NVIDIA driver did not answer: {error}", lasting=False)


def _devices(nvml: Any) -> Answer:
    driver = _text(_optional(nvml, "nvmlSystemGetDriverVersion"))
    number = _optional(nvml, "nvmlSystemGetCudaDriverVersion_v2") or 0
    devices = [_device(nvml, i) for i in range(nvml.nvmlDeviceGetCount())]
    if all(d.units and d.units[0].pci for d in devices):
        # NVML promises no order; with a GPU that told no address its own order is all there is.
        devices.sort(key=lambda d: d.units[0].pci)
    return Answer(
        devices=tuple(devices),
        driver=driver,
        cuda=f"{number // 1000}.{number % 1000 // 10}" if number else "",
        reason="" if devices else "the driver lists no GPU",
        lasting=not any(d.problem for d in devices),
    )


def _device(nvml: Any, number: int) -> Device:
    """The GPU that NVML numbers so; its faults stay its own."""
    uuid = name = ""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        name = _text(nvml.nvmlDeviceGetName(handle))
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError as error:
        return Device(uuid, name, (), problem=f"GPU {number} ({name or 'name unknown'}) does not answer: {error}")
    pci = _optional(nvml, "nvmlDeviceGetPciInfo", handle)
    whole = _gpu(
        nvml, handle, name=name, uuid=uuid, compute_capability=f"{major}.{minor}", pci=_text(getattr(pci, "busId", ""))
    )
    if _mig_is_on(nvml, handle):
        slices = _slices(nvml, handle, whole)
        problem = "" if slices else f"GPU {number} ({name}) is in MIG mode and has no slice (nvidia-smi mig -cgi)"
        return Device(uuid, name, slices, problem=problem)
    cores = _optional(nvml, "nvmlDeviceGetNumGpuCores", handle) or 0
    clock = _optional(nvml, "nvmlDeviceGetMaxClockInfo", handle, getattr(nvml, "NVML_CLOCK_SM", 1)) or 0
    return Device(uuid, name, (whole,), speed=int(cores) * int(clock))


def _mig_is_on(nvml: Any, handle: Any) -> bool:
    mode = _optional(nvml, "nvmlDeviceGetMigMode", handle)  # current, pending
    return bool(mode) and mode[0] == 1


def _slices(nvml: Any, handle: Any, whole: Gpu) -> tuple[Gpu, ...]:
    found = []
    for number in range(_optional(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        # Numbers have holes where a slice was destroyed.
        part = _optional(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        uuid = _text(_optional(nvml, "nvmlDeviceGetUUID", part)) if part is not None else ""
        if not uuid:
            continue
        name = _text(_optional(nvml, "nvmlDeviceGetName", part)) or whole.name + " MIG"
        found.append(
            _gpu(
                nvml,
                part,
                name=name,
                uuid=uuid,
                compute_capability=whole.compute_capability,
                pci=whole.pci,
                mig=True,
                parent_uuid=whole.uuid,
            )
        )
    return tuple(found)


def _gpu(nvml: Any, handle: Any, **known: Any) -> Gpu:
    memory = _optional(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return Gpu(
        index=0,  # given by `visible`
        memory_total=int(getattr(memory, "total", 0)),
        memory_free=None if memory is None else int(memory.free),
        **known,
    )


def _optional(nvml: Any, function: str, *args: Any) -> Any:
    """The function's answer, or None where this driver, this GPU or this nvidia-ml-py has none."""
    try:
        return getattr(nvml, function)(*args)
    except (nvml.NVMLError, AttributeError):
        return None


def _text(value: object) -> str:
    """Old releases of nvidia-ml-py give bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
