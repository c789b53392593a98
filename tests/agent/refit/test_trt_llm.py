"""Engines of TensorRT-LLM on the user's machine: several plans, refitted by name from a checkpoint, all or none.

TensorRT, its plugins and the GPU are stand-ins; importer, selection, worker process and cache are the real ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from bundles import edit, model_of, rehash
from fakes_tensorrt import FakeTensorRt, build_driver, write_package
from refit_agent import Engine, Progress, ensure_engine, make, provision
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.import_trt_llm import import_engine_folder
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.errors import (
    BundleFileMismatch,
    ManifestInvalid,
    NoMatchingEngine,
    OwnWeightsInvalid,
    PlanInvalid,
    PlanRefused,
    RefitAgentError,
    SettingInvalid,
    WeightsMismatch,
    WeightsNotIdentical,
    WeightsUncovered,
)
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from trt_llm_folders import (
    GPU,
    Arrays,
    config,
    file_of,
    plan_of,
    weights_of,
    write_checkpoint,
    write_engine,
    write_plugins,
)

FACTS = EngineFacts(os=("linux",), compute_capabilities=("9.0",), gpu=GPU)


def gpus(count: int, name: str = GPU, first: int = 0) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(index=i, name=name, uuid=f"GPU-{i}", compute_capability="9.0", memory_total=80 << 30)
        for i in range(first, first + count)
    )


class Place:
    """A bundle with an engine for ``tp`` GPUs, and a machine with four for it."""

    def __init__(self, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.modules = folder / "modules"
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))

    def build(
        self,
        tp: int = 2,
        *,
        wanted: Callable[[int], Arrays] = weights_of,
        has: Callable[[int], Arrays] = weights_of,
        facts: EngineFacts = FACTS,
        plugins: bool = True,
        machine: tuple[Gpu, ...] = (),
        faults: dict[str, Any] | None = None,
        **more: Any,
    ) -> Path:
        engine = write_engine(self.folder / "engine", [wanted(rank) for rank in range(tp)], **more)
        checkpoint = write_checkpoint(self.folder / "checkpoint", [has(rank) for rank in range(tp)])
        init_bundle(self.bundle, app_id="org.example.test", name="Test", version="1.0")
        import_engine_folder(self.bundle, "llm", engine, checkpoint, facts)
        write_package(self.modules, "tensorrt", "10.16.1.11", **(faults or {}))
        if plugins:
            write_plugins(self.modules)
        self.on(machine or gpus(4))
        return self.bundle

    def on(self, found: tuple[Gpu, ...]) -> None:
        runtime = InstalledRuntime(module="tensorrt", version="10.16.1.11", cuda_major=12, folder=str(self.modules))
        machine = Machine(os="linux", arch="x86_64", gpus=found, driver="580.1", cuda="13.0", runtimes=(runtime,))
        self.monkeypatch.setattr(provision, "detect", lambda **_: machine)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def place(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, library, monkeypatch)


def left(home: Path) -> list[str]:
    """Whatever lies in the cache."""
    folders = [home / "cache" / name for name in ("engines", "tmp", "quarantine")]
    return sorted(p.name for folder in folders if folder.is_dir() for p in folder.iterdir())


def values(engine: Engine, rank: int) -> dict[str, bytes]:
    """The weights in a finished plan."""
    path = engine.path.with_name(f"rank{rank}.engine")
    return dict(FakeTensorRt().engine(path.read_bytes()).values)


# ---------------------------------------------------------------- what it is for


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_rank_s_plan_has_its_own_weights_and_the_folder_is_an_engine_directory(place: Place, tp: int) -> None:
    """Beside one another, with config.json as it was; the second time it is found."""
    bundle = place.build(tp)
    with ensure_engine(bundle, "llm") as engine:
        assert (engine.hit, engine.runtime, engine.target, engine.check) == (False, "tensorrt", "cuda:0", "loaded")
        assert engine.path.name == "rank0.engine"
        files = {"config.json", "entry.json", *(f"rank{rank}.engine" for rank in range(tp))}
        assert {p.name for p in engine.path.parent.iterdir()} == files
        for rank in range(tp):
            assert values(engine, rank) == {n: a.tobytes() for n, a in weights_of(rank).items()}
        written = engine.path.with_name("config.json").read_bytes()
        assert written == (place.folder / "engine" / "config.json").read_bytes()
    with ensure_engine(bundle, "llm") as again:
        assert again.hit
        assert again.path == engine.path


def test_a_file_of_the_entry_that_is_damaged_makes_it_anew(place: Place) -> None:
    """Whichever rank's it is."""
    bundle = place.build(2)
    with ensure_engine(bundle, "llm") as engine:
        engine.path.with_name("rank1.engine").write_bytes(b"x")
    with ensure_engine(bundle, "llm") as again:
        assert not again.hit
        assert values(again, 1)


