"""A worker as its parent sees it: started, listened to, stopped, and how it ended.

    process = start(BOOT, environment(gpu), log_fd)
    try:
        events = events_of(process, job, decode, ...)   -> events, and an Ending if the worker says no last word
    finally:
        stop(process)

What the worker does, what its events are and which errors its ending makes is the business of those who
start one: `refit_agent.refit.launch` and `refit_agent.authoring.build.launch`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from refit_agent.errors import Cancelled, RefitError
from refit_agent.gpu.folders import search_folders
from refit_agent.worker import PARENT_VARIABLE

_LOG_TAIL_LINES = 20
#: A runtime that prints without end must not fill the disk.
MAX_LOG_BYTES = 64 << 20
_LOG_TAIL_BYTES = 16 << 10
#: A worker may report faster than anybody listens: progress beyond this many steps is left out.
_MOST_WAITING = 64
#: A worker that has closed its standard output has nothing left to do but to end.
LAST_BREATH_S = 5.0

_Event = TypeVar("_Event")


class Ending(NamedTuple):
    """The worker will say no more.

    ``how`` is its end in words, "" if it was still running at the deadline. ``lost`` is why its log cannot be
    looked at any more, if that is the reason to stop it.
    """

    how: str
    lost: OSError | None = None


class _Silence:
    """The worker closed its standard output, or wrote there what is no event."""


_SILENCE = _Silence()


def start(boot: str, env: dict[str, str], log_fd: int) -> subprocess.Popen[bytes]:
    """A Python that runs ``boot``, with this process's module search path as its arguments.

    ``log_fd`` receives its standard error. Raises OSError, and RefitError where there is no Python to start.
    """
    return subprocess.Popen(
        [*worker_interpreter(), "-c", boot, *worker_search_path()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log_fd,
        # Python looks for modules in its working directory first: nobody may have planted any there.
        cwd=os.path.abspath(os.sep),
        env=env,
        # Its own session: Ctrl+C on the terminal reaches the parent alone, which then stops the group.
        start_new_session=True,
        # The same on Windows, where it also keeps a console window from appearing. No other system has the flag.
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


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


def environment(gpu: str | None) -> dict[str, str]:
    """This process's environment with what every worker needs; with ``gpu`` (a UUID) it sees that one alone."""
    env = dict(os.environ)
    env[PARENT_VARIABLE] = str(os.getpid())
    env["PYTHONUNBUFFERED"] = "1"
    env.setdefault("CUDA_MODULE_LOADING", "LAZY")
    if gpu:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = gpu
    return env


def events_of(
    process: subprocess.Popen[bytes],
    job: bytes,
    decode: Callable[[bytes], _Event],
    *,
    progress: type,
    longest: int,
    log_path: str,
    ends: float,
    cancelled: Callable[[], bool],
) -> Iterator[_Event | Ending]:
    """Hand over the job (one line) and give the worker's events, in the caller's thread and without an end.

    ``decode`` may raise msgspec.DecodeError or ValueError. Of events of the type ``progress`` some are left out
    if nobody listens. ``longest`` bounds the bytes of an event, -1 does not; ``ends`` is a time by
    `time.monotonic`. ``cancelled`` is asked several times a second; Cancelled is raised when it says so. After an
    Ending nothing comes.
    """
    events = _talk(process, job, decode, progress, longest)
    while True:
        event = _next(events, ends)
        if isinstance(event, _Silence):
            # Not for longer: one that hangs after its last word must not take the caller with it.
            yield Ending(how_it_ended(process, min(LAST_BREATH_S, max(0.0, ends - time.monotonic()))))
            return
        if event is not None:
            yield event
        try:
            size = os.path.getsize(log_path)
        except OSError as error:  # somebody deleted the folder that it lies in
            yield Ending("a lost log", error)
            return
        if size > MAX_LOG_BYTES:
            yield Ending("endless output")
            return
        # Asked after every event too: a worker that reports without a pause must not escape.
        if cancelled():
            raise Cancelled()
        if time.monotonic() >= ends:
            yield Ending("")
            return


def _talk(
    process: subprocess.Popen[bytes], job: bytes, decode: Callable[[bytes], _Event], progress: type, longest: int
) -> queue.SimpleQueue[_Event | _Silence]:
    """Hand over the job and give the events as they come, in a thread of its own.

    Pipes cannot be waited for with a time limit on Windows, and a job larger than a pipe's buffer
    would hold its writer for as long as the worker does not read.
    """
    events: queue.SimpleQueue[_Event | _Silence] = queue.SimpleQueue()
    asked, told = process.stdin, process.stdout
    assert asked is not None
    assert told is not None

    def talk() -> None:
        # Closed here and nowhere else: closing a stream from another thread waits for its reader.
        with told:
            with contextlib.suppress(OSError, ValueError):  # it died at once; its end says so
                asked.write(job + b"\n")
                asked.flush()
            with contextlib.suppress(msgspec.DecodeError, ValueError, OSError):
                while line := told.readline(longest):
                    event = decode(line)
                    if not isinstance(event, progress) or events.qsize() < _MOST_WAITING:
                        events.put(event)
            events.put(_SILENCE)

    threading.Thread(target=talk, name="worker-events", daemon=True).start()
    return events


def _next(events: queue.SimpleQueue[_Event | _Silence], ends: float) -> _Event | _Silence | None:
    try:
        return events.get(timeout=max(0.0, min(0.1, ends - time.monotonic())))
    except queue.Empty:
        return None


def stop(process: subprocess.Popen[bytes]) -> None:
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
    stop(process)
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
