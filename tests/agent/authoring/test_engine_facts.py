"""What is known of a plan: by its header, by the record of its build, by what is said; and what contradicts what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bundles import make_onnx
from plan_files import FACTS, leave_record, one_model_bundle, tree, write_plan
from refit_agent.authoring.engine_facts import EngineFacts, checked_facts
from refit_agent.authoring.errors import EngineRefused, FactsMissing, RecordInvalid
from refit_agent.authoring.new_engine import add_engine, know_plan
from refit_agent.errors import SettingInvalid
from refit_agent.manifest import Engine

OLD = {"version": (8, 6, 0, 12)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_model_bundle(tmp_path / "bundle")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "mlp.plan")


def facts(**changes: Any) -> EngineFacts:
    return msgspec.structs.replace(FACTS, **changes)


def test_all_that_is_missing_is_listed_at_once(root: Path, plan: Path, tmp_path: Path) -> None:
    """For every kind of plan what it does not tell, and nothing changes."""
    before = tree(root)
    with pytest.raises(FactsMissing) as info:
        add_engine(root, "mlp", plan)
    assert info.value.facts["missing"] == "os, compute_capabilities, version_compatible, precision, strip, refit"
    old = write_plan(tmp_path / "old.plan", **OLD)
    assert know_plan(old).missing == ("os", "compute_capabilities", "version_compatible", "precision")
    assert (know_plan(old).facts.strip, know_plan(old).facts.refit) == ("zeros", "any")
    rtx = write_plan(tmp_path / "rtx.plan", runtime="tensorrt-rtx", version=(1, 7, 1, 116))
    assert know_plan(rtx).missing == ("os", "compute_capabilities", "precision", "strip", "refit")
    assert know_plan(plan, EngineFacts(min_compute_capability="8.0")).missing == (
        "os",
        "version_compatible",
        "precision",
        "strip",
        "refit",
    )
    assert tree(root) == before


@pytest.mark.parametrize(
    ("version", "changes", "says"),
    [
        ((8, 6, 0, 12), {"strip": "plan"}, "STRIP_PLAN came with TensorRT 10"),
        ((8, 6, 0, 12), {"refit": "identical"}, "refit identical came with TensorRT 10"),
        ((8, 6, 0, 12), {"version_compatible": True}, "must hold its weights"),
        ((8, 5, 3, 1), {"version_compatible": True, "strip": "none"}, "came with TensorRT 8.6"),
        ((10, 0, 1, 6), {"hardware_compatibility": "same-compute-capability"}, "came with TensorRT 10.9"),
        ((8, 5, 3, 1), {"compute_capabilities": None, "min_compute_capability": "8.0"}, "came with TensorRT 8.6"),
        ((10, 9, 0, 1), {"compute_capabilities": ("8.4",)}, "no GPU has the compute capability 8.4"),
        ((10, 9, 0, 1), {"min_compute_capability": "8.6"}, "no list of them"),
        ((10, 9, 0, 1), {"compute_capabilities": None, "min_compute_capability": "7.5"}, "begins with compute capability 8.0"),
        ((10, 9, 0, 1), {"hardware_compatibility": "ampere-plus"}, "must give the least"),
        (
            (10, 9, 0, 1),
            {"hardware_compatibility": "none", "compute_capabilities": None, "min_compute_capability": "8.0"},
            "only a plan for Ampere",
        ),
        ((10, 9, 0, 1), {"strip": "zeros", "refit": "identical"}, "built from zeroed weights"),
        ((10, 9, 0, 1), {"version_compatible": False, "host_code": True}, "only a version-compatible plan"),
        ((10, 9, 0, 1), {"profile": ""}, "is empty"),
    ],
)  # fmt: skip
def test_what_no_builder_can_have_built(
    root: Path, tmp_path: Path, version: tuple[int, ...], changes: dict[str, Any], says: str
) -> None:
    """Is refused in words, before anything is done."""
    plan = write_plan(tmp_path / "p.plan", version=version)
    said = EngineFacts(os=("linux",), compute_capabilities=("8.9",), version_compatible=False, precision="fp16")
    if version >= (10,):
        said = FACTS
    before = tree(root)
    with pytest.raises(EngineRefused) as info:
        add_engine(root, "mlp", plan, msgspec.structs.replace(said, **changes))
    assert says in str(info.value)
    assert tree(root) == before


def test_rtx_plans(root: Path, tmp_path: Path) -> None:
    """They run on the GPUs that TensorRT-RTX supports, and each that is named must be one."""
    plan = write_plan(tmp_path / "p.plan", runtime="tensorrt-rtx", version=(1, 7, 1, 116))
    said = EngineFacts(os=("linux",), precision="fp16", strip="plan", refit="identical")

    def add(**changes: Any) -> Engine:
        return add_engine(root, "mlp", plan, msgspec.structs.replace(said, **changes)).engine

    with pytest.raises(EngineRefused, match=r"TensorRT-RTX supports compute capability 8.0.* has 9\.0"):
        add(compute_capabilities=("8.9", "9.0"))
    with pytest.raises(EngineRefused, match="no version-compatible plans"):
        add(compute_capabilities=("8.9",), version_compatible=True)
    with pytest.raises(EngineRefused, match="no plans of that kind"):
        add(compute_capabilities=("8.9",), hardware_compatibility="same-compute-capability")
    assert add(compute_capabilities=("8.9", "12.0")).path == "engines/mlp/rtx-sm89-sm120-fp16-linux.plan.zst"
    assert add(min_compute_capability="8.0").path == "engines/mlp/rtx-ampere-plus-fp16-linux.plan.zst"


def test_facts_have_their_forms() -> None:
    """A value of no form is the caller's mistake, named with what was wanted."""
    for fields, says in (
        ({"compute_capabilities": ["89"]}, "compute capabilities is '89', which is not a compute capability"),
        ({"min_driver": "new"}, "min driver is 'new', which is not a driver's version"),
        ({"os": ["mac"]}, "os is 'mac'"),
    ):
        with pytest.raises(SettingInvalid) as info:
            checked_facts(**fields)
        assert says in str(info.value)
    assert checked_facts(os=["linux"], strip=None) == EngineFacts(os=("linux",))


