"""Engines in a bundle: what is known of a plan, what is refused, and that it ships as it was built."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bundles import MODEL, make_onnx
from plan_files import FACTS, leave_record, one_model_bundle, plan_bytes, tree, write_plan
from refit_agent import ensure_engine
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import EngineRefused, NameTaken, NameUnusable
from refit_agent.authoring.golden_data import add_golden
from refit_agent.authoring.new_cpu_engine import add_cpu_engine
from refit_agent.authoring.new_engine import add_engine
from refit_agent.authoring.new_model import add_model
from refit_agent.bundle import Bundle
from refit_agent.digest import verify_file
from refit_agent.errors import BundleError, PlanInvalid, SettingInvalid, UnknownModel
from refit_agent.manifest import Engine
from refit_agent.refit.unpack import unpack

OLD = {"version": (8, 6, 0, 12)}
ZEROS = EngineFacts(os=("linux",), compute_capabilities=("9.0",), version_compatible=False, precision="fp32")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_model_bundle(tmp_path / "bundle")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "mlp.plan")


def facts(**changes: Any) -> EngineFacts:
    return msgspec.structs.replace(FACTS, **changes)


def _sound(root: Path, engine: Engine, data: bytes) -> None:
    bundle = Bundle.open(root)
    verify_file(bundle.locate(engine), engine)
    with contextlib.closing(unpack(bundle.locate(engine), engine)) as image:
        assert bytes(image.view) == data


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_plan_ships_as_it_was_built(root: Path, plan: Path, compression: Any) -> None:
    """What the header tells is filled in, the rest as it was said; unpacked it is the same, bit by bit."""
    engine = add_engine(root, "mlp", plan, FACTS, compression=compression).engine
    data = plan.read_bytes()
    assert (engine.runtime, engine.built_with, engine.plan_size) == ("tensorrt", "10.16.1.11", len(data))
    assert engine.plan_sha256 == hashlib.sha256(data).hexdigest()
    assert (engine.os, engine.compute_capabilities, engine.version_compatible) == (("linux",), ("8.9",), True)
    assert (engine.precision, engine.tolerance, engine.strip, engine.refit) == ("fp16", 1e-2, "plan", "any")
    assert (engine.size < len(data) / 4) == (compression == "zstd")
    assert engine.path == "engines/mlp/sm89-fp16-linux.plan" + (".zst" if compression == "zstd" else "")
    assert Bundle.open(root).model("mlp").engines == (engine,)
    _sound(root, engine, data)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"os": ("linux", "windows"), "compute_capabilities": ("8.6", "8.9")}, "sm86-sm89-fp16.plan.zst"),
        ({"compute_capabilities": ("7.5", "8.0", "8.6", "8.9")}, "sm75-and-3-more-fp16-linux.plan.zst"),
        (
            {"compute_capabilities": None, "min_compute_capability": "8.0", "profile": "Batch 1..8"},
            "ampere-plus-fp16-Batch-1..8-linux.plan.zst",
        ),
        ({"precision": "fp16+int8"}, "sm89-fp16-int8-linux.plan.zst"),
    ],
)
def test_a_path_says_what_the_engine_is_for(root: Path, plan: Path, changes: dict[str, Any], path: str) -> None:
    """And has nothing in it that a file's name could not have."""
    engine = add_engine(root, "mlp", plan, facts(**changes)).engine
    assert engine.path == f"engines/mlp/{path}"
    assert engine.tolerance == (0.1 if "int8" in engine.precision else 0.01)


def test_a_path_of_one_s_own(root: Path, plan: Path) -> None:
    """Anywhere in the bundle, and nowhere else, and never over another file."""
    assert add_engine(root, "mlp", plan, FACTS, path="gpu/x.bin").engine.path == "gpu/x.bin"
    before = tree(root.parent)
    for path in ("../x", "/x", "con/x", "a\\b"):
        with pytest.raises(NameUnusable):
            add_engine(root, "mlp", plan, facts(gpu="NVIDIA L4"), path=path)
    for path in ("gpu/x.bin", "models/mlp/mlp.onnx", "GPU/X.bin"):
        with pytest.raises(NameTaken):
            add_engine(root, "mlp", plan, facts(gpu="NVIDIA L4"), path=path)
    assert tree(root.parent) == before


