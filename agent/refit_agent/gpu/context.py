"""First contact with a GPU, in the worker: the driver must answer before TensorRT is created.

Without a driver TensorRT's Runtime does not fail, it crashes the process.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import TYPE_CHECKING

from refit_agent.errors import DeviceFailed, GpuMemoryShort

if TYPE_CHECKING:
    from refit_agent.manifest import Plan
    from refit_agent.refit.messages import Job

#: Beyond the engine's own size: CUDA's context, TensorRT's kernels, and the activations of one run.
_OVERHEAD_BYTES = 512 << 20


class PendingContext:
    """A CUDA context in the making, in a thread of its own: it takes as long as the imports beside it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._open, name="cuda-context", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            free, _total = _make_primary_context()
            needed = needed_bytes(self._job)
            if free < needed:
                raise GpuMemoryShort(gpu=self._job.gpu, free_bytes=free, needed_bytes=needed, short_bytes=needed - free)
        except Exception as error:  # noqa: BLE001 - carried to the thread that waits
            self._error = error

    def wait(self) -> None:
        """Return when the driver has answered and the GPU has room for the engine.

        Raises:
            DeviceFailed: no driver, no GPU, or an error of CUDA's.
            GpuMemoryShort: too little free memory; says how much is short.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error


_begun: tuple[Job, PendingContext] | None = None


def open_context(job: Job) -> PendingContext:
    """Begin to make the context of the only GPU that this worker sees; for the same job it is begun once."""
    global _begun
    if _begun is None or _begun[0] is not job:
        _begun = (job, PendingContext(job))
    return _begun[1]


def needed_bytes(job: Job) -> int:
    """GPU memory that refit and check run of this engine take at most, in bytes."""
    # One plan after the other, each for itself.
    return _OVERHEAD_BYTES + max(plan.plan_size + _weight_bytes(job, plan) for plan in job.engine.plans)


def _weight_bytes(job: Job, plan: Plan) -> int:
    """By how much the plan grows; one that was built from zeroed weights has its size already."""
    if job.engine.strip != "plan":
        return 0
    if job.weights is not None:
        return sum(f.ref.size for f in (job.weights, *job.external))
    return sum(f.ref.size for f in job.safetensors if not plan.safetensors or f.ref.path in plan.safetensors)


def _make_primary_context() -> tuple[int, int]:
    """Make the primary context of device 0 current and give its free and total memory in bytes.

    By the CUDA driver API (cuda.h): the same context that TensorRT uses afterwards.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise DeviceFailed(detail=f"there is no NVIDIA driver ({error})") from error
    _check(cuda, "cuInit", cuda.cuInit(0))
    device = ctypes.c_int()
    _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), 0))
    context = ctypes.c_void_p()
    _check(cuda, "cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    _check(cuda, "cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(cuda, "cuMemGetInfo", cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return free.value, total.value


def _check(cuda: ctypes.CDLL, call: str, code: int) -> None:
    if code == 0:
        return
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    raise DeviceFailed(detail=f"{call} gave CUDA error {code} ({(name.value or b'unknown').decode()})")