def test_files_of_the_model_that_no_plan_of_the_engine_takes_are_not_asked_for(place: Place) -> None:
    """They may be those of another engine, and elsewhere."""
    bundle = place.build(2)
    more = {"path": "models/llm/other.safetensors", "size": 1 << 40, "sha256": "0" * 64}
    edit(bundle, lambda d: (model_of(d)["safetensors"].append(more), model_of(d)["engines"][0].update(refit="any")))
    with ensure_engine(bundle, "llm") as engine:
        assert values(engine, 1) == {n: a.tobytes() for n, a in weights_of(1).items()}


def test_progress_goes_forward_through_all_plans(place: Place) -> None:
    """And says which of them it is."""
    steps: list[Progress] = []
    ensure_engine(place.build(3), "llm", progress=steps.append).close()
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    opened = [step for step in steps if step.phase == "open"]
    assert [step.text for step in opened] == [f"opening the plan ({number} of 3)" for number in (1, 2, 3)]
    assert [step.fraction for step in opened] == pytest.approx(
        [0.05 + 0.85 * (i + 0.05 / 0.85) / 3 for i in range(3)], abs=1e-3
    )


def test_an_explicit_weight_map_names_tensors(place: Place) -> None:
    """For a weight that the checkpoint has under another name; an entry may be for one rank alone."""

    def wanted(rank: int) -> Arrays:
        found = weights_of(rank)
        name = f"only.{rank}"
        return {**found, name: found["transformer.ln_f.weight"]}

    renamed = {f"only.{rank}": {"from": "transformer.ln_f.weight"} for rank in (0, 1)}
    facts = EngineFacts(os=("linux",), compute_capabilities=("9.0",), gpu=GPU, weight_map=renamed)
    with ensure_engine(place.build(2, wanted=wanted, facts=facts), "llm") as engine:
        for rank in (0, 1):
            assert values(engine, rank)[f"only.{rank}"] == weights_of(rank)["transformer.ln_f.weight"].tobytes()


def test_a_plan_that_holds_its_weights_is_put_into_the_folder_as_it_is(place: Place) -> None:
    """It may have been built without refit."""
    facts = EngineFacts(os=("linux",), compute_capabilities=("9.0",), gpu=GPU, strip="none")
    more = {"refittable": False, "stripped": False, "values": {"a": b"1234"}}
    bundle = place.build(1, facts=facts, document=config(strip=False), **more)
    with ensure_engine(bundle, "llm") as engine:
        assert values(engine, 0) == {"a": b"1234"}


# ---------------------------------------------------------------- all or none


def rank1(change: Callable[[Arrays], object]) -> Callable[[int], Arrays]:
    """The weights, of which those of rank 1 are changed."""

    def weights(rank: int) -> Arrays:
        found = weights_of(rank)
        if rank == 1:
            change(found)
        return found

    return weights


QKV = "transformer.layers.1.attention.qkv.weight"
DENSE = "transformer.layers.0.attention.dense.weight"


