"""Asks the driver in a process of its own: NVML stays out of the service's memory, and its crashes too."""

from __future__ import annotations

import os
import subprocess
import sys

from refit_agent import paths
from refit_agent.errors import RefitError
from refit_agent.gpu.fingerprint import fingerprint
from refit_agent.gpu.remembered import recall
from refit_agent.refit.worker_process import worker_interpreter

_BOOT = "import sys; sys.path[:] = sys.argv[1:]; "
_DETECT = "from refit_agent.gpu.detect import detect; detect()"
_LOAD = "from refit_service.idle import gpu_at_work; print(gpu_at_work())"
_DEADLINE_S = 30.0
_NOT_ASKED = "the GPU's load cannot be asked"


def learn_machine(home: paths.Home) -> None:
    """See to it that this machine's description is remembered, so that the event loop never asks the driver.

    Blocks while the driver answers. What could not be asked here is asked by the first who needs it.
    """
    if recall(home.state, fingerprint()) is None:
        _run(_DETECT)


def gpu_load() -> str:
    """What `idle.gpu_at_work` says, and a reason to wait too where that ends badly: a driver that takes down whoever
    asks it may be at work. Blocks."""
    said = _run(_LOAD)
    return _NOT_ASKED if said is None else said.strip()


def _run(code: str) -> str | None:
    """What it prints, None if it ends badly."""
    try:
        # The same search path, since what is installed there is part of the machine's description.
        command = [*worker_interpreter(), "-c", _BOOT + code, *(os.path.abspath(p) for p in sys.path if p)]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # what a driver prints is any bytes
            timeout=_DEADLINE_S,
            cwd=os.sep,
            # On Windows a console window would appear each time. No other system has the flag.
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.SubprocessError, RefitError):
        return None
    return done.stdout if done.returncode == 0 else None
