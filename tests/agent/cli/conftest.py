"""A command with a home of its own, and bundles to give to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refit_agent.authoring.demo_bundle import write_demo_bundle

from .command import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, in its smallest form. Never changed."""
    root = tmp_path_factory.mktemp("bundle")
    write_demo_bundle(str(root), width=8)
    return root


@pytest.fixture
def edited(bundle: Path, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """A copy of the bundle with a changed manifest."""

    def make(change: Callable[[Any], None]) -> Path:
        copy = tmp_path / "edited"
        shutil.copytree(bundle, copy)
        manifest = json.loads((copy / "bundle.json").read_text())
        change(manifest)
        (copy / "bundle.json").write_text(json.dumps(manifest))
        return copy

    return make


@pytest.fixture
def pretend_gpus(cli: Cli) -> Callable[[], None]:
    """Make the machine that the home remembers one with two H100s and an L4."""

    def pretend() -> None:
        cli("gpus")
        path = cli.home / "state" / "machine.json"
        answers = json.loads(path.read_text())
        gpu = {
            "index": 0,
            "name": "NVIDIA H100",
            "uuid": "GPU-1",
            "compute_capability": "9.0",
            "memory_total": 80 << 30,
        }
        for answer in answers:
            answer["machine"] |= {
                "driver": "580.159.04",
                "cuda": "13.0",
                "no_gpu_reason": "",
                "gpus": [
                    gpu,
                    gpu | {"index": 1, "uuid": "GPU-2"},
                    gpu | {"index": 2, "uuid": "GPU-3", "name": "NVIDIA L4", "compute_capability": "8.9"},
                ],
            }
        path.write_text(json.dumps(answers))

    return pretend