# ---------------------------------------------------------------- records


def test_a_record_says_everything(root: Path, plan: Path) -> None:
    """Beside the plan it is found, elsewhere it is named; what it does not know is added."""
    onnx = root / "models" / "mlp" / "mlp.onnx"
    record = leave_record(plan, onnx)
    engine = add_engine(root, "mlp", plan, EngineFacts(tolerance=0.3, min_driver="525.1")).engine
    assert (engine.gpu, engine.refit, engine.precision) == ("NVIDIA L4", "identical", "fp16")
    assert (engine.tolerance, engine.min_driver) == (0.3, "525.1")
    assert engine.weight_map == record.weight_map
    elsewhere = plan.with_name("elsewhere.json")
    plan.with_name("mlp.plan.json").rename(elsewhere)
    assert know_plan(plan).missing != ()
    assert know_plan(plan, None, elsewhere).missing == ()


@pytest.mark.parametrize(
    ("recorded", "said", "says"),
    [
        ({}, {"os": ("windows",)}, "os is said to be windows, and the record of its build says linux"),
        ({}, {"refit": "any"}, "refit is said to be any, and the record"),
        ({}, {"version_compatible": False}, "version_compatible is said to be False"),
        ({"built_with": "10.16.1.12"}, {}, "its header gives built_with 10.16.1.11, and the record of its build 10.16.1.12"),
        ({"runtime": "tensorrt-rtx"}, {}, "its header gives runtime tensorrt"),
        ({"plan_size": 5}, {}, "its header gives plan_size"),
        ({"plan_sha256": "0" * 64}, {}, "not the plan that the record of its build describes"),
        ({"weight_map": {"w1": {"from": "nothing"}}}, {}, "w1"),
        ({"weight_map": {"other": {"from": "w1"}}}, {}, "asks for no weight of that name"),
    ],
)  # fmt: skip
def test_a_record_that_is_contradicted(
    root: Path, plan: Path, recorded: dict[str, Any], said: dict[str, Any], says: str
) -> None:
    """By what is said, by the header, by the plan itself or by the model."""
    leave_record(plan, root / "models" / "mlp" / "mlp.onnx", **recorded)
    before = tree(root)
    with pytest.raises(EngineRefused) as info:
        add_engine(root, "mlp", plan, EngineFacts(**said))
    assert says in str(info.value)
    assert tree(root) == before


def test_a_record_for_another_model(root: Path, plan: Path, tmp_path: Path) -> None:
    """The canonical model, perhaps: the hint names the one to add."""
    make_onnx(tmp_path / "other.onnx", seed=3)
    leave_record(plan, tmp_path / "other.onnx")
    with pytest.raises(EngineRefused, match="built from an ONNX file with SHA-256") as info:
        add_engine(root, "mlp", plan)
    assert str(tmp_path / "other.onnx") in info.value.hint


def test_a_record_that_is_none(root: Path, plan: Path) -> None:
    """Beside a plan any JSON file may lie; it is not passed over in silence."""
    plan.with_name("mlp.plan.json").write_text("{}")
    with pytest.raises(RecordInvalid):
        add_engine(root, "mlp", plan, FACTS)


# ---------------------------------------------------------------- weight maps


def test_a_weight_map_is_checked_against_the_model(root: Path, plan: Path) -> None:
    """Names, and form; which weights the plan asks for nobody knows here."""
    sound = {"a": {"from": "w1"}, "b": {"fill": 0.0, "count": 4, "dtype": "float32"}}
    assert add_engine(root, "mlp", plan, facts(weight_map=sound)).engine.weight_map == sound
    for wrong, says in (
        ({"a": {"from": "nothing"}}, "a: explicit weight map: the model has no weight 'nothing'"),
        ({"a": {"form": "w1"}}, "needs one of the fields 'from'"),
        ({"a": {"from": "w1", "fill": 1}}, "does not belong beside"),
    ):
        with pytest.raises(EngineRefused) as info:
            add_engine(root, "mlp", plan, facts(weight_map=wrong, compute_capabilities=("9.0",)))
        assert says in str(info.value)
