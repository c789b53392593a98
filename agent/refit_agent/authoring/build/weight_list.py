"""What a plan that was just built asks for, told by the plan itself. In the worker only."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from refit_agent.authoring.build.builder import build_failed
from refit_agent.authoring.build.messages import BuildJob, EngineWeight
from refit_agent.machine import version_tuple
from refit_agent.plan_header import PlanHeader
from refit_agent.runtimes.tensorrt_log import MessageSink, make_logger
from refit_agent.runtimes.tensorrt_plan import OpenedEngine


def list_weights(
    module: Any, logger: Any, sink: MessageSink, job: BuildJob, header: PlanHeader, plan: Any
) -> tuple[EngineWeight, ...]:
    """Every weight that a refit of ``plan`` must set, in the engine's own order.

    The plan is opened as a refit opens it, which also proves that it can be.

    Raises:
        BuildFailed: it cannot be opened, or no refitter can be made of it.
        WeightsUncovered: it has weights without a name, which nobody could set.
        RefitRefused
    """
    engine, owner = _open(module, logger, plan), module
    if engine is None and job.options.exclude_lean_runtime:
        # The full runtime may want the lean one, which this plan leaves out, for what is version-compatible.
        owner, logger, engine = _open_lean(sink, plan, header)
    if engine is None:
        raise build_failed(job, f"the finished plan cannot be opened: {sink.errors()}")
    if not engine.refittable:
        raise build_failed(job, "the finished plan is not refittable")
    opened = OpenedEngine(owner, engine, header, logger, sink, threads=1)
    try:
        wanted = opened.wanted()
    finally:
        opened.close()
    return tuple(EngineWeight(name=name, dtype=p.dtype, count=p.count) for name, p in wanted.items())


def _open(module: Any, logger: Any, plan: Any) -> Any:
    try:
        runtime = module.Runtime(logger)
    except TypeError:  # pybind11's word for a null pointer
        return None
    # A version-compatible plan may bring the lean runtime with it, and we know who built it.
    runtime.engine_host_code_allowed = True
    return runtime.deserialize_cuda_engine(plan)


def _open_lean(sink: MessageSink, plan: Any, header: PlanHeader) -> tuple[Any, Any, Any]:
    """The lean runtime of the builder's release, where it is installed, and what it makes of the plan."""
    with contextlib.suppress(ImportError, OSError):
        module = importlib.import_module("tensorrt_lean")
        if version_tuple(str(module.__version__))[:3] == header.version[:3]:
            logger = make_logger(module, sink)
            return module, logger, _open(module, logger, plan)
    wanted = ".".join(map(str, header.version))
    sink.take(
        "ERROR", f"it leaves out the lean runtime, so tensorrt_lean {wanted} must be installed beside the builder"
    )
    return None, None, None
