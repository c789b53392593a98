"""The parent's side of a build: start the worker, pass its steps on, and say in errors how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from refit_agent.authoring.build.messages import BuildJob, Built, Step, encoder, event_decoder
from refit_agent.authoring.errors import AuthoringError, BuilderCrashed, BuilderTimeout
from refit_agent.errors import from_wire
from refit_agent.refit import worker_process
from refit_agent.refit.messages import Failed

_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from refit_agent.authoring.build.builder_worker import main; main()"


def run_builder(
    job: BuildJob,
    log_path: str,
    deadline_s: float,
    on_step: Callable[[Step], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Built:
    """Do ``job`` in a process of its own and wait for it; however this ends, that process is gone.

    ``log_path`` receives what TensorRT and its libraries print. ``on_step`` is called in this thread,
    ``cancelled`` several times a second.

    Raises:
        BuilderTimeout: not finished after ``deadline_s`` seconds.
        BuilderCrashed: it ended without a word, or spoke nonsense.
        Cancelled: the caller said so.
        RefitAgentError: whatever error the worker reported.
        OSError: the log cannot be written.
    """
    ends = time.monotonic() + deadline_s
    phase = "start"
    with open(log_path, "ab") as log:
        try:
            process = worker_process.start(_BOOT, worker_process.environment(job.gpu), log.fileno())
        except OSError as error:
            raise AuthoringError(detail=f"The builder's process could not be started: {error}.") from error
    try:
        events = worker_process.events_of(
            process,
            encoder.encode(job),
            event_decoder.decode,
            progress=Step,
            longest=-1,  # the list of weights stands in one line, which has no limit that a model could not reach
            log_path=log_path,
            ends=ends,
            cancelled=cancelled,
        )
        while True:
            event = next(events)
            if isinstance(event, Built):
                return event
            if isinstance(event, Failed):
                raise from_wire(event.code, event.facts)
            if isinstance(event, worker_process.Ending):
                raise _error(event, log_path, phase, deadline_s)
            phase = event.phase
            on_step(event)
    finally:
        worker_process.stop(process)


def _error(ending: worker_process.Ending, log_path: str, phase: str, deadline_s: float) -> Exception:
    if ending.lost is not None:
        return ending.lost
    log = worker_process.log_tail(log_path)
    if ending.how:
        return BuilderCrashed(how=ending.how, phase=phase, log=log)
    return BuilderTimeout(seconds=round(deadline_s, 3), phase=phase, log=log)