@pytest.mark.parametrize(
    ("has", "kind", "says"),
    [
        (rank1(lambda a: (a.pop(QKV), a.pop(DENSE))), WeightsUncovered, f"2 of the plan's weights have no source in .*rank1.*{DENSE}, {QKV}"),
        (rank1(lambda a: a.update({QKV: a[QKV][:3]})), WeightsMismatch, "wants 24 elements, and the tensor .* has 18"),
        (rank1(lambda a: a.update({QKV: a[QKV].view(np.uint16)})), WeightsMismatch, "wants float16, and the tensor .* is bfloat16"),
        (rank1(lambda a: a.update({QKV: a[QKV].astype(np.float32)})), WeightsMismatch, "wants float16, .* is float32"),
    ],
)  # fmt: skip
def test_one_rank_that_fails_fails_them_all(
    place: Place, home: Path, has: Callable[[int], Arrays], kind: type[RefitAgentError], says: str
) -> None:
    """In words that name the weights; nothing is published and nothing left, rank 0's plan neither."""
    bundle = place.build(2, has=has)
    with pytest.raises(kind, match=says):
        ensure_engine(bundle, "llm")
    assert left(home) == []


def test_a_plan_of_another_rank_that_tensorrt_refuses_fails_them_all(place: Place, home: Path) -> None:
    """Its plan is named."""
    bundle = place.build(2)
    data = plan_of(weights_of(1), plugins=["Othertensorrt_llm"])
    replace_plan(bundle, 1, data)
    with pytest.raises(PlanRefused, match=r"rank1\.engine.*could not find plugin: Othertensorrt_llm"):
        ensure_engine(bundle, "llm")
    assert left(home) == []


def test_a_finished_plan_that_does_not_load_fails_them_all(place: Place, home: Path) -> None:
    """Nothing else can be asked of it: it cannot be run by itself."""
    bundle = place.build(2)
    replace_plan(bundle, 1, plan_of(weights_of(1), unloadable=True))
    with pytest.raises(PlanRefused, match=r"rank1\.engine: what was written is no engine"):
        ensure_engine(bundle, "llm")
    assert left(home) == []


def replace_plan(bundle: Path, rank: int, data: bytes) -> None:
    """Another plan in the place of a rank's, with a manifest that says so."""

    def change(document: dict[str, Any]) -> None:
        engine = model_of(document)["engines"][0]
        spec = engine if rank == 0 else engine["ranks"][rank - 1]
        (bundle / spec["path"]).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        spec.update(size=len(data), sha256=digest, plan_size=len(data), plan_sha256=digest)
        spec.pop("compression", None)

    edit(bundle, change)


@pytest.mark.parametrize("path", ["rank0.engine.zst", "rank1.engine.zst", "rank1.safetensors", "config.json"])
def test_every_file_is_checked_against_its_hash(place: Place, home: Path, path: str) -> None:
    """One bit is enough, in any of them."""
    bundle = place.build(2)
    (file,) = bundle.rglob(path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleFileMismatch, match=path):
        ensure_engine(bundle, "llm")
    assert left(home) == []


def test_an_unpacked_plan_of_another_rank_is_checked_too(place: Place) -> None:
    """The key is made from its hash."""
    bundle = place.build(2)
    edit(bundle, lambda d: model_of(d)["engines"][0]["ranks"][0].update(plan_sha256="0" * 64))
    with pytest.raises(PlanInvalid, match=r"rank1\.engine.*unpacked, its SHA-256 is not 0000"):
        ensure_engine(bundle, "llm")


def test_a_header_of_another_rank_that_is_not_the_manifest_s_is_refused(place: Place) -> None:
    """All plans are for one TensorRT."""
    bundle = place.build(2)
    replace_plan(bundle, 1, plan_of(weights_of(1), version=(10, 15, 0, 1)))
    with pytest.raises(PlanInvalid, match=r"rank1\.engine.*built with 10\.15\.0\.1, and the manifest says 10\.16"):
        ensure_engine(bundle, "llm")


