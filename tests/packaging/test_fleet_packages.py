"""Which packages the fleet's tests install: real ones of the present sources, or a stand-in that runs from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import debian_packages
import fleet_machine


@pytest.fixture
def dist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages and their folder that were made at 2000, from sources of 1000 (seconds of Unix time)."""
    source = tmp_path / "root/agent/module.py"
    source.parent.mkdir(parents=True)
    source.touch()
    os.utime(source, (1000, 1000))
    monkeypatch.setattr(debian_packages, "ROOT", tmp_path / "root")
    monkeypatch.setattr(fleet_machine, "ROOT", tmp_path / "root")
    made = tmp_path / "root/dist"
    made.mkdir()
    monkeypatch.setattr(fleet_machine, "DIST", made)
    for name in ("refit-agent-onnxruntime_0.1.0-1_amd64.deb", "refit-agent_0.1.0-1_amd64.deb"):
        (made / name).touch()
        os.utime(made / name, (2000, 2000))
    return made


def _edit(name: str) -> None:
    path = fleet_machine.ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (3000, 3000))


def test_packages_of_the_present_sources_are_taken(dist: Path, tmp_path: Path) -> None:
    """The agent's own first; what Python compiles, and what is in no package, makes nothing old."""
    _edit("agent/__pycache__/module.pyc")
    _edit("packaging/windows/build.py")
    found, own = fleet_machine.packages(tmp_path)
    assert [p.name.split("_")[0] for p in found] == ["refit-agent", "refit-agent-onnxruntime"] and own == []


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_packages_of_older_sources_are_not(dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in dist/ are passed over for the stand-in; of those that the tester named it is said."""
    _edit("packaging/systemd/refit-agent.service")
    found, own = fleet_machine.packages(tmp_path)
    assert [p.name for p in found] == ["refit-agent_0.1.0_all.deb"] and fleet_machine.ROOT in own
    monkeypatch.setenv("REFIT_AGENT_DIST", str(dist))
    with pytest.raises(pytest.skip.Exception, match=r"before packaging/systemd/refit-agent\.service was changed"):
        fleet_machine.packages(tmp_path)


def test_an_old_folder_makes_new_packages_old(dist: Path) -> None:
    """They are made from it: their own date says nothing then."""
    _edit("agent/module.py")
    for deb in dist.glob("*.deb"):
        os.utime(deb, (4000, 4000))
    assert debian_packages.newer_source(dist) is None
    parts = dist / "refit-agent-0.1.0-linux-x86_64/share/refit-agent/parts.json"
    parts.parent.mkdir(parents=True)
    parts.touch()
    written = parts.stat().st_ctime
    for deb in dist.glob("*.deb"):
        os.utime(deb, (written + 20, written + 20))
    os.utime(fleet_machine.ROOT / "agent/module.py", (written + 10, written + 10))
    assert debian_packages.newer_source(dist) == fleet_machine.ROOT / "agent/module.py"
