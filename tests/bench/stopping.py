"""Ctrl+C ends a benchmark with everything that it has started.

A terminal sends SIGINT to all processes of the command: each child that is Python would write a traceback between the
table's lines. So the command blocks it, which children inherit, through exec too, and one thread waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import psutil

#: Nothing that is measured here uses it.
_TO_MAIN_THREAD = signal.SIGUSR1


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGINT kills all descendants and then raises KeyboardInterrupt, once; another during what follows from it
    changes nothing. All threads of the process have it blocked."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
        yield
        return
    handler = signal.signal(_TO_MAIN_THREAD, _stop)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(threading.get_ident(), over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        os.kill(os.getpid(), signal.SIGINT)
        watcher.join()
        signal.signal(_TO_MAIN_THREAD, handler)


def _watch(main_thread: int, over: threading.Event) -> None:
    signal.sigwait({signal.SIGINT})
    if not over.is_set():
        signal.pthread_kill(main_thread, _TO_MAIN_THREAD)


def _stop(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    end_descendants()
    raise KeyboardInterrupt


def end_descendants(patience_s: float = 10.0) -> None:
    """Kill every process below this one. They are gone at the end, and can make no file in a folder that is removed;
    exit codes are left to those who wait for them."""
    ends = time.monotonic() + patience_s
    seen: set[psutil.Process] = set()
    while time.monotonic() < ends:
        seen.update(psutil.Process().children(recursive=True))
        alive = [process for process in seen if _is_alive(process)]
        if not alive:
            return
        # Held before the first is killed: a client whose service has gone would write a traceback in its last moment.
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)
        time.sleep(0.01)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