def test_an_entry_of_the_weight_map_that_no_rank_has_a_use_for_is_an_error(place: Place, home: Path) -> None:
    """It is misspelt."""
    bundle = place.build(2)
    edit(bundle, lambda d: model_of(d)["engines"][0].update(weight_map={"nobody's": {"from": QKV}}))
    with pytest.raises(WeightsMismatch, match=r"nobody's.*no plan asks for"):
        ensure_engine(bundle, "llm")
    assert left(home) == []


@pytest.mark.parametrize(
    ("entry", "kind", "says"),
    [
        ({"from": "gone"}, WeightsUncovered, "The weight map names 'gone'"),
        ({"fill": 0.0, "count": 24, "dtype": "float16"}, ManifestInvalid, 'must be {"from"'),
        ({"from": QKV, "more": 1}, ManifestInvalid, 'must be {"from"'),
        ({"from": 3}, ManifestInvalid, 'must be {"from"'),
        ("gone", ManifestInvalid, "weight_map"),
    ],
)
def test_a_weight_map_that_makes_no_sense_is_refused(
    place: Place, entry: Any, kind: type[RefitAgentError], says: str
) -> None:
    """Nothing is made up, transposed or filled."""
    bundle = place.build(1)
    edit(bundle, lambda d: model_of(d)["engines"][0].update(weight_map={QKV: entry}))
    with pytest.raises(kind, match=says):
        ensure_engine(bundle, "llm")


def test_other_weights_under_a_manifest_that_fits_them_are_refused_by_an_identical_engine(place: Place) -> None:
    """--strip_plan promises the very weights that it was built from."""
    bundle = place.build(1)
    (file,) = bundle.rglob("rank0.safetensors")
    file.write_bytes(file_of(weights_of(0, seed=9)))
    rehash(bundle)
    with pytest.raises(WeightsNotIdentical, match=r"models/llm/rank0\.safetensors holds others"):
        ensure_engine(bundle, "llm")
    edit(bundle, lambda d: model_of(d)["engines"][0].update(refit="any"))
    with ensure_engine(bundle, "llm") as engine:
        assert values(engine, 0) == {n: a.tobytes() for n, a in weights_of(0, seed=9).items()}


def test_room_is_made_for_all_plans_with_their_weights(place: Place) -> None:
    """Each grows by its own files; config.json counts too."""
    model = Bundle.open(place.build(3)).model("llm")
    (engine,) = model.engines
    assert engine.config is not None
    plans = sum(plan.plan_size for plan in engine.plans)
    weights = sum(file.size for file in model.safetensors)
    asked = SimpleNamespace(candidate=SimpleNamespace(engine=engine), model=model)
    assert make._needed_bytes(asked) == plans + weights + engine.config.size  # type: ignore[arg-type]
    asked.candidate.engine = msgspec.structs.replace(engine, safetensors=())
    more = sum(file.size for file in model.safetensors[1:])
    assert make._needed_bytes(asked) == plans + weights + more + engine.config.size  # type: ignore[arg-type]
    asked.candidate.engine = msgspec.structs.replace(engine, strip="zeros")
    assert make._needed_bytes(asked) == plans + engine.config.size  # type: ignore[arg-type]


# ---------------------------------------------------------------- plugins


def test_without_the_plugins_the_error_says_what_may_be_missing(place: Place, home: Path) -> None:
    """And what to install."""
    bundle = place.build(1, plugins=False)
    with pytest.raises(
        PlanRefused, match=r"could not find plugin.*TensorRT-LLM's plugins.*ModuleNotFoundError"
    ) as info:
        ensure_engine(bundle, "llm")
    assert "Install tensorrt-llm" in info.value.hint
    assert left(home) == []


