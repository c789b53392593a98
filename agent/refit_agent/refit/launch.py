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

from refit_agent.cache.store import write_error
from refit_agent.errors import Cancelled, RefitError, WorkerCrashed, WorkerTimeout, from_wire
from refit_agent.gpu.folders import search_folders
from refit_agent.refit.messages import Done, Event, Failed, FetchJob, Job, Phase, encoder, event_decoder
from refit_agent.worker import PARENT_VARIABLE

#: The worker gets the parent's module search path as it stands: a host app may have built its own.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from refit_agent.worker import main; main()"
_LOG_TAIL_LINES = 20
#: A runtime that prints without end must not fill the disk.
MAX_LOG_BYTES = 64 << 20
_LOG_TAIL_BYTES = 16 << 10
_MAX_EVENT_BYTES = 1 << 20
#: A worker may report faster than anybody listens: progress beyond this many steps is left out.
_MOST_WAITING = 64
#: A worker that has closed its standard output has nothing left to do but to end.
LAST_BREATH_S = 5.0


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
        process = _start(job, log.fileno())
    try:
        events = _talk(process, encoder.encode(job) + b"\n")
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
                # Not for longer: one that hangs after its last word must not take the caller with it.
                how = how_it_ended(process, min(LAST_BREATH_S, max(0.0, ends - time.monotonic())))
                raise WorkerCrashed(how=how, phase=phase, log=log_tail(log_path))
            if log_size(log_path) > MAX_LOG_BYTES:
                raise WorkerCrashed(how="endless output", phase=phase, log=log_tail(log_path))
            # Asked after every event too: a worker that reports without a pause must not escape.
            if cancelled():
                raise Cancelled()
            if time.monotonic() >= ends:
                raise WorkerTimeout(seconds=round(deadline_s, 3), phase=phase, log=log_tail(log_path))
    finally:
        stop_worker(process)


class _Ended:
    """The worker closed its standard output, or wrote there what is no event."""


_ENDED = _Ended()


def _start(job: Job | FetchJob, log_fd: int) -> subprocess.Popen[bytes]:
    command = [*worker_interpreter(), "-c", _BOOT, *worker_search_path()]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            # Python looks for modules in its working directory first: nobody may have planted any there.
            cwd=os.path.abspath(os.sep),
            env=worker_environment(job),
            # Its own session: Ctrl+C on the terminal reaches the parent alone, which then stops the group.
            start_new_session=True,
        )
    except OSError as error:
        raise RefitError(detail=f"The refit worker could not be started: {error}") from error


def worker_interpreter() -> list[str]:
    """The Python to run the worker with, as shut off from its surroundings as this one.

    In an app that was frozen into one file ``sys.executable`` is the app itself: it would be started again.
    """
    named = os.environ.get("REFIT_AGENT_PYTHON")
    if not named and (getattr(sys, "frozen", False) or not sys.executable):
        detail = "This program has no Python interpreter of its own that could run the refit worker."
        raise RefitError(detail=detail, hint="Set REFIT_AGENT_PYTHON to one that has refit-agent installed.")
    flags = ["-I"] if sys.flags.isolated else ["-E"] if sys.flags.ignore_environment else []
    return [named or sys.executable, *flags]


def worker_search_path() -> list[str]:
    """Where the worker finds modules: where this process does, and this package in any case."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = search_folders()[0]
    return [*path] if ours in path else [*path, ours]


def worker_environment(job: Job | FetchJob) -> dict[str, str]:
    """This process's environment with what makes a worker small, quick and bound to its GPU."""
    env = dict(os.environ)
    env[PARENT_VARIABLE] = str(os.getpid())
    env["PYTHONUNBUFFERED"] = "1"
    # NumPy's linear algebra is not used; its threads cost start-up time and memory on large machines.
    env["OPENBLAS_NUM_THREADS"] = "1"
    env.setdefault("CUDA_MODULE_LOADING", "LAZY")
    # glibc then asks for large pages: a finished plan is serialised in half the time.
    env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if job.gpu:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = job.gpu
    return env


def _talk(process: subprocess.Popen[bytes], job: bytes) -> queue.SimpleQueue[Event | _Ended]:
    """Hand over the job and give the events as they come, in a thread of its own.

    Pipes cannot be waited for with a time limit on Windows, and a job larger than a pipe's buffer
    would hold its writer for as long as the worker does not read.
    """
    events: queue.SimpleQueue[Event | _Ended] = queue.SimpleQueue()
    asked, told = process.stdin, process.stdout
    assert asked is not None
    assert told is not None

    def talk() -> None:
        # Closed here and nowhere else: closing a stream from another thread waits for its reader.
        with told:
            with contextlib.suppress(OSError, ValueError):  # it died at once; its end says so
                asked.write(job)
                asked.flush()
            with contextlib.suppress(msgspec.DecodeError, ValueError, OSError):
                while line := told.readline(_MAX_EVENT_BYTES):
                    event = event_decoder.decode(line)
                    if not isinstance(event, Phase) or events.qsize() < _MOST_WAITING:
                        events.put(event)
            events.put(_ENDED)

    threading.Thread(target=talk, name="refit-worker-events", daemon=True).start()
    return events


def _next(events: queue.SimpleQueue[Event | _Ended], ends: float) -> Event | _Ended | None:
    try:
        return events.get(timeout=max(0.0, min(0.1, ends - time.monotonic())))
    except queue.Empty:
        return None


def stop_worker(process: subprocess.Popen[bytes]) -> None:
    """End a worker and its children, if they have not ended, and close its standard input."""
    # Before it is waited for: until then its number is its own, and its group can be named safely. The
    # group is stopped even if the worker has ended, since it may have left children.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def how_it_ended(process: subprocess.Popen[bytes], patience_s: float) -> str:
    """In words; leaves no worker behind that has not ended after ``patience_s`` seconds."""
    ends = time.monotonic() + patience_s
    while not _has_ended(process) and time.monotonic() < ends:
        time.sleep(0.01)
    stopped = not _has_ended(process)
    stop_worker(process)
    code = process.returncode
    if stopped:
        return "output that makes no sense (it was stopped)"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if not hasattr(os, "waitid"):  # Windows, and macOS before Python 3.13
        return process.poll() is not None
    try:
        # WNOWAIT: it stays a zombie, and so its number is not given to another process yet.
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # the host app reaps children by itself


def log_size(path: str) -> int:
    """Bytes of a worker's log. Raises CacheError: it is not there any more."""
    try:
        return os.path.getsize(path)
    except OSError as error:  # somebody deleted the cache
        raise write_error(error, path) from error


def log_tail(path: str) -> str:
    """The last lines of a worker's log, bounded."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            # Bounded: a worker that still writes would never let the end be reached.
            text = file.read(_LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:]) or "(it said nothing)"
