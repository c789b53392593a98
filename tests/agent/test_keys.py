from __future__ import annotations

from typing import Any

import msgspec
import pytest

from refit_agent import keys
from refit_agent.keys import attempt_context, engine_facts, engine_key
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.manifest import Engine, FileRef, Golden, Model, Plan
from refit_agent.selection import Candidate

replace = msgspec.structs.replace


def _ref(path: str, digit: str = "0") -> FileRef:
    return FileRef(path=path, size=1, sha256=digit * 64)


GPU = Gpu(index=0, name="NVIDIA L4", uuid="GPU-1", compute_capability="8.9")
ENGINE = Engine(
    path="p", size=1, sha256="1" * 64, runtime="tensorrt", built_with="10.0.1", plan_size=1, plan_sha256="2" * 64
)
CANDIDATE = Candidate(
    engine=ENGINE,
    number=0,
    target="cuda:0",
    gpu=GPU,
    runtime=InstalledRuntime(module="tensorrt", version="10.0.1"),
    tier="this-gpu",
    needs_check=False,
    reason="r",
)
MODEL = Model(name="m", onnx=_ref("m.onnx", "3"), engines=(ENGINE,), external=(_ref("w", "4"),))
MACHINE = Machine(os="linux", arch="x86_64", gpus=(GPU,), driver="550.1")


def key(candidate: Candidate = CANDIDATE, model: Model = MODEL, machine: Machine = MACHINE) -> str:
    return engine_key(engine_facts(candidate, model, None, machine))


def _engine(**changes: Any) -> dict[str, Candidate]:
    return {"candidate": replace(CANDIDATE, engine=replace(ENGINE, **changes))}


@pytest.mark.parametrize(
    "change",
    [
        _engine(plan_sha256="9" * 64),
        _engine(plan_sha256=None),
        _engine(refit="identical"),
        _engine(version_compatible=True),
        _engine(host_code=True),
        _engine(weight_map={"a": {"onnx": "b"}}),
        _engine(lean_runtime=_ref("lean", "5")),
        {"candidate": replace(CANDIDATE, runtime=InstalledRuntime(module="tensorrt", version="10.0.2"))},
        {"candidate": replace(CANDIDATE, runtime=InstalledRuntime(module="tensorrt_lean", version="10.0.1"))},
        {"candidate": replace(CANDIDATE, gpu=replace(GPU, name="NVIDIA A10"))},
        {"candidate": replace(CANDIDATE, gpu=replace(GPU, compute_capability="8.6"))},
        {"candidate": replace(CANDIDATE, gpu=None)},
        {"model": replace(MODEL, onnx=_ref("m.onnx", "8"))},
        {"model": replace(MODEL, external=(_ref("w", "8"),))},
        {"model": replace(MODEL, external=(_ref("v", "4"),))},
        # The ONNX file says where its data is as seen from its own folder.
        {"model": replace(MODEL, onnx=_ref("v2/m.onnx", "3"))},
        _engine(hardware_compatibility="same-compute-capability"),
        {"model": replace(MODEL, external=())},
        {"machine": replace(MACHINE, driver="560.1")},
        {"machine": replace(MACHINE, os="windows")},
        {"machine": replace(MACHINE, arch="aarch64")},
    ],
)
def test_whatever_decides_the_bytes_or_their_validity_changes_the_key(change: Any) -> None:
    """An engine is never taken for another."""
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [
        _engine(path="elsewhere"),
        _engine(sha256="9" * 64, compression="xz"),
        {"candidate": replace(CANDIDATE, number=3, target="cuda:1", reason="other")},
        {"candidate": replace(CANDIDATE, gpu=replace(GPU, index=1, uuid="GPU-2", pci="x"))},
        {"model": replace(MODEL, name="other", onnx=_ref("other.onnx", "3"))},
        {"machine": replace(MACHINE, cuda="12.4", no_gpu_reason="x")},
    ],
)
def test_names_and_packaging_do_not_change_the_key(change: Any) -> None:
    """Two apps with the same plan and weights share one entry."""
    assert key(**change) == key()


def test_the_key_is_hexadecimal_and_does_not_depend_on_order() -> None:
    """It is a folder's name, the same in every process."""
    facts = engine_facts(CANDIDATE, MODEL, None, MACHINE)
    assert set(key()) <= set("0123456789abcdef")
    assert len(key()) == 64
    assert engine_key(dict(reversed(facts.items()))) == key()
    one = _engine(weight_map={"a": {"x": 1, "y": 2}, "b": {}})["candidate"]
    other = _engine(weight_map={"b": {}, "a": {"y": 2, "x": 1}})["candidate"]
    assert key(one) == key(other)


