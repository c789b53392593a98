"""Import the very runtime that an engine was chosen for; and ONNX Runtime, which must not report to its maker."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from refit_agent.errors import RuntimeChanged, RuntimeMissing
from refit_agent.machine import version_tuple

if TYPE_CHECKING:
    from refit_agent.refit.messages import Job

_EXTRAS = {"onnxruntime": "cpu", "tensorrt_rtx": "rtx"}


def import_onnxruntime() -> Any:
    """The module onnxruntime, without its telemetry. Raises ImportError.

    Official builds (1.31's are the first seen to, on Linux too) send events to their maker, and leave an identifier
    of the machine and a database in the user's cache folder. The user of an app was never asked. What
    ORT_DISABLE_TELEMETRY says already stays.
    """
    # Before the import: the library looks when it starts.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def import_runtime(job: Job) -> ModuleType:
    """The module that the job names, from the folder and in the version that it names.

    Raises:
        RuntimeMissing: it cannot be imported.
        RuntimeChanged: another version was found: what it makes must not be cached under the job's key.
    """
    if job.module_folder:
        sys.path.insert(0, job.module_folder)
    try:
        module = import_onnxruntime() if job.module == "onnxruntime" else importlib.import_module(job.module)
    except (ImportError, OSError) as error:
        # It was found on the disk, or this engine would not have been chosen.
        hint = f"It is there, but its import failed ({error}): install it anew."
        extra = _EXTRAS.get(job.module, "cu13")
        raise RuntimeMissing(model=job.engine.path, runtime=job.module, extra=extra, hint=hint) from error
    found = str(module.__version__)
    if not _same(found, job.module_version):
        raise RuntimeChanged(module=job.module, expected=job.module_version, found=found)
    return module


def _same(found: str, expected: str) -> bool:
    """Whether two spellings name one version: what comes after a plus, and parts that one of them lacks, do not count."""
    a, b = version_tuple(found.partition("+")[0]), version_tuple(expected.partition("+")[0])
    shorter = min(len(a), len(b))
    return not expected or (shorter > 0 and a[:shorter] == b[:shorter])
