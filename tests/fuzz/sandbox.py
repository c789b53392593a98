"""A folder for the files that a reader wants, of this process alone; in memory where the system has such a place."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path


@functools.cache
def folder(name: str) -> Path:
    """The folder of that name, made at the first call and removed when the process ends.

    An end without clean-up, as atheris makes it, leaves it to whoever set TMPDIR.
    """
    place = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=None if "TMPDIR" in os.environ else memory()))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def memory() -> str | None:
    """A folder for temporary files that never reach a disk, None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