@pytest.mark.parametrize("named", [attempt_context, lambda c, m, p: engine_facts(c, m, p, MACHINE)["check"]])
def test_golden_data_and_tolerances_count(named: Any) -> None:
    """Corrected golden data or tolerances make another engine and another attempt; data of other profiles does not."""
    golden = Golden(inputs={}, outputs={"y": _ref("y")})
    model = replace(MODEL, golden=(golden,))
    digest = named(CANDIDATE, model, "small")
    for other in (replace(golden, tolerance=0.5), replace(golden, outputs={"y": _ref("y", "7")})):
        assert named(CANDIDATE, replace(MODEL, golden=(other,)), "small") != digest
    assert named(_engine(tolerance=0.5)["candidate"], model, "small") != digest
    elsewhere = replace(golden, profile="large", tolerance=0.1)
    assert named(CANDIDATE, replace(MODEL, golden=(golden, elsewhere)), "small") == digest


def test_another_python_for_the_worker_is_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong REFIT_AGENT_PYTHON that was set right must not go on being the reason; the engine is the same."""
    monkeypatch.delenv("REFIT_AGENT_PYTHON", raising=False)
    before, engine = attempt_context(CANDIDATE, MODEL, None), key()
    monkeypatch.setenv("REFIT_AGENT_PYTHON", "/wrong/python")
    assert attempt_context(CANDIDATE, MODEL, None) != before
    assert key() == engine


def test_what_was_never_checked_is_another_engine() -> None:
    """An app that ships golden data is not handed what an app without it has made."""
    golden = Golden(inputs={}, outputs={"y": _ref("y")})
    assert key(model=replace(MODEL, golden=(golden,))) != key()


def test_a_mended_recipe_makes_new_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines made by a faulty rule of ours are not found any more once it is mended."""
    before = key()
    monkeypatch.setattr(keys, "RECIPE", keys.RECIPE + 1)
    assert key() != before


# ---------------------------------------------------------------- several plans

RANK = Plan(path="r1", size=1, sha256="a" * 64, plan_size=1, plan_sha256="b" * 64, safetensors=("w1",))
SPREAD = replace(ENGINE, safetensors=("w0",), config=_ref("config.json", "c"), ranks=(RANK,))
PARTS = (_ref("w0", "d"), _ref("w1", "e"))
LLM = replace(MODEL, onnx=None, external=(), safetensors=PARTS, engines=(SPREAD,))


def spread(model: Model = LLM, **changes: Any) -> str:
    return key(replace(CANDIDATE, engine=replace(SPREAD, **changes)), model)


@pytest.mark.parametrize(
    "change",
    [
        {"plan_sha256": "9" * 64},
        {"ranks": ()},
        {"ranks": (replace(RANK, plan_sha256="9" * 64),)},
        {"ranks": (RANK, RANK)},
        {"ranks": (replace(RANK, safetensors=("w0",)),)},
        {"ranks": (replace(RANK, safetensors=()),)},
        {"safetensors": ("w1",), "ranks": (replace(RANK, safetensors=("w0",)),)},
        {"config": _ref("config.json", "9")},
        {"config": None},
        {"model": replace(LLM, safetensors=(_ref("w0", "9"), PARTS[1]))},
        {"model": replace(LLM, safetensors=(PARTS[0], _ref("w1", "9")))},
    ],
)
def test_every_plan_with_its_weights_decides_the_key(change: Any) -> None:
    """Of whichever rank, and which files it takes them from."""
    assert spread(**change) != spread()


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": (replace(RANK, path="elsewhere", sha256="9" * 64, compression="zstd"),)},
        {"config": _ref("elsewhere.json", "c")},
        {"model": replace(LLM, safetensors=(*PARTS, _ref("of another engine", "9")))},
    ],
)
def test_names_of_its_files_and_those_of_other_engines_do_not(change: Any) -> None:
    """As with a single plan."""
    assert spread(**change) == spread()


def test_which_plan_takes_a_file_is_part_of_the_key() -> None:
    """Also where the files of all plans together are the same ones in the same order."""
    one = spread(safetensors=("w0", "w1"), ranks=(replace(RANK, safetensors=("w0",)),))
    other = spread(safetensors=("w0",), ranks=(replace(RANK, safetensors=("w1", "w0")),))
    assert one != other


def test_how_it_was_checked_is_part_of_the_key() -> None:
    """A plan that was loaded and not run is no unchecked one."""
    candidate = replace(CANDIDATE, engine=SPREAD)
    assert engine_facts(candidate, LLM, None, MACHINE)["check"] == "loaded"


def test_the_weights_digest_of_one_file_is_its_own_and_of_several_that_of_all() -> None:
    """Their names do not count, their order does."""
    one = replace(LLM, safetensors=PARTS[:1], engines=())
    assert one.weights_digest() == PARTS[0].sha256
    both = replace(LLM, engines=())
    assert both.weights_digest() not in (PARTS[0].sha256, PARTS[1].sha256)
    renamed = replace(both, safetensors=(_ref("x", "d"), _ref("y", "e")))
    assert renamed.weights_digest() == both.weights_digest()
    assert replace(both, safetensors=PARTS[::-1]).weights_digest() != both.weights_digest()


def test_a_model_keeps_its_key_wherever_its_folder_is() -> None:
    """Two apps that ship the same files share one entry."""
    moved = replace(MODEL, onnx=_ref("deep/down/m.onnx", "3"), external=(_ref("deep/down/w", "4"),))
    assert key(model=moved) == key()
