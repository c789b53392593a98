"""What a bundle's developer is told of it, and its sizes against full plans."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bundles import SIZE, edit, model_of
from plan_files import FACTS, one_model_bundle, tree, write_plan
from refit_agent.authoring.golden_data import add_golden
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_cpu_engine import add_cpu_engine
from refit_agent.authoring.new_engine import add_engine
from refit_agent.authoring.overview import inspect_bundle
from refit_agent.authoring.signing import make_key, sign_bundle
from refit_agent.authoring.sizes import bundle_size
from refit_agent.errors import BundleMissing, ManifestInvalid

WEIGHTS = (2 * SIZE * SIZE + SIZE) * 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A finished bundle: an engine for a GPU, one for the CPU, golden data."""
    root = one_model_bundle(tmp_path / "bundle")
    add_engine(root, "mlp", write_plan(tmp_path / "p.plan"), FACTS)
    add_cpu_engine(root, "mlp")
    add_golden(root, "mlp")
    return root


def test_a_finished_bundle_has_no_warnings(root: Path) -> None:
    """Its engines stand in order, with how many sets each is checked with; nothing is changed by looking."""
    before = tree(root)
    found = inspect_bundle(root)
    (model,) = found.models
    assert (found.app.id, found.unfinished, found.signed_by, found.signature_fault) == ("org.example.test", "", (), "")
    assert [(e.engine.runtime, e.golden, e.outranked_by) for e in model.engines] == [
        ("tensorrt", 1, ""),
        ("onnxruntime", 1, ""),
    ]
    assert found.warnings == () and found.faults == () and found.strangers == ()
    assert tree(root) == before


def test_a_draft_is_shown(tmp_path: Path) -> None:
    """With what it lacks, and no complaints about what is still to come."""
    init_bundle(tmp_path / "b", app_id="a.b", name="n", version="1")
    assert inspect_bundle(tmp_path / "b").unfinished == "it has no model yet"
    found = inspect_bundle(one_model_bundle(tmp_path / "c"))
    assert found.unfinished == "no engine yet for 'mlp'" and found.warnings == ()


def test_gaps_are_told(tmp_path: Path) -> None:
    """No golden data, nothing for the CPU, profiles that nobody gets by default."""
    root = one_model_bundle(tmp_path / "b")
    for profile in ("small", "large"):
        add_engine(root, "mlp", write_plan(tmp_path / "p.plan"), msgspec.structs.replace(FACTS, profile=profile))
    warnings = inspect_bundle(root).warnings
    assert [w for w in warnings if "no golden data, so" in w] and [w for w in warnings if "no engine for the CPU" in w]
    assert [w for w in warnings if "several profiles and no default one" in w]
    add_golden(root, "mlp", profile="small")
    assert [w for w in inspect_bundle(root).warnings if "no golden data for the profiles large" in w]


def _misspell(document: dict[str, Any]) -> None:
    model_of(document)["goldn"] = []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_misspell, "$.models[0].goldn is no field"),
        (lambda d: model_of(d)["engines"][0].update(host_code=True), "brings code of its own"),
        (lambda d: model_of(d)["engines"].append(model_of(d)["engines"][0]), "never the first choice"),
    ],
)
def test_oversights_are_told(root: Path, change: Any, says: str) -> None:
    """In a sentence each."""
    edit(root, change)
    assert [w for w in inspect_bundle(root).warnings if says in w]


def test_zeros_that_ship_are_told(tmp_path: Path) -> None:
    """A plan from zeroed weights that is not compressed is as large as the full one."""
    root = one_model_bundle(tmp_path / "b")
    old = write_plan(tmp_path / "p.plan", version=(8, 6, 0, 12))
    facts = msgspec.structs.replace(FACTS, strip=None, refit=None, version_compatible=False)
    add_engine(root, "mlp", old, facts, compression="none")
    assert [w for w in inspect_bundle(root).warnings if "ships the zeros" in w]


