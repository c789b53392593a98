"""One string that changes whenever the answer of `detect` could, made of plain system calls."""

from __future__ import annotations

import os
import sys

import refit_agent
from refit_agent.gpu.folders import search_folders

if sys.platform == "win32":
    from refit_agent.gpu._windows import parts as _platform_parts
elif sys.platform == "linux":
    from refit_agent.gpu._linux import parts as _platform_parts
else:

    def _platform_parts() -> list[str]:
        return []


#: Raise it when the same machine would be described differently: old answers are then forgotten.
FORMAT = 1


def fingerprint() -> str:
    """The present state of machine, driver, environment and Python installation, as lines of text.

    Two equal strings mean that `detect` would answer the same. Costs under 0.1 ms, calls no driver,
    never raises, safe from any thread.
    """
    environ = os.environ
    lines = [
        f"format {FORMAT} {refit_agent.__version__}",
        f"python {sys.platform} {sys.prefix!r}",
        # It decides which driver library is found, and whether one is.
        f"libraries {environ.get('LD_LIBRARY_PATH')!r}",
        # repr: unset and empty mean opposite things to CUDA.
        f"visible {environ.get('CUDA_VISIBLE_DEVICES')!r} {environ.get('CUDA_DEVICE_ORDER')!r}",
    ]
    lines += _platform_parts()
    on_path, apart = search_folders()
    lines += [_folder("path", folder) for folder in on_path]
    lines += [_folder("apart", folder) for folder in apart]
    return "\n".join(lines)


def _folder(kind: str, folder: str) -> str:
    """A folder with what shows that something was added or replaced in it.

    Not the time of its change alone: who unpacks an archive sets that back to the archive's. Nobody can set the
    time of the change of the inode.
    """
    try:
        status = os.stat(folder)
    except OSError:
        return f"{kind} {folder!r} 0"
    return f"{kind} {folder!r} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
