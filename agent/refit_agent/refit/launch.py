"""The parent's side of a refit: start the worker, pass its events on, and say in errors how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from refit_agent.cache.disk import write_error
from refit_agent.errors import RefitAgentError, RefitError, WorkerCrashed, WorkerTimeout, from_wire
from refit_agent.refit import worker_process
from refit_agent.refit.messages import Done, Failed, FetchJob, Job, Phase, encoder, event_decoder

#: The worker gets the parent's module search path as it stands: a host app may have built its own.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from refit_agent.worker import main; main()"
_MAX_EVENT_BYTES = 1 << 20


def run_worker(
    job: Job | FetchJob,
    log_path: str,
    deadline_s: float,
    on_phase: Callable[[Phase], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> Done:
    """Do ``job`` in a worker process and wait for it.

    ``log_path`` receives what the worker and its native libraries print. ``on_phase`` is called in this
    thread. ``cancelled`` is asked several times a second. However this function ends, by
    KeyboardInterrupt too, the worker and its children are gone.

    Raises:
        WorkerTimeout: not finished after ``deadline_s`` seconds.
        WorkerCrashed: it ended without a word, e.g. by a segmentation fault, or spoke nonsense.
        CacheError: the log cannot be written.
        Cancelled: the caller said so.
        RefitAgentError: whatever error the worker reported.
    """
    ends = time.monotonic() + deadline_s
    phase = "start"
    try:
        log = open(log_path, "ab")  # noqa: SIM115 - closed as soon as the worker has it
    except OSError as error:
        raise write_error(error, log_path) from error
    with log:
        try:
            process = worker_process.start(_BOOT, _environment(job), log.fileno())
        except OSError as error:
            raise RefitError(detail=f"The refit worker could not be started: {error}") from error
    try:
        events = worker_process.events_of(
            process,
            encoder.encode(job),
            event_decoder.decode,
            progress=Phase,
            longest=_MAX_EVENT_BYTES,
            log_path=log_path,
            ends=ends,
            cancelled=cancelled,
        )
        while True:
            event = next(events)
            if isinstance(event, Done):
                return event
            if isinstance(event, Failed):
                raise from_wire(event.code, event.facts)
            if isinstance(event, worker_process.Ending):
                raise _error(event, log_path, phase, deadline_s) from event.lost
            phase = event.phase
            on_phase(event)
    finally:
        worker_process.stop(process)


def _error(ending: worker_process.Ending, log_path: str, phase: str, deadline_s: float) -> RefitAgentError:
    if ending.lost is not None:
        return write_error(ending.lost, log_path)
    log = worker_process.log_tail(log_path)
    if ending.how:
        return WorkerCrashed(how=ending.how, phase=phase, log=log)
    return WorkerTimeout(seconds=round(deadline_s, 3), phase=phase, log=log)


def _environment(job: Job | FetchJob) -> dict[str, str]:
    """What makes a worker small, quick and bound to its GPU."""
    env = worker_process.environment(job.gpu)
    # NumPy's linear algebra is not used; its threads cost start-up time and memory on large machines.
    env["OPENBLAS_NUM_THREADS"] = "1"
    # glibc then asks for large pages: a finished plan is serialised in half the time.
    env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    return env
