"""The build's own process: ``python -m refit_agent.authoring.build.builder_worker`` reads one job from standard
input and builds one plan, as `refit_agent.worker` does one refit, and for the same reasons."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from refit_agent import logs
from refit_agent import worker as refit_worker
from refit_agent.authoring.build.builder import build_failed, build_plan
from refit_agent.authoring.build.messages import BuildJob, Built, Event, Step, encoder, job_decoder
from refit_agent.authoring.build.weight_list import list_weights
from refit_agent.authoring.errors import BuilderMissing
from refit_agent.errors import RefitAgentError, RuntimeChanged
from refit_agent.machine import version_tuple
from refit_agent.plan_header import parse_plan_header
from refit_agent.refit.messages import Failed
from refit_agent.runtimes.tensorrt_log import MessageSink, make_logger
from refit_agent.runtimes.write_file import write_durably


def main() -> None:
    """Build one plan and exit: 0 when an event told the parent how it ended."""
    out = os.dup(1)
    os.dup2(2, 1)  # a native library that prints must not get into the protocol
    refit_worker.die_with_parent()
    source = os.fdopen(os.dup(0), "rb")
    job = job_decoder.decode(source.readline())
    refit_worker.step_back(background=False)
    threading.Thread(target=refit_worker.exit_at_end_of, args=(source,), daemon=True).start()
    logs.want("info")

    def send(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(out, encoder.encode(event) + b"\n")

    send(perform(job, send))
    sys.stderr.flush()
    os._exit(0)  # native libraries crash in their exit handlers, and the plan is on the disk already


def perform(job: BuildJob, send: Callable[[Event], None]) -> Built | Failed:
    """Do the job; every error comes back as words."""
    try:
        return _build(job, send)
    except RefitAgentError as error:
        return Failed(code=error.code, facts=refit_worker.plain_facts(error.facts))
    except (OSError, MemoryError) as error:
        what = str(error) if isinstance(error, OSError) else "there is not enough memory"
        return _failed(job, what)
    except Exception as error:  # noqa: BLE001 - whatever TensorRT raises must reach the parent as words
        import traceback

        traceback.print_exc()
        return _failed(job, f"{type(error).__name__}: {error}")


def _failed(job: BuildJob, detail: str) -> Failed:
    error = build_failed(job, detail)
    return Failed(code=error.code, facts=error.facts)


def _build(job: BuildJob, send: Callable[[Event], None]) -> Built:
    clock = _Clock(send)
    clock.begin("start")
    module = _import(job)
    sink = MessageSink()
    logger = make_logger(module, sink)
    plan = build_plan(module, logger, sink, job, clock.begin)
    view = memoryview(plan).cast("B")
    header = parse_plan_header(view, len(view), job.plan)
    clock.begin("write")
    written = write_durably(job.plan, [(0, view)])
    weights = None
    if job.options.refit is not None:
        clock.begin("list")
        weights = list_weights(module, logger, sink, job, header, plan)
    clock.end()
    sink.flush()
    return Built(
        size=written.size,
        sha256=written.sha256,
        version=header.version,
        weights=weights,
        notes=tuple(sink.warnings()),
        seconds=clock.seconds,
    )


def _import(job: BuildJob) -> Any:
    if job.module_folder:
        sys.path.insert(0, job.module_folder)
    try:
        module = importlib.import_module(job.module)
    except (ImportError, OSError) as error:
        # It was found on the disk, or it would not have been chosen.
        raise BuilderMissing(detail=f"{job.module} is there, but its import failed: {error}") from error
    if not hasattr(module, "Builder"):
        raise BuilderMissing(detail=f"{job.module} {module.__version__} has no builder")
    found = str(module.__version__)
    if version_tuple(found)[:3] != version_tuple(job.module_version)[:3]:
        # What is possible was decided for the other one.
        raise RuntimeChanged(module=job.module, expected=job.module_version, found=found)
    return module


class _Clock:
    """Seconds by phase; tells the parent when one begins."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._phase = ""
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def begin(self, phase: str) -> None:
        """End the phase before, and begin with ``phase``."""
        self.end()
        self._phase, self._since = phase, time.perf_counter()
        self._send(Step(phase=phase))

    def end(self) -> None:
        """End the phase."""
        if self._phase:
            self.seconds[self._phase] = round(time.perf_counter() - self._since, 3)
        self._phase = ""


if __name__ == "__main__":
    main()
