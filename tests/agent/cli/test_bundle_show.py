"""`refit-agent bundle inspect|size`: tables for people, exact numbers for programs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from plan_files import FACTS, one_model_bundle, tree, write_plan
from refit_agent.authoring.golden_data import add_golden
from refit_agent.authoring.new_cpu_engine import add_cpu_engine
from refit_agent.authoring.new_engine import add_engine
from refit_agent.cli.bundle_words import share_text

from .command import Cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = one_model_bundle(tmp_path / "b")
    for capability, gpu in (("8.9", "NVIDIA L4"), ("9.0", "NVIDIA H100 80GB HBM3")):
        facts = msgspec.structs.replace(FACTS, compute_capabilities=(capability,), gpu=gpu)
        add_engine(root, "mlp", write_plan(tmp_path / "p.plan"), facts)
    add_cpu_engine(root, "mlp")
    return root


def test_inspect(cli: Cli, root: Path) -> None:
    """A row for each engine; what all have in common stands above, what differs in the row."""
    ran = cli("bundle", "inspect", root)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == "Test 1.0 (org.example.test)"
    assert "model mlp: models/mlp/mlp.onnx, 18.4 KiB" in lines
    assert "  strip plan, refit any, version-compatible, 0 sets of golden data" in lines
    (head,) = [line for line in lines if line.startswith("engine ")]
    assert head.split() == ["engine", "runtime", "for", "shipped", "what", "else"]
    (row,) = [line for line in lines if line.startswith("sm90-fp16-linux.plan.zst")]
    assert "TensorRT 10.16.1.11  9.0, linux" in row and "fp16, built on NVIDIA H100 80GB HBM3, tolerance 0.01" in row
    (row,) = [line for line in lines if line.startswith("cpu-fp32.onnx.zst")]
    assert row.endswith("fp32, tolerance 0.002") and "  ONNX Runtime 1.18+   CPU  " in row
    assert "not signed" in lines
    assert [line for line in lines if line.startswith("warning: model 'mlp' has no golden data")]


def test_inspect_as_json(cli: Cli, root: Path) -> None:
    """Everything, by the names of the manifest."""
    add_golden(root, "mlp")
    document = cli("bundle", "inspect", root, "--json").document
    assert document["unfinished"] == "" and document["warnings"] == []
    (model,) = document["models"]
    assert [e["engine"]["compute_capabilities"] for e in model["engines"][:2]] == [["8.9"], ["9.0"]]
    assert [e["golden"] for e in model["engines"]] == [1, 1, 1]


def test_faults_are_told_by_the_exit_code(cli: Cli, root: Path) -> None:
    """A file that is missing, a signature that is not good, no bundle at all."""
    (root / "bundle.sig").write_text("{}")
    ran = cli("bundle", "inspect", root)
    assert ran.code == 3 and "FAULT The signature of the bundle" in ran.out
    (root / "bundle.sig").unlink()
    (root / "engines/mlp/cpu-fp32.onnx.zst").unlink()
    ran = cli("bundle", "inspect", root)
    assert ran.code == 3 and "FAULT The bundle's file" in ran.out
    assert cli("bundle", "inspect", root, "--json").document["faults"][0]["path"] == "engines/mlp/cpu-fp32.onnx.zst"
    (root / "bundle.json").write_text("[]")
    for command in ("inspect", "size"):
        assert cli("bundle", command, root).code == 3
        assert cli("bundle", command, root / "none", "--json").document["error"]["code"] == "bundle-missing"


def test_a_draft(cli: Cli, tmp_path: Path) -> None:
    """Is shown as one."""
    root = one_model_bundle(tmp_path / "draft")
    ran = cli("bundle", "inspect", root)
    assert ran.code == 0 and "no engine yet, 0 sets of golden data" in ran.out
    assert ran.out.splitlines()[-1].startswith("the bundle is not finished")
    assert cli("bundle", "size", root).code == 0


def test_size(cli: Cli, root: Path) -> None:
    """Full, stripped and shipped of each engine, and the whole against full plans."""
    lines = cli("bundle", "size", root).out.splitlines()
    assert lines[0].split() == ["engine", "full", "plan", "stripped", "shipped", "saved"]
    assert lines[1].strip() == "mlp"
    assert lines[2].split()[:5] == ["sm89-fp16-linux.plan.zst", "~48.2", "KiB", "39.1", "KiB"]
    assert lines[4].split()[:3] == ["cpu-fp32.onnx.zst", "18.4", "KiB"]
    assert lines[5].startswith("shipped: ") and "models 18.4 KiB" in lines[5]
    assert lines[6].startswith("full plans for every GPU and ONNX for the CPU: about 114.7 KiB (")
    document = cli("bundle", "size", root, "--json").document
    assert document["shipped"] == sum(len(data) for data in tree(root).values() if data != b"(folder)")
    assert document["models"][0]["engines"][0]["stripped"] == 40_000


def test_size_without_an_engine_for_a_gpu(cli: Cli, tmp_path: Path) -> None:
    """There is nothing that full plans would be in place of, and so nothing is said to be saved or wasted."""
    root = one_model_bundle(tmp_path / "b")
    add_cpu_engine(root, "mlp")
    lines = cli("bundle", "size", root).out.splitlines()
    assert lines[0].split() == ["engine", "shipped"]
    assert lines[2].split()[0] == "cpu-fp32.onnx.zst" and lines[2].endswith("B")
    assert lines[3].startswith("shipped: ") and "models 18.4 KiB" in lines[3]
    assert lines[4:] == ["it has no engine for a GPU, so there are no full plans to compare it with"]


def test_shares() -> None:
    """As many digits as tell it from the whole, and never the whole if it is not."""
    assert [share_text(s) for s in (0.0, 0.684, 0.987, 0.9986, 0.99999, 1.0)] == [
        "0 %",
        "68 %",
        "98.7 %",
        "99.86 %",
        "> 99.99 %",
        "100.00 %",
    ]


@pytest.mark.parametrize("command", ["init", "add-model", "add-engine", "golden", "inspect", "size"])
def test_help(cli: Cli, command: str) -> None:
    """Each has an example and --json; a wrong option is a document with --json."""
    ran = cli("bundle", command, "-h")
    assert ran.code == 0 and ran.err == ""
    assert "Example:" in ran.out and "--json" in ran.out and f"refit-agent bundle {command}" in ran.out
    wrong = cli("bundle", command, "--frobnicate", "--json")
    assert (wrong.code, wrong.document["error"]["code"]) == (2, "usage")
