"""What a number depends on that is not the code: processor, memory, disk, versions. Nothing that names the machine."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("msgspec", "filelock", "numpy", "onnx", "onnxruntime", "huggingface_hub", "aiohttp", "tensorrt", "tensorrt_lean")  # fmt: skip


def machine_facts(work: Path) -> dict[str, Any]:
    """Of this machine, and of the disk that holds ``work``."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "disk": _file_system(work),
        "gpus": _gpus(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        # Without it every process compiles every module anew: seconds, which nobody's installation has.
        "bytecode": not sys.dont_write_bytecode,
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def sentence(facts: dict[str, Any]) -> str:
    """One line for the head of the table."""
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    return (
        f"{facts['date']}, commit {facts['commit']}, {facts['cpu']}, {facts['cores']} cores, {gpus}, {facts['disk']}, "
        f"{facts['python']}, load before the run {facts['load_before']:.1f}"
        + (
            ""
            if facts.get("bytecode", True)
            else ", PYTHONDONTWRITEBYTECODE set: starts take far longer than anywhere else"
        )
    )


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit; with a plus if the tree is not as it was committed."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def _file_system(folder: Path) -> str:
    """The type of file system that the temporary files are on."""
    real, best, kind = str(folder.resolve()), "", "unknown"
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return kind
    for _, place, name, *_ in mounts:
        if len(place) >= len(best) and (real == place or real.startswith(place.rstrip("/") + "/")):
            best, kind = place, name
    return kind


def _gpus() -> list[str]:
    from refit_agent.gpu.detect import detect

    return [gpu.name for gpu in detect(fresh=True).gpus]
