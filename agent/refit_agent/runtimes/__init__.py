"""The runtimes that can open a plan, each in a module of its own, imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refit_agent.runtimes.base import OpenedPlan, Runtime, WrittenFile

if TYPE_CHECKING:
    from refit_agent.refit.messages import Job

__all__ = ["OpenedPlan", "Runtime", "WrittenFile", "load_runtime"]


def load_runtime(job: Job) -> Runtime:
    """The runtime that the job names, ready to open plans. Only for the worker process.

    Raises:
        RuntimeMissing, DeviceError.
    """
    if job.runtime == "onnxruntime":
        from refit_agent.runtimes.onnxruntime_cpu import OnnxRuntime

        return OnnxRuntime(job)
    from refit_agent.runtimes.tensorrt import TensorRtRuntime

    return TensorRtRuntime(job)
