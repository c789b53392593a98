"""The service on a GPU machine, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from refit_agent import ServiceClient

_DRIVER = ("libcuda", "libnvinfer", "libcudart", "libnvidia", "libnvonnxparser")


class Served:
    """A service in a process of its own, with its client; ``under`` is a command that runs another one."""

    def __init__(self, home: Path, under: tuple[str, ...] = ()) -> None:
        command = [*under, sys.executable, "-m", "refit_agent", "serve"]
        self.process = psutil.Popen(command, stderr=subprocess.DEVNULL)
        self.client = ServiceClient()
        ends = time.monotonic() + 60
        while not (home / "run" / "agent.sock").exists():
            assert self.process.poll() is None and time.monotonic() < ends
            time.sleep(0.05)

    def wait_for_engines(self, count: int = 1) -> None:
        """Return when so many are in the cache: right after a registration nothing has begun yet, which looks idle."""
        ends = time.monotonic() + 120
        while self.client.status().cache.entries < count:
            assert time.monotonic() < ends, self.client.status()
            time.sleep(0.1)

    def wait_idle(self) -> None:
        """Return when nothing is being made any more."""
        ends = time.monotonic() + 120
        while True:
            now = self.client.status()
            if not now.jobs and now.warm.state == "idle":
                return
            assert time.monotonic() < ends, now
            time.sleep(0.1)

    @property
    def resident_mb(self) -> float:
        return float(self.process.memory_info().rss / 2**20)

    @property
    def driver_files(self) -> list[str]:
        """Files of CUDA, TensorRT or the driver that are mapped into the service."""
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as maps:
            return [line.split()[-1] for line in maps if any(part in line for part in _DRIVER)]

    @property
    def devices(self) -> list[str]:
        """Device files of the driver that the service holds open."""
        folder = f"/proc/{self.process.pid}/fd"
        return [t for t in (os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)) if t.startswith("/dev/nvidia")]
