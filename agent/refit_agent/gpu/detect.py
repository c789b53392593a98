"""`detect`: what this machine is, from memory when nothing has changed.

The light path. Until something must be asked this module imports msgspec and os, nothing else.
"""

from __future__ import annotations

import sys

import msgspec

from refit_agent import paths
from refit_agent.gpu.fingerprint import fingerprint
from refit_agent.gpu.remembered import recall, remember
from refit_agent.machine import Machine

#: The last answer with its fingerprint, replaced whole: readers need no lock, and a fork inherits
#: nothing that another thread could be holding.
_memo: tuple[str, Machine] | None = None


def detect(*, home: paths.Home | None = None, fresh: bool = False) -> Machine:
    """This machine as selection sees it.

    Asks the driver (50 to 200 ms) only if no answer is remembered under the present fingerprint, or
    if ``fresh``; a remembered answer takes well under a millisecond. ``memory_free`` is None except in
    an answer that was asked for just now. Ask afresh after a device error: a GPU that falls off the bus
    and a MIG mode switched on without slices leave no trace in the fingerprint.

    ``home`` says where answers are kept (default: `paths.home`). Without a driver, without NVML, or
    with a GPU that does not answer, this returns a machine with fewer GPUs (``no_gpu_reason`` says why
    there is none) and never raises for it; such an answer is kept only if it will last.

    Safe from any thread; two that ask at once may both ask the driver. Loads NVML for a moment, never
    CUDA or TensorRT.
    """
    global _memo
    now = fingerprint()
    known = _memo
    if known is not None and known[0] == now and not fresh:
        return known[1]
    state = (home or paths.home()).state
    if not fresh:
        machine = recall(state, now)
        if machine is not None:
            _memo = (now, machine)
            return machine
    machine, lasting = _ask()
    if lasting:
        _memo = (now, _without_free_memory(machine))
        remember(state, now, _memo[1])
    else:
        _memo = None
        if fresh:
            # The fault is news: the answer from before it must not come back at the next call.
            remember(state, now, None)
    return machine


def _ask() -> tuple[Machine, bool]:
    """The machine as the driver and the disk describe it now, and whether that is worth remembering."""
    import os
    import platform

    from refit_agent.gpu.folders import search_folders
    from refit_agent.gpu.installed import installed_runtimes
    from refit_agent.gpu.nvml import ask
    from refit_agent.gpu.visible import visible

    answer = ask()
    environ = os.environ
    view = visible(answer.devices, environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER"))
    arch = platform.machine().lower()
    machine = Machine(
        os="windows" if sys.platform == "win32" else sys.platform,
        arch={"amd64": "x86_64", "arm64": "aarch64"}.get(arch, arch),
        gpus=view.gpus,
        no_gpu_reason="" if view.gpus else (answer.reason or view.reason),
        driver=answer.driver,
        cuda=answer.cuda,
        runtimes=installed_runtimes(*search_folders()),
        warnings=tuple(d.problem for d in answer.devices if d.problem),
    )
    return machine, answer.lasting


def _without_free_memory(machine: Machine) -> Machine:
    gpus = tuple(msgspec.structs.replace(gpu, memory_free=None) for gpu in machine.gpus)
    return msgspec.structs.replace(machine, gpus=gpus)
