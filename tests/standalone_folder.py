"""The standalone folder, built once per test session for all tests that look into it.

REFIT_AGENT_DIST names one that is there already; otherwise it takes a minute or two, and a network.
"""

from __future__ import annotations

import atexit
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILDER = ROOT / "packaging" / "standalone"
NAME = "refit-agent-0.1.0-linux-x86_64"
ORT_NAME = "refit-agent-onnxruntime-0.1.0-linux-x86_64"
#: Read now: no test sees the tester's variables.
_GIVEN = os.environ.get("REFIT_AGENT_DIST")


class Built(NamedTuple):
    """``core`` as it was built; ``whole`` a copy with ONNX Runtime laid over it."""

    core: Path
    ort: Path
    whole: Path


def build(dist: Path, *options: str) -> str:
    """Run the build as a user does; gives what it printed."""
    command = [sys.executable, str(BUILDER / "build.py"), "--dist", str(dist), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode != 0 and any(
        w in done.stderr for w in ("NewConnectionError", "Could not fetch URL", "from versions: none")
    ):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def real_folder() -> Path:
    """The folder that holds both folders: REFIT_AGENT_DIST, or built now; skips where that cannot be done."""
    if _GIVEN:
        return Path(_GIVEN).resolve()
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.implementation.name != "cpython":
        pytest.skip("the folder is made on Linux on x86-64, by CPython")
    for tool in ("strip", "ldd"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    work = Path(tempfile.mkdtemp(prefix="refit-agent-dist-"))
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    build(work, "--no-archives")
    return work


def built(root: Path) -> Built:
    """The folders, and below ``root`` a copy of them laid together; skips where they cannot be built."""
    dist = real_folder()
    core, ort = dist / NAME, dist / ORT_NAME
    whole = root / "with a space" / "app"
    shutil.copytree(core, whole)
    shutil.copytree(ort, whole, dirs_exist_ok=True)
    return Built(core, ort, whole)


def bare(home: Path, **more: str) -> dict[str, str]:
    """The environment of a machine with nothing but a shell: no Python on the path, no service."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "REFIT_AGENT_HOME": str(home), "REFIT_AGENT_SOCKET": "", **more}


def run(folder: Path, *arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One command of the folder's program."""
    program = folder / "bin" / "refit-agent"
    return subprocess.run([program, *arguments], env=env, cwd=os.sep, capture_output=True, text=True, timeout=120)
