"""What on Windows changes whenever the GPUs or the driver do, read without NVML.

UNTESTED on a real Windows machine: only its shape is checked, on Linux.
"""

from __future__ import annotations

import os
import time

_LIBRARIES = ("nvml.dll", "nvcuda.dll")
#: Seconds. The clock is set now and then, so that the computed time of start wavers a little.
_BOOT_GRAIN = 600


def parts(root: str | None = None) -> list[str]:
    """The machine's part of the fingerprint as lines without line breaks.

    ``root`` is the Windows folder (default: %SystemRoot%). Never raises.
    """
    folder = root or os.environ.get("SystemRoot", r"C:\Windows")  # noqa: SIM112 - its name on Windows
    # time.monotonic counts from the start of the machine on Windows: no ctypes needed to ask for it.
    started = int((time.time() - time.monotonic()) // _BOOT_GRAIN)
    return [f"boot {started}", *(f"{name} {_identity(os.path.join(folder, 'System32', name))}" for name in _LIBRARIES)]


def _identity(path: str) -> str:
    try:
        seen = os.stat(path)
    except OSError:
        return ""
    return f"{seen.st_size}:{seen.st_mtime_ns}"
