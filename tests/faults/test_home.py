"""The tools that developers start leave nothing in their home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests.faults", "--help"],
        ["tests.storm", "--help"],
        ["tests.fuzz", "--replay", "worker_jobs"],
        ["tests.bench", "--quick", "--only", "provision"],
        ["pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/storm", "tests/bitrot"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_onnx_runtime_leaves_nothing_there(arguments: list[str], tmp_path: Path) -> None:
    """No identifier of the machine, and no database of events that wait to be sent."""
    home = tmp_path / "home"
    home.mkdir()
    gone = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "ORT_DISABLE_TELEMETRY", "TMPDIR")
    env = {k: v for k, v in os.environ.items() if k not in gone and not k.startswith("REFIT_AGENT_")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=env | {"HOME": str(home)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p for p in home.rglob("*") if p.is_file() and "refit-agent" not in p.parts] == []