def test_identical_weights_are_named(root: Path, plan: Path) -> None:
    """By the model that is in the bundle."""
    engine = add_engine(root, "mlp", plan, facts(refit="identical")).engine
    assert engine.weights_sha256 == Bundle.open(root).model("mlp").weights_digest()


def test_a_lean_runtime_goes_along(root: Path, plan: Path, tmp_path: Path) -> None:
    """As a file of the bundle of its own; it needs a plan that it could load."""
    (tmp_path / "libnvinfer_lean.so.10").write_bytes(b"library")
    path = str(tmp_path / "libnvinfer_lean.so.10")
    engine = add_engine(root, "mlp", plan, facts(lean_runtime=path)).engine
    assert engine.lean_runtime is not None
    assert engine.lean_runtime.path == "engines/mlp/libnvinfer_lean.so.10"
    verify_file(Bundle.open(root).locate(engine.lean_runtime), engine.lean_runtime)
    with pytest.raises(EngineRefused, match="version-compatible plans alone"):
        add_engine(root, "mlp", plan, facts(lean_runtime=path, version_compatible=False))


def test_a_tolerance_of_one_s_own(root: Path, plan: Path) -> None:
    """Goes before that of the precision; an unknown precision has none."""
    assert add_engine(root, "mlp", plan, facts(tolerance=0.5)).engine.tolerance == 0.5
    assert add_engine(root, "mlp", plan, facts(precision="odd", compute_capabilities=("9.0",))).engine.tolerance is None
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(SettingInvalid, match="tolerance"):
            add_engine(root, "mlp", plan, facts(tolerance=wrong))


# ---------------------------------------------------------------- what selection would never choose


def test_an_entry_that_selection_cannot_tell_from_another(root: Path, plan: Path) -> None:
    """Is refused; with replace it takes the other's place, and the other's file goes."""
    first = add_engine(root, "mlp", plan, FACTS).engine
    before = tree(root)
    with pytest.raises(EngineRefused, match="sees no difference between it and engines/mlp/sm89-fp16-linux") as info:
        add_engine(root, "mlp", plan, facts(precision="fp32"))
    assert "precision is for people alone" in str(info.value) and "--replace" in info.value.hint
    assert tree(root) == before
    added = add_engine(root, "mlp", plan, facts(precision="fp32"), replace=True)
    assert added.replaced == (first,) and Bundle.open(root).model("mlp").engines == (added.engine,)
    assert not (root / first.path).exists() and (root / added.engine.path).exists()


def test_an_entry_that_always_stands_behind_another(root: Path, plan: Path) -> None:
    """Is refused, unless it goes first; then the others are named that stand behind it."""
    wide = add_engine(root, "mlp", plan, facts(compute_capabilities=("8.9", "9.0"))).engine
    with pytest.raises(EngineRefused, match=r"sm89-sm90-fp16-linux\.plan\.zst would be taken in its place") as info:
        add_engine(root, "mlp", plan, FACTS)
    assert "--first" in info.value.hint
    assert add_engine(root, "mlp", plan, FACTS, first=True).hidden == ()
    other = add_engine(root, "mlp", plan, facts(compute_capabilities=("9.0", "8.9", "8.6")), first=True)
    assert {e.path for e in other.hidden} == {wide.path, "engines/mlp/sm89-fp16-linux.plan.zst"}


# ---------------------------------------------------------------- bad input


def test_a_plan_that_still_holds_weights(root: Path, tmp_path: Path) -> None:
    """It would ship them again; said to hold them, it may."""
    full = write_plan(tmp_path / "full.plan", weights=True, **OLD)
    with pytest.raises(EngineRefused, match=r"seems to hold weights, though strip is zeros: compressed, 100%") as info:
        add_engine(root, "mlp", full, ZEROS)
    assert "--strip none" in info.value.hint
    assert not (root / "engines").exists()
    assert add_engine(root, "mlp", full, msgspec.structs.replace(ZEROS, strip="none")).engine.strip == "none"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with b''"),
        (plan_bytes()[:1000], "cut short, or changed"),
        (plan_bytes()[:20], "cut short"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "begins with"),
        (b"\x08\x08onnx", "begins with"),
    ],
)
def test_what_is_no_plan(root: Path, tmp_path: Path, data: bytes, says: str) -> None:
    """Truncated, compressed already, a model: an error of ours, and no reader is told to reinstall anything."""
    (tmp_path / "p.plan").write_bytes(data)
    before = tree(root)
    with pytest.raises(PlanInvalid) as info:
        add_engine(root, "mlp", tmp_path / "p.plan", FACTS)
    assert says in str(info.value) and "not compressed" in info.value.hint
    assert tree(root) == before


