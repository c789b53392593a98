"""First contact with a GPU, in the worker: the driver must answer before TensorRT is created.

Without a driver TensorRT's Runtime does not fail, it crashes the process.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from refit_agent.errors import GpuMemoryShort
from refit_agent.gpu import driver

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
            driver.enter_context()
            free, _total = driver.memory()
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
