"""The standalone folder, built once for all tests that look into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILDER = ROOT / "packaging" / "standalone"
NAME = "refit-agent-0.1.0-linux-x86_64"
ORT_NAME = "refit-agent-onnxruntime-0.1.0-linux-x86_64"


class Built(NamedTuple):
    """``core`` as it was built; ``whole`` a copy with ONNX Runtime laid over it; ``said`` what the build printed."""

    core: Path
    ort: Path
    whole: Path
    said: str


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


def built(root: Path) -> Built:
    """Build below ``root``; skips where that cannot be done."""
    if not sys.platform.startswith("linux") or sys.implementation.name != "cpython":
        pytest.skip("the folder is made on Linux, by CPython")
    for tool in ("strip", "ldd"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    dist = root / "dist"
    said = build(dist, "--no-archives")
    whole = root / "with a space" / "app"
    shutil.copytree(dist / NAME, whole)
    shutil.copytree(dist / ORT_NAME, whole, dirs_exist_ok=True)
    return Built(dist / NAME, dist / ORT_NAME, whole, said)


def bare(home: Path, **more: str) -> dict[str, str]:
    """The environment of a machine with nothing but a shell: no Python on the path, no service."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "REFIT_AGENT_HOME": str(home), "REFIT_AGENT_SOCKET": "", **more}


def run(folder: Path, *arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One command of the folder's program."""
    program = folder / "bin" / "refit-agent"
    return subprocess.run([program, *arguments], env=env, cwd=os.sep, capture_output=True, text=True, timeout=120)
