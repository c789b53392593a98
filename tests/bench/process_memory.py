"""Peak memory of a process and all its descendants, sampled from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
import time
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


def _sample(root: int) -> tuple[int, int]:
    dirty = clean = 0
    for pid in _tree(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Private_Dirty:"):
                    dirty += int(line.split()[1]) * 1024
                elif line.startswith("Private_Clean:"):
                    clean += int(line.split()[1]) * 1024
    return dirty, dirty + clean


class PeakMeter:
    """Samples the tree below ``pid`` until `stop`; it slows the tree down, so never time what it watches."""

    def __init__(self, pid: int, interval_s: float = 0.01) -> None:
        self._pid, self._interval = pid, interval_s
        self._private = self._unique = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            private, unique = _sample(self._pid)
            self._private, self._unique = max(self._private, private), max(self._unique, unique)
            time.sleep(self._interval)

    def stop(self) -> Peak:
        """The peaks seen so far."""
        self._done.set()
        self._thread.join()
        return Peak(self._private, self._unique)
