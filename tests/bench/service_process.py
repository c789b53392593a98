"""The service as a process of its own, below the REFIT_AGENT_HOME of this one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from refit_agent import ServiceClient
from refit_agent.errors import ServiceError

_START_S = 30.0


@contextlib.contextmanager
def service() -> Iterator[psutil.Process]:
    """Started, and stopped at the end; it answers before this gives it."""
    process = psutil.Popen([sys.executable, "-m", "refit_agent", "serve"], stderr=subprocess.DEVNULL)
    try:
        _wait(process)
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait(process: psutil.Popen) -> None:
    ends = time.monotonic() + _START_S
    with ServiceClient() as client:
        while True:
            try:
                client.status()
                return
            except ServiceError:
                if process.poll() is not None or time.monotonic() > ends:
                    raise
                time.sleep(0.05)


def private_bytes(process: psutil.Process) -> int:
    """Memory of the process that the kernel cannot take back."""
    return sum(int(m.private_dirty) for m in process.memory_maps())
