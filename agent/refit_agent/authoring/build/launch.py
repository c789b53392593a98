"""The parent's side of a build: start the worker, pass its steps on, stop it, and say how it ended.

A process like the one that `refit_agent.refit.launch` starts, in the same way and stopped in the same way.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable

import msgspec

from refit_agent.authoring.build.messages import BuildJob, Built, Event, Step, encoder, event_decoder
from refit_agent.authoring.errors import AuthoringError, BuilderCrashed, BuilderTimeout
from refit_agent.errors import Cancelled, from_wire
from refit_agent.refit import launch as refit_launch
from refit_agent.refit.messages import Failed
from refit_agent.worker import PARENT_VARIABLE

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
        process = _start(job, log.fileno())
    try:
        events = _talk(process, encoder.encode(job) + b"\n")
        while True:
            event = _next(events, ends)
            if isinstance(event, Built):
                return event
            if isinstance(event, Failed):
                raise from_wire(event.code, event.facts)
            if isinstance(event, Step):
                phase = event.phase
                on_step(event)
            elif event is _ENDED:
                patience_s = min(refit_launch.LAST_BREATH_S, max(0.0, ends - time.monotonic()))
                how = refit_launch.how_it_ended(process, patience_s)
                raise BuilderCrashed(how=how, phase=phase, log=refit_launch.log_tail(log_path))
            if os.path.getsize(log_path) > refit_launch.MAX_LOG_BYTES:
                raise BuilderCrashed(how="endless output", phase=phase, log=refit_launch.log_tail(log_path))
            if cancelled():
                raise Cancelled()
            if time.monotonic() >= ends:
                raise BuilderTimeout(seconds=round(deadline_s, 3), phase=phase, log=refit_launch.log_tail(log_path))
    finally:
        refit_launch.stop_worker(process)


class _Ended:
    """The worker closed its standard output, or wrote there what is no event."""


_ENDED = _Ended()


def _start(job: BuildJob, log_fd: int) -> subprocess.Popen[bytes]:
    command = [*refit_launch.worker_interpreter(), "-c", _BOOT, *refit_launch.worker_search_path()]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            cwd=os.path.abspath(os.sep),
            env=_environment(job),
            start_new_session=True,
        )
    except OSError as error:
        raise AuthoringError(detail=f"The builder's process could not be started: {error}.") from error


def _environment(job: BuildJob) -> dict[str, str]:
    return {
        "CUDA_MODULE_LOADING": "LAZY",
        **os.environ,
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": job.gpu,
    }


def _talk(process: subprocess.Popen[bytes], job: bytes) -> queue.SimpleQueue[Event | _Ended]:
    """Hand over the job and give the events as they come, in a thread of its own."""
    events: queue.SimpleQueue[Event | _Ended] = queue.SimpleQueue()
    asked, told = process.stdin, process.stdout
    assert asked is not None
    assert told is not None

    def talk() -> None:
        with told:
            with contextlib.suppress(OSError, ValueError):  # it died at once; its end says so
                asked.write(job)
                asked.flush()
            with contextlib.suppress(msgspec.DecodeError, ValueError, OSError):
                # The list of weights stands in one line, which has no limit that a model could not reach.
                while line := told.readline():
                    events.put(event_decoder.decode(line))
            events.put(_ENDED)

    threading.Thread(target=talk, name="build-worker-events", daemon=True).start()
    return events


def _next(events: queue.SimpleQueue[Event | _Ended], ends: float) -> Event | _Ended | None:
    try:
        return events.get(timeout=max(0.0, min(0.1, ends - time.monotonic())))
    except queue.Empty:
        return None
