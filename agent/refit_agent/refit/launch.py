"""The parent's side of a refit: start the worker, pass its events on, stop it, and say how it ended."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from refit_agent.errors import RefitError, WorkerCrashed, WorkerTimeout, from_wire
from refit_agent.refit.messages import Done, Event, Failed, Job, Phase, encoder, event_decoder

#: The worker gets the parent's module search path as it stands: a host app may have built its own.
_BOOT = "import sys; sys.path[:] = sys.argv[1].split(sys.argv[2]); from refit_agent.worker import main; main()"
_LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 16 << 10
_MAX_EVENT_BYTES = 1 << 20


def run_worker(
    job: Job,
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
        WorkerCrashed: it ended without a word, e.g. by a segmentation fault.
        RefitError: cancelled.
        RefitAgentError: whatever error the worker reported.
    """
    ends = time.monotonic() + deadline_s
    phase = "start"
    with open(log_path, "ab") as log:
        process = _start(job, log.fileno())
    try:
        events = _read_events(process)
        while True:
            event = _next(events, ends)
            if isinstance(event, Done):
                return event
            if isinstance(event, Failed):
                raise from_wire(event.code, event.facts)
            if isinstance(event, Phase):
                phase = event.phase
                on_phase(event)
            elif event is _ENDED:
                how = _how_it_ended(process.wait())
                raise WorkerCrashed(how=how, phase=phase, log=_tail(log_path))
            elif cancelled():
                raise RefitError(detail="The refit was cancelled.", hint="Ask again when it is wanted.")
            elif time.monotonic() >= ends:
                raise WorkerTimeout(seconds=round(deadline_s, 1), phase=phase, log=_tail(log_path))
    finally:
        _stop(process)


class _Ended:
    """The worker closed its standard output."""


_ENDED = _Ended()


def _start(job: Job, log_fd: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _BOOT, os.pathsep.join(_search_path()), os.pathsep]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            # Python looks for modules in its working directory first: nobody may have planted any there.
            cwd=os.path.abspath(os.sep),
            env=_environment(job),
            # Its own session: Ctrl+C on the terminal reaches the parent alone, which then stops the group.
            start_new_session=True,
        )
    except OSError as error:
        raise RefitError(detail=f"The refit worker could not be started: {error}") from error
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its end will be reported as such
        process.stdin.write(encoder.encode(job) + b"\n")
        process.stdin.flush()
    return process


def _search_path() -> list[str]:
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [os.path.abspath(p) for p in sys.path if p]
    return path if ours in path else [*path, ours]


def _environment(job: Job) -> dict[str, str]:
    env = dict(os.environ)
    env["REFIT_AGENT_PARENT_PID"] = str(os.getpid())
    env["PYTHONUNBUFFERED"] = "1"
    # NumPy's linear algebra is not used; its threads cost start-up time and memory on large machines.
    env["OPENBLAS_NUM_THREADS"] = "1"
    env.setdefault("CUDA_MODULE_LOADING", "LAZY")
    if job.gpu:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = job.gpu
    return env


def _read_events(process: subprocess.Popen[bytes]) -> queue.SimpleQueue[Event | _Ended]:
    """Events as they come, from a thread of their own: pipes cannot be waited for with a time limit on Windows."""
    events: queue.SimpleQueue[Event | _Ended] = queue.SimpleQueue()
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        with contextlib.suppress(msgspec.DecodeError, ValueError, OSError):
            while line := stream.readline(_MAX_EVENT_BYTES):
                events.put(event_decoder.decode(line))
        events.put(_ENDED)

    threading.Thread(target=read, name="refit-worker-events", daemon=True).start()
    return events


def _next(events: queue.SimpleQueue[Event | _Ended], ends: float) -> Event | _Ended | None:
    try:
        return events.get(timeout=max(0.0, min(0.1, ends - time.monotonic())))
    except queue.Empty:
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except (ProcessLookupError, PermissionError):
            pass
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _how_it_ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:]) or "(it said nothing)"
