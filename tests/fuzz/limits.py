"""What a process that reads hostile files may use."""

from __future__ import annotations

import os
import sys

#: Beyond what the process has when the limit is set: libraries take address space that they never use, ...
MORE_BYTES = 1 << 30
#: ... and every thread of theirs, of which they start one for each core: its stack and its part of the heap.
_THREAD_BYTES = 192 << 20


def limit_memory() -> None:
    """Let an allocation fail that only a lie in a file can ask for; for the rest of this process, on Linux alone."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    most = used + MORE_BYTES + _THREAD_BYTES * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
