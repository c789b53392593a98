"""Memory of processes, from /proc: the peak of a process and all its descendants, and what one step adds to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple


class Peak(NamedTuple):
    """Peak bytes over the tree. ``private`` cannot be dropped by the kernel (anonymous and dirty pages);
    ``unique`` adds clean pages of mapped files that no other process maps (USS)."""

    private: int
    unique: int


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat") as file:
            children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, []))
    return found


def sample(root: int) -> Peak:
    """What the tree below ``root`` has now."""
    dirty = clean = 0
    for pid in _tree(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Private_Dirty:"):
                    dirty += int(line.split()[1]) * 1024
                elif line.startswith("Private_Clean:"):
                    clean += int(line.split()[1]) * 1024
    return Peak(dirty, dirty + clean)


class PeakMeter:
    """Samples the tree below ``pid`` until `stop` or the end of its block; it slows the tree down, so never time what
    it watches."""

    def __init__(self, pid: int, interval_s: float = 0.01) -> None:
        self._pid, self._interval = pid, interval_s
        self._private = self._unique = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> PeakMeter:
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()  # left running it would open files in this process for as long as that lives

    def _run(self) -> None:
        while not self._done.is_set():
            self._look()
            time.sleep(self._interval)

    def _look(self) -> None:
        now = sample(self._pid)
        self._private, self._unique = max(self._private, now.private), max(self._unique, now.unique)

    def stop(self) -> Peak:
        """The peaks seen so far, this moment's included."""
        self._done.set()
        self._thread.join()
        self._look()
        return Peak(self._private, self._unique)


def peak_of(command: Sequence[str]) -> Peak:
    """The peak of a command's whole tree, from its start to its end. Raises CalledProcessError if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with PeakMeter(process.pid) as meter:
        code = process.wait()
        peak = meter.stop()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return peak


_REPEATED_S = 0.3
_STEP = """
import gc, sys, time
{prepare}
gc.collect()
print(flush=True)
sys.stdin.readline()
ends = time.monotonic() + {seconds}
while True:
    held = None
    gc.collect()
    held = {step}
    if time.monotonic() > ends:
        break
print(flush=True)
sys.stdin.readline()
"""


def growth(prepare: str, step: str, *arguments: str) -> int:
    """Private bytes that evaluating ``step`` adds at its peak to a new process that has run ``prepare``. Both are
    Python; ``arguments`` are their ``sys.argv[1:]``. What the step gives is held until it has been measured. A step
    of milliseconds is repeated for a while, or its peak would fall between two samples."""
    command = [sys.executable, "-c", _STEP.format(prepare=prepare, step=step, seconds=_REPEATED_S), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        _require_line(process.stdout.readline())
        before = sample(process.pid).private
        with PeakMeter(process.pid, interval_s=0.001) as meter:
            process.stdin.write("\n")
            process.stdin.flush()
            _require_line(process.stdout.readline())
            return max(0, meter.stop().private - before)


def _require_line(line: str) -> None:
    if not line:
        raise RuntimeError("the process whose memory was to be measured ended early")