def test_plugins_whose_import_fails_are_told_with_the_reason(place: Place) -> None:
    """A package that is there and does not load."""
    bundle = place.build(1)
    write_plugins(place.modules, "raise RuntimeError('libnccl.so.2: cannot open shared object file')")
    with pytest.raises(PlanRefused, match=r"RuntimeError: libnccl\.so\.2"):
        ensure_engine(bundle, "llm")


def test_a_plan_that_needs_no_plugins_works_without_them(place: Place) -> None:
    """It is tried all the same."""
    bundle = place.build(1, plugins=False)
    replace_plan(bundle, 0, plan_of(weights_of(0), plugins=[]))
    with ensure_engine(bundle, "llm") as engine:
        assert values(engine, 0)


# ---------------------------------------------------------------- which machine


def test_it_needs_as_many_gpus_of_one_model_as_it_has_plans(place: Place) -> None:
    """Others do not count, and the reason is told in words."""
    bundle = place.build(2, machine=gpus(1))
    words = "spread over 2 GPUs of one model, and from cuda:0 on this machine has 1 NVIDIA H100"
    for found in (gpus(1), (*gpus(1), *gpus(1, "NVIDIA H200", 1))):
        place.on(found)
        with pytest.raises(NoMatchingEngine, match="needs 2 GPUs of one model"):
            ensure_engine(bundle, "llm")
        first = provision.explain(bundle, "llm")[0].refusals[0]
        assert (first.code, first.target) == ("too-few-gpus", "cuda:0")
        assert words in first.reason


def test_the_target_names_the_first_of_its_gpus(place: Place) -> None:
    """From the last of two on there are too few."""
    bundle = place.build(2, machine=gpus(3))
    with ensure_engine(bundle, "llm", target="cuda:1") as engine:
        assert engine.target == "cuda:1"
    with pytest.raises(NoMatchingEngine, match="needs 2 GPUs of one model"):
        ensure_engine(bundle, "llm", target="cuda:2")


def test_another_gpu_model_of_the_same_compute_capability_is_refused(place: Place) -> None:
    """Nothing promises that it works there, and nothing could check it."""
    bundle = place.build(1, machine=gpus(1, "NVIDIA H200"))
    with pytest.raises(NoMatchingEngine, match="it needs NVIDIA H100 80GB HBM3"):
        ensure_engine(bundle, "llm")


# ---------------------------------------------------------------- what such a model cannot have


def test_own_weights_are_refused_in_words(place: Place, tmp_path: Path) -> None:
    """Before a byte of them is read."""
    bundle = place.build(1)
    with pytest.raises(OwnWeightsInvalid, match="'llm' are in safetensors files, and only those of an ONNX file"):
        ensure_engine(bundle, "llm", weights=tmp_path / "there-is-none.onnx")


def test_there_is_no_onnx_form_of_it(place: Place) -> None:
    """No model describes its inputs."""
    bundle = place.build(1)
    with ensure_engine(bundle, "llm") as engine:
        entry = Store(str(engine.path.parents[2])).lookup(engine.key)
        assert isinstance(entry, tuple)
        assert entry[0].onnx == ""
        entry[2].close()
    for _ in range(2):
        with pytest.raises(SettingInvalid, match="not made from an ONNX model"):
            ensure_engine(bundle, "llm", form="onnx")


def test_a_plain_plan_is_refitted_from_safetensors_by_name_too(place: Place) -> None:
    """Without config.json it is an engine like any other, but for where its weights come from."""
    bundle = place.build(1, plugins=False)
    replace_plan(bundle, 0, plan_of(weights_of(0), plugins=[]))
    edit(bundle, lambda d: model_of(d)["engines"][0].pop("config"))
    with ensure_engine(bundle, "llm") as engine:
        assert engine.path.name == "engine.plan"
        assert engine.check == "none"
        assert {p.name for p in engine.path.parent.iterdir()} == {"engine.plan", "entry.json"}
        found = FakeTensorRt().engine(engine.path.read_bytes()).values
        assert found == {n: a.tobytes() for n, a in weights_of(0).items()}
