"""ONNX Runtime is imported in one place, which keeps it from reporting to its maker."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import refit_agent
from refit_agent.runtimes.importing import import_onnxruntime

SOURCE = Path(refit_agent.__file__).parent

#: Makers of bundles run it in their own process, users in the worker; what one sets must not cover for the other.
_MAKE = """
import os
from refit_agent.authoring.demo_bundle import demo_input, run_model, write_demo_bundle
root = os.path.join(os.environ["HOME"], "bundle")
write_demo_bundle(root)
run_model(os.path.join(root, "classifier/classifier.onnx"), demo_input())
"""
_USE = """
import os
from refit_agent import ensure_engine
with ensure_engine(os.path.join(os.environ["HOME"], "bundle"), "classifier", target="cpu", service=False) as engine:
    assert engine.check == "golden", engine.check
"""


def test_nothing_is_left_in_the_user_s_folders_but_ours(tmp_path: Path) -> None:
    """No identifier of the machine, and no database of events that wait to be sent."""
    gone = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "ORT_DISABLE_TELEMETRY")
    env = {k: v for k, v in os.environ.items() if k not in gone and not k.startswith("REFIT_AGENT_")}
    home = tmp_path / "home"
    home.mkdir()
    for code in (_MAKE, _USE):
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, env={**env, "HOME": str(home)}, capture_output=True, text=True, timeout=100)
        assert run.returncode == 0, run.stderr
    assert (home / ".cache/refit-agent/engines").is_dir()
    others = {p.relative_to(home).as_posix() for p in home.rglob("*") if "refit-agent" not in p.as_posix()}
    assert {name for name in others if not name.startswith("bundle")} <= {".cache", ".local", ".local/state"}


def test_onnx_runtime_is_imported_nowhere_else() -> None:
    """A forgotten place would send events."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "onnxruntime" for name in names), path


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    """It is a setting of ONNX Runtime's, not of ours."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before or "")  # and what is set below is undone
    if before is None:
        del os.environ["ORT_DISABLE_TELEMETRY"]
    assert import_onnxruntime().__name__ == "onnxruntime"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == after