def test_files_that_are_not_right(root: Path) -> None:
    """Missing, of another size, or not named at all."""
    (root / "engines" / "mlp" / "cpu-fp32.onnx.zst").unlink()
    with open(root / "models" / "mlp" / "mlp.onnx", "ab") as file:
        file.write(b"x")
    (root / "notes.txt").write_text("12345")
    (root / "models" / "old.onnx").symlink_to("mlp/mlp.onnx")
    found = inspect_bundle(root)
    assert {f.path for f in found.faults} == {"engines/mlp/cpu-fp32.onnx.zst", "models/mlp/mlp.onnx"}
    assert found.strangers == ("notes.txt", "models/old.onnx")
    assert [w for w in found.warnings if w.startswith("the manifest does not name notes.txt, models/old.onnx")]


def test_the_signature(root: Path, tmp_path: Path) -> None:
    """Whose it is, or what is wrong with it."""
    public = make_key(str(tmp_path / "key.pem"))
    sign_bundle(str(root), str(tmp_path / "key.pem"))
    assert inspect_bundle(root).signed_by == (public,)
    (root / "bundle.json").write_bytes((root / "bundle.json").read_bytes() + b" ")
    assert "changed after it was signed" in inspect_bundle(root).signature_fault


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    """A clear error."""
    with pytest.raises(BundleMissing):
        inspect_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text("{")
    for look in (inspect_bundle, bundle_size):
        with pytest.raises(ManifestInvalid):
            look(tmp_path)


# ---------------------------------------------------------------- sizes


def test_sizes_of_a_bundle(root: Path) -> None:
    """Every file that ships counts once; full is the plan with the model's weights, in the plan's own type."""
    found = bundle_size(root)
    (model,) = found.models
    gpu, cpu = model.engines
    on_disk = sum(len(data) for data in tree(root).values() if data != b"(folder)")
    assert found.shipped == on_disk and found.fetched == 0
    assert model.weights == (root / "models/mlp/mlp.onnx").stat().st_size
    assert (gpu.stripped, gpu.full, gpu.estimated) == (40_000, 40_000 + WEIGHTS // 2, True), "fp16 takes half"
    assert (cpu.full, cpu.estimated) == (model.weights, False)
    assert gpu.shipped == (root / gpu.path).stat().st_size and 0.8 < gpu.saved < 1
    assert found.full_plans == gpu.full + model.weights == found.full_plans_and_onnx and found.estimated


def test_plans_from_zeroed_weights_are_as_large_as_full_ones(tmp_path: Path) -> None:
    """And without a CPU target nobody would ship the ONNX file."""
    root = one_model_bundle(tmp_path / "b")
    old = write_plan(tmp_path / "p.plan", version=(8, 6, 0, 12))
    add_engine(root, "mlp", old, msgspec.structs.replace(FACTS, strip=None, refit=None, version_compatible=False))
    found = bundle_size(root)
    (engine,) = found.models[0].engines
    assert (engine.full, engine.stripped, engine.estimated) == (40_000, 40_000, False)
    assert (found.full_plans, found.full_plans_and_onnx) == (40_000, 40_000 + found.models[0].weights)
    assert not found.estimated


def test_weights_that_are_elsewhere(root: Path) -> None:
    """Are not shipped, and estimated by the size of their file."""
    edit(root, lambda d: model_of(d)["onnx"].update(url="https://example.org/mlp.onnx"))
    os.unlink(root / "models" / "mlp" / "mlp.onnx")
    found = bundle_size(root)
    assert found.fetched == found.models[0].weights
    assert found.models[0].engines[0].full == 40_000 + found.models[0].weights
    assert inspect_bundle(root).faults == ()
    on_disk = sum(len(data) for data in tree(root).values() if data != b"(folder)")
    assert found.shipped == on_disk


def test_a_draft_has_sizes(tmp_path: Path) -> None:
    """Of what is there."""
    root = one_model_bundle(tmp_path / "b")
    found = bundle_size(root)
    assert found.models[0].engines == () and found.full_plans == 0
    assert json.loads(msgspec.json.encode(found))["shipped"] == found.shipped