def test_files_that_are_not_there(root: Path, plan: Path, tmp_path: Path) -> None:
    """The plan, the model, the lean runtime, the record, the bundle: each is named."""
    before = tree(root)
    for arguments, options, says in (
        ((root, "mlp", tmp_path / "none"), {}, "none cannot be read"),
        ((root, "mlp", tmp_path), {}, "not a regular file"),
        ((root, "mlp", plan), {"record": tmp_path / "none"}, "not the record of a build: it cannot be read"),
        ((tmp_path / "none", "mlp", plan), {}, "There is no bundle"),
    ):
        with pytest.raises(BundleError) as info:
            add_engine(*arguments, FACTS, **options)  # type: ignore[arg-type]
        assert says in str(info.value)
    with pytest.raises(UnknownModel, match="'mlp'"):
        add_engine(root, "other", plan, FACTS)
    with pytest.raises(BundleError, match=r"lean\.so cannot be read"):
        add_engine(root, "mlp", plan, facts(lean_runtime=str(tmp_path / "lean.so")))
    assert tree(root) == before


def test_a_plan_that_changes_while_it_is_read(root: Path, plan: Path) -> None:
    """Nothing is added."""
    before = tree(root)

    def grow(step: Any) -> None:
        if step.phase == "compress" and step.done == 0:
            with open(plan, "ab") as file:
                file.write(b"more")

    with pytest.raises(EngineRefused, match="changed while it was read"):
        add_engine(root, "mlp", plan, FACTS, progress=grow)
    assert tree(root) == before


def test_a_model_that_is_replaced_meanwhile(root: Path, plan: Path, tmp_path: Path) -> None:
    """The engine's record names other weights by then."""
    leave_record(plan, root / "models" / "mlp" / "mlp.onnx")
    make_onnx(tmp_path / "other.onnx", seed=3)

    def replace(step: Any) -> None:
        if step.phase == "compress" and step.done == 0:
            add_model(root, "mlp", tmp_path / "other.onnx", replace=True)

    with pytest.raises(EngineRefused, match="built from an ONNX file"):
        add_engine(root, "mlp", plan, progress=replace)
    assert Bundle.open(root, draft=True).model("mlp").engines == ()


# ---------------------------------------------------------------- the CPU target


@pytest.mark.parametrize("external", [False, True])
def test_a_bundle_made_here_is_provisioned(tmp_path: Path, external: bool) -> None:
    """From nothing to a checked engine: the model, the CPU target, golden data."""
    root = one_model_bundle(tmp_path / "bundle", external=external)
    added = add_cpu_engine(root, "mlp")
    engine = added.added.engine
    assert (engine.runtime, engine.precision, engine.tolerance, engine.os) == ("onnxruntime", "fp32", 2e-3, ())
    assert engine.path == "engines/mlp/cpu-fp32.onnx.zst" and added.made.stripped_bytes == 2 * 48 * 48 * 4
    add_golden(root, "mlp")
    with ensure_engine(root, MODEL) as made:
        assert made.check == "golden"


def test_the_cpu_target_is_added_once(root: Path) -> None:
    """A second one is refused, or takes the first one's place."""
    add_cpu_engine(root, "mlp")
    with pytest.raises(EngineRefused, match="the CPU engine of 'mlp' was not added: selection sees no difference"):
        add_cpu_engine(root, "mlp")
    assert len(add_cpu_engine(root, "mlp", compression="none", replace=True).added.replaced) == 1
    assert [e.path for e in Bundle.open(root).model("mlp").engines] == ["engines/mlp/cpu-fp32.onnx"]
    assert add_cpu_engine(root, "mlp", profile="p", first=True, tolerance=0.5).added.engine.tolerance == 0.5


def test_the_cpu_target_of_a_model_that_was_changed(root: Path) -> None:
    """It would not belong to the weights that the manifest names."""
    onnx = root / "models" / "mlp" / "mlp.onnx"
    data = bytearray(onnx.read_bytes())
    data[-200] ^= 1
    onnx.write_bytes(data)
    with pytest.raises(BundleError, match="is not the one that the manifest describes"):
        add_cpu_engine(root, "mlp")
    assert json.loads((root / "bundle.json").read_bytes())["models"][0]["engines"] == []
