"""What is said where something is missing, as pip's package and as the standalone folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundles import edit, make_bundle
from refit_agent import explain
from refit_agent.authoring.errors import AuthoringMissing
from refit_agent.cli import doctor_checks
from refit_agent.errors import FetchLibraryMissing, RuntimeMissing, ServiceMissing, VerifierMissing, advice


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    """Where a process was installed is looked at once."""
    advice.in_folder.cache_clear()
    yield
    advice.in_folder.cache_clear()


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python and this package at the places that they have in the standalone folder, which is reached by a link."""
    (tmp_path / "app/python").mkdir(parents=True)
    (tmp_path / "link").symlink_to("app")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "link/python"))
    monkeypatch.setattr(advice, "__file__", str(tmp_path / "app/lib/refit_agent/errors/advice.pyc"))


def test_the_folder_has_no_pip(in_folder: None) -> None:
    """Nobody can follow "pip install" there: the parts and packages are named, and what cannot be had at all."""
    runtime = RuntimeMissing(model="m", runtime="ONNX Runtime", extra="cpu")
    assert runtime.hint.startswith("Add the part onnxruntime of this version to the folder of refit-agent")
    assert ("or install the package refit-agent-onnxruntime" in runtime.hint) == (sys.platform == "linux")
    assert "tensorrt-lean" in RuntimeMissing(model="m", runtime="tensorrt_lean", extra="cu13").hint
    for kind in (ServiceMissing, VerifierMissing):
        assert "nstall refit-agent anew" in kind(detail="").hint
    for kind in (FetchLibraryMissing, AuthoringMissing):
        assert "one installed with pip can" in kind(detail="").hint
    assert advice.suited("too old: pip install -U 'refit-agent[cpu]'.") == "too old: update refit-agent with its part onnxruntime."  # fmt: skip


def test_a_part_of_itself_that_is_missing(in_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What doctor says of an installation that lacks a library: the folder has no pip to put it back."""
    monkeypatch.setattr(doctor_checks, "_requirements", lambda: ["no-such-library>=1"])
    found = doctor_checks._versions()
    assert found.status == "fail" and "no-such-library" in found.summary
    assert "pip" not in found.advice and "new copy of the folder" in found.advice
    assert ("apt reinstall" in found.advice) == (sys.platform == "linux")
    monkeypatch.setattr(sys, "prefix", "/usr")
    advice.in_folder.cache_clear()
    assert doctor_checks._versions().advice == "Reinstall it: pip install --force-reinstall refit-agent"


def test_elsewhere_it_is_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a folder that is like one, and where refit-agent is installed in a Python below a folder "lib"."""
    assert RuntimeMissing(model="m", runtime="r", extra="cpu").hint == "Install it with: pip install 'refit-agent[cpu]'"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "lib/venv"))
    monkeypatch.setattr(advice, "__file__", str(tmp_path / "lib/venv/lib/site-packages/refit_agent/errors/advice.py"))
    assert not advice.in_folder()
    assert VerifierMissing(detail="").hint == "pip install 'refit-agent[signing]'."


@pytest.mark.parametrize("built_with", ["1.20.0", "999.0.0"])
def test_reasons_of_the_selection_follow(in_folder: None, tmp_path: Path, built_with: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """ONNX Runtime that is missing, or older than the graph."""
    bundle = make_bundle(tmp_path / "bundle")
    edit(bundle, lambda d: d["models"][0]["engines"][0].update(built_with=built_with))
    if built_with == "1.20.0":
        monkeypatch.setattr("refit_agent.machine.Machine.installed", lambda *_: ())
    selection, _ = explain(str(bundle), "mlp", target="cpu")
    said = " ".join(f"{r.reason} {r.need}" for r in selection.refusals if r.code.startswith("runtime-"))
    assert "part onnxruntime" in said and "pip" not in said
