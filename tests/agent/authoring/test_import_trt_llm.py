"""A folder of TensorRT-LLM and its checkpoint become a model of a bundle: all of it, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.authoring import import_trt_llm, sources
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import (
    EngineRefused,
    FactsMissing,
    ImportRefused,
    NameTaken,
    NameUnusable,
    SourceUnreadable,
)
from refit_agent.authoring.import_facts import ImportedEngine
from refit_agent.authoring.import_trt_llm import import_engine_folder
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_model import add_model
from refit_agent.authoring.overview import inspect_bundle
from refit_agent.authoring.sizes import bundle_size
from refit_agent.authoring.trt_llm_checkpoint import read_checkpoint
from refit_agent.authoring.trt_llm_folder import Mapping, Pretrained, read_engine_folder
from refit_agent.authoring.trt_llm_known import know_engine_folder
from refit_agent.bundle import Bundle
from refit_agent.errors import NotAnOnnxModel, PlanInvalid, RefitAgentError, SafetensorsMalformed
from refit_agent.manifest import Model
from refit_agent.progress import Progress
from safetensors_bytes import entry, packed
from trt_llm_folders import (
    GPU,
    config,
    edit_json,
    file_of,
    plan_of,
    pretrained,
    weights_of,
    write_checkpoint,
    write_engine,
)

FACTS = EngineFacts(os=("linux",), compute_capabilities=("9.0",), gpu=GPU)


class Folders:
    """A bundle, an engine folder and its checkpoint for two GPUs."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "bundle"
        self.engine = write_engine(folder / "engine", [weights_of(0), weights_of(1)])
        self.checkpoint = write_checkpoint(folder / "checkpoint", [weights_of(0), weights_of(1)])
        init_bundle(self.bundle, app_id="org.example.test", name="Test", version="1.0")

    def add(self, name: str = "llm", facts: EngineFacts = FACTS, **more: Any) -> ImportedEngine:
        return import_engine_folder(self.bundle, name, self.engine, self.checkpoint, facts, **more)

    def model(self, name: str = "llm") -> Model:
        return Bundle.open(self.bundle).model(name)

    def snapshot(self) -> dict[str, bytes]:
        """Every file of the bundle with its content, folders too."""
        return {str(p.relative_to(self.bundle)): p.read_bytes() if p.is_file() else b"" for p in self.bundle.rglob("*")}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def sound(bundle: Path) -> bool:
    """Whether every file is what the manifest says, and nothing else lies there."""
    opened = Bundle.open(bundle)
    refs = {ref.path: ref for model in opened.manifest.models for ref in model.files()}
    there = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    return there == {*refs, "bundle.json"} and all(
        hashlib.sha256((bundle / path).read_bytes()).hexdigest() == ref.sha256
        and (bundle / path).stat().st_size == ref.size
        for path, ref in refs.items()
    )


# ---------------------------------------------------------------- what it is for


def test_the_folder_becomes_a_model_with_one_engine_of_all_plans(folders: Folders) -> None:
    """Each plan with its own weights, what config.json tells is filled in, and the sources are as they were."""
    made = folders.add(version="7")
    model = folders.model()
    (engine,) = model.engines
    assert made.added.engine == engine
    assert (model.onnx, model.version, model.golden) == (None, "7", ())
    assert [f.path for f in model.safetensors] == ["models/llm/rank0.safetensors", "models/llm/rank1.safetensors"]
    assert [p.safetensors for p in engine.plans] == [(f.path,) for f in model.safetensors]
    folder = "engines/llm/sm90-fp16-linux-2gpus"
    assert [p.path for p in engine.plans] == [f"{folder}/rank0.engine.zst", f"{folder}/rank1.engine.zst"]
    assert engine.config is not None
    assert engine.config.path == f"{folder}/config.json"
    facts = (engine.runtime, engine.built_with, engine.precision, engine.strip, engine.refit, engine.version_compatible)
    assert facts == ("tensorrt", "10.16.1.11", "fp16", "plan", "identical", False)
    assert engine.weights_sha256 == model.weights_digest()
    for rank, plan in enumerate(engine.plans):
        original = (folders.engine / f"rank{rank}.engine").read_bytes()
        assert zstandard.decompress((folders.bundle / plan.path).read_bytes()) == original
        assert (plan.plan_size, plan.plan_sha256) == (len(original), hashlib.sha256(original).hexdigest())
    assert sound(folders.bundle)
    assert any("TensorRT-LLM 0.21.0" in remark for remark in made.remarks)
    assert made.notes == ()


def test_one_rank_needs_no_names_and_plain_plans_are_possible(tmp_path: Path) -> None:
    """The only file is all of them."""
    folders = Folders(tmp_path)
    folders.engine = write_engine(tmp_path / "one", [weights_of(0)])
    folders.checkpoint = write_checkpoint(tmp_path / "of one", [weights_of(0)])
    engine = folders.add(compression="none", path="plans/here").added.engine
    assert (engine.safetensors, engine.ranks) == ((), ())
    assert engine.path == "plans/here/rank0.engine"
    assert sound(folders.bundle)


def test_files_that_are_no_part_of_it_stay_where_they_are_and_are_named(folders: Folders) -> None:
    """LoRA weights, logs, the timing cache."""
    (folders.engine / "model.cache").write_bytes(b"123")
    (folders.engine / "lora").mkdir()
    notes = folders.add().notes
    assert [(note.name, note.path) for note in notes] == [("lora", ""), ("model.cache", "")]
    assert notes[1].size == 3
    assert sound(folders.bundle)


def test_another_engine_of_the_same_weights_joins_the_model(folders: Folders, tmp_path: Path) -> None:
    """The checkpoint is not taken a second time."""
    folders.add()
    other = EngineFacts(os=("linux",), compute_capabilities=("8.9",), gpu="NVIDIA L40S")
    folders.add(facts=other)
    model = folders.model()
    assert [e.gpu for e in model.engines] == [GPU, "NVIDIA L40S"]
    assert len(model.safetensors) == 2
    assert model.engines[1].plans[1].safetensors == ("models/llm/rank1.safetensors",)
    assert sound(folders.bundle)


def test_the_same_engine_again_needs_replace(folders: Folders) -> None:
    """Selection could not tell the two apart; with replace the old files go."""
    first = folders.add().added.engine
    before = folders.snapshot()
    with pytest.raises(EngineRefused, match="sees no difference"):
        folders.add()
    assert folders.snapshot() == before
    made = folders.add(replace=True, compression="none").added
    assert [e.path for e in made.replaced] == [first.path]
    assert len(folders.model().engines) == 1
    assert sound(folders.bundle)


def test_what_would_be_refused_is_not_compressed_first(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the checkpoint copied."""
    folders.add()

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(import_trt_llm, "compress_plan", never)
    monkeypatch.setattr(import_trt_llm, "copy_hashed", never)
    with pytest.raises(EngineRefused, match="sees no difference"):
        folders.add()


def test_other_weights_under_the_name_need_replace(folders: Folders) -> None:
    """The old engines go with their weights."""
    folders.add()
    before = folders.snapshot()
    write_checkpoint(folders.checkpoint, [weights_of(0, seed=1), weights_of(1, seed=1)])
    with pytest.raises(NameTaken, match="a model 'llm' with other weights"):
        folders.add()
    assert folders.snapshot() == before
    folders.add(replace=True)
    model = folders.model()
    digests = [hashlib.sha256((folders.checkpoint / f"rank{i}.safetensors").read_bytes()).hexdigest() for i in (0, 1)]
    assert [f.sha256 for f in model.safetensors] == digests
    assert sound(folders.bundle)


def test_an_onnx_model_of_that_name_is_not_mixed_with_it(folders: Folders, tmp_path: Path) -> None:
    """Neither way round."""
    from bundles import make_onnx

    make_onnx(tmp_path / "m.onnx")
    add_model(folders.bundle, "m", tmp_path / "m.onnx")
    with pytest.raises(NameTaken, match="with other weights"):
        folders.add("m")
    with pytest.raises(NameUnusable, match="differs only in case"):
        folders.add("M")
    folders.add("m", replace=True)
    assert folders.model("m").onnx is None
    assert sound(folders.bundle)
    with pytest.raises(NotAnOnnxModel):
        folders.model("m").require_onnx()
    add_model(folders.bundle, "m", tmp_path / "m.onnx", replace=True)
    assert Bundle.open(folders.bundle, draft=True).model("m").safetensors == ()


def test_a_link_is_a_second_name_of_the_checkpoint_s_files(folders: Folders) -> None:
    """No gigabyte is copied."""
    folders.add(link=True)
    for ref in folders.model().safetensors:
        assert (folders.bundle / ref.path).samefile(folders.checkpoint / Path(ref.path).name)


def test_every_plan_and_config_json_count_in_the_bundle_s_sizes(folders: Folders) -> None:
    """And the weights in every file."""
    engine = folders.add().added.engine
    model = folders.model()
    assert engine.config is not None
    (size,) = bundle_size(folders.bundle).models
    weights = sum(file.size for file in model.safetensors)
    plans = sum(plan.plan_size for plan in engine.plans)
    assert size.weights == weights
    assert (size.engines[0].stripped, size.engines[0].full) == (plans, plans + weights)
    assert size.engines[0].shipped == sum(plan.size for plan in engine.plans) + engine.config.size
    (shown,) = inspect_bundle(folders.bundle).models
    assert (shown.onnx, shown.safetensors, shown.weights_bytes) == (None, model.safetensors, weights)


def test_progress_reaches_the_end(folders: Folders) -> None:
    """And never goes back."""
    steps: list[Progress] = []
    folders.add(progress=steps.append)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


# ---------------------------------------------------------------- what must be said, and what may not


def test_what_config_json_does_not_tell_is_listed(folders: Folders) -> None:
    """All of it at once."""
    known = know_engine_folder(folders.engine, folders.checkpoint).known
    assert known.missing == ("os", "compute_capabilities", "gpu")
    with pytest.raises(FactsMissing, match="os, compute_capabilities, gpu"):
        folders.add(facts=EngineFacts())
    assert not (folders.bundle / "engines").exists()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"version_compatible": True}, "version_compatible is said to be True, and config.json says False"),
        ({"strip": "zeros"}, "strip is said to be zeros, and config.json says plan"),
        ({"lean_runtime": "x.so"}, "has no lean_runtime"),
        ({"host_code": True}, "has no host_code"),
        ({"tolerance": 0.1}, "has no tolerance"),
        ({"weight_map": {"a": {"fill": 0.0, "count": 1, "dtype": "float32"}}}, "must be {\"from\""),
        ({"weight_map": {"a": {"from": "gone"}}}, "a tensor of the checkpoint"),
        ({"compute_capabilities": ("9.9",)}, "no GPU has the compute capability 9.9"),
    ],
)  # fmt: skip
def test_what_contradicts_the_folder_is_refused(folders: Folders, facts: dict[str, Any], says: str) -> None:
    """Before anything is copied."""
    given_facts = {"os": ("linux",), "compute_capabilities": ("9.0",), "gpu": GPU, **facts}
    with pytest.raises(EngineRefused, match=says):
        folders.add(facts=EngineFacts(**given_facts))
    assert list(folders.bundle.iterdir()) == [folders.bundle / "bundle.json"]


@pytest.mark.parametrize(("refit", "digest"), [("any", False), ("identical", True), ("individual", False)])
def test_who_knows_how_it_was_built_may_say_what_it_takes(folders: Folders, refit: Any, digest: bool) -> None:
    """What --strip_plan promises is the default."""
    facts = EngineFacts(os=("linux",), compute_capabilities=("9.0",), gpu=GPU, refit=refit)
    engine = folders.add(facts=facts).added.engine
    assert (engine.refit, engine.weights_sha256 is not None) == (refit, digest)


def test_a_plan_that_is_not_stripped_must_be_said_to_be_whole(folders: Folders) -> None:
    """Otherwise gigabytes would be shipped twice by mistake."""
    edit_json(folders.engine / "config.json", lambda d: d["build_config"].update(use_strip_plan=False))
    with pytest.raises(ImportRefused, match="without --strip_plan") as info:
        folders.add()
    assert "strip none" in info.value.hint
    facts = EngineFacts(os=("linux",), compute_capabilities=("9.0",), gpu=GPU, strip="none")
    assert folders.add(facts=facts).added.engine.strip == "none"


def test_a_plan_that_hardly_shrinks_is_remarked_on(folders: Folders) -> None:
    """It may hold its weights after all."""
    noise = np.random.default_rng(0).bytes(100_000)
    data = (folders.engine / "rank1.engine").read_bytes() + noise
    data = data[:16] + struct.pack("<Q", len(data)) + data[24:]
    (folders.engine / "rank1.engine").write_bytes(data)
    remarks = folders.add().remarks
    assert any("of rank1.engine is left" in remark for remark in remarks)
    assert not any("of rank0.engine is left" in remark for remark in remarks)


# ---------------------------------------------------------------- weights that are not the checkpoint's


def _model(**changes: Any) -> Callable[[Folders], object]:
    def change(folders: Folders) -> None:
        edit_json(folders.engine / "config.json", lambda d: d["pretrained_config"].update(changes))
        shared = {k: v for k, v in changes.items() if k == "architecture"}
        edit_json(folders.checkpoint / "config.json", lambda d: d.update(shared))

    return change


def _fused(folders: Folders) -> None:
    edit_json(
        folders.engine / "config.json", lambda d: d["build_config"]["plugin_config"].update(use_fused_mlp="enable")
    )
    weights = {**weights_of(0), "transformer.layers.0.mlp.gate.weight": np.zeros(2, np.float16)}
    (folders.checkpoint / "rank0.safetensors").write_bytes(file_of(weights))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_model(quantization={"quant_algo": "W4A16_AWQ"}), "quantized \\(W4A16_AWQ\\), and TensorRT-LLM rearranges"),
        (_model(architecture="GPTJForCausalLM"), "biases of GPT-J to the first rank alone"),
        (_fused, "use_fused_mlp, which joins"),
    ],
)
def test_an_engine_whose_weights_tensorrt_llm_computes_is_refused(
    folders: Folders, change: Callable[[Folders], object], says: str
) -> None:
    """Some of them would pass every check of name, type and count; whoever knows better can say so."""
    change(folders)
    with pytest.raises(ImportRefused, match=says) as info:
        folders.add()
    assert "say so" in info.value.hint
    engine = folders.add(as_it_is=True).added.engine
    assert engine.precision in ("w4a16_awq", "fp16")


def test_joined_layers_do_not_matter_where_there_are_none(folders: Folders) -> None:
    """The option is on by default; it changes gated MLPs alone."""
    edit_json(folders.engine / "config.json", lambda d: d["build_config"]["plugin_config"].update(use_fused_mlp=True))
    folders.add()


# ---------------------------------------------------------------- bad folders


def _engine_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Folders], object]:
    return lambda f: edit_json(f.engine / "config.json", change)


def _checkpoint_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Folders], object]:
    return lambda f: edit_json(f.checkpoint / "config.json", change)


def _index(weight_map: Any) -> Callable[[Folders], object]:
    """The checkpoint in one file, and an index of it."""

    def change(f: Folders) -> None:
        os.unlink(f.checkpoint / "rank1.safetensors")
        os.rename(f.checkpoint / "rank0.safetensors", f.checkpoint / "part.safetensors")
        names = dict.fromkeys(weights_of(0), "part.safetensors")
        document = weight_map(names) if callable(weight_map) else weight_map
        (f.checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": document}))

    return change


def _two_shards(f: Folders) -> None:
    """Two files of two tensors each, of which the index has one in the wrong file."""
    for name in ("a", "b"):
        tensors = {f"{name}{number}": np.zeros(1, np.float16) for number in (0, 1)}
        (f.checkpoint / f"{name}.safetensors").write_bytes(file_of(tensors))
        os.unlink(f.checkpoint / f"rank{'ab'.index(name)}.safetensors")
    index = {"a0": "a.safetensors", "a1": "a.safetensors", "b0": "a.safetensors", "b1": "b.safetensors"}
    (f.checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _bytes(path: str, data: bytes) -> Callable[[Folders], object]:
    return lambda f: (f.bundle.parent / path).write_bytes(data)


def _other_rtx(f: Folders) -> None:
    path = f.engine / "rank1.engine"
    path.write_bytes(b"vtrt" + path.read_bytes()[4:])


HUGE = {"world_size": 1 << 20, "tp_size": 1 << 20}
BAD: dict[str, tuple[Callable[[Folders], object], type[RefitAgentError], str]] = {
    "no folder": (lambda f: os.rename(f.engine, f.engine.with_name("x")), SourceUnreadable, "engine cannot be read"),
    "no config": (lambda f: os.unlink(f.engine / "config.json"), SourceUnreadable, "config.json"),
    "config is a folder": (lambda f: (os.unlink(f.engine / "config.json"), (f.engine / "config.json").mkdir()), SourceUnreadable, "not a regular file"),
    "config is no JSON": (_bytes("engine/config.json", b"{,"), ImportRefused, "cannot be understood"),
    "config is deep": (_bytes("engine/config.json", b'{"version": ' + b"[" * 200_000), ImportRefused, "cannot be understood"),
    "config of before 0.8": (_bytes("engine/config.json", b'{"builder_config": {"tensor_parallel": 2}}'), ImportRefused, "pretrained_config"),
    "config is huge": (lambda f: os.truncate(f.engine / "config.json", 1 << 30), ImportRefused, "has 1073741824 bytes"),
    "mapping is text": (_engine_json(lambda d: d["pretrained_config"].update(mapping={"tp_size": "2"})), ImportRefused, "Expected `int`"),
    "mapping of nothing": (_engine_json(lambda d: d["pretrained_config"].update(mapping={"tp_size": 0})), ImportRefused, ">= 1"),
    "mapping contradicts itself": (_engine_json(lambda d: d["pretrained_config"]["mapping"].update(world_size=4)), ImportRefused, "world_size is 4, and 2 x 1 x 1"),
    "spread automatically": (_engine_json(lambda d: d["pretrained_config"]["mapping"].update(auto_parallel=True)), ImportRefused, "spread automatically"),
    "a million GPUs": (_engine_json(lambda d: d["pretrained_config"].update(mapping=HUGE)), ImportRefused, r"for 1048576 GPUs, and rank2\.engine, .*, \.\.\. are missing"),
    "a plan is missing": (lambda f: os.unlink(f.engine / "rank1.engine"), ImportRefused, r"and rank1\.engine are missing"),
    "the first plan is missing": (lambda f: os.unlink(f.engine / "rank0.engine"), ImportRefused, r"and rank0\.engine are missing"),
    "a plan too many": (lambda f: (f.engine / "rank2.engine").write_bytes(plan_of(weights_of(2))), ImportRefused, r"for 2 GPUs, and there is a rank2\.engine"),
    "managed weights": (_bytes("engine/rank0_managed_weights.safetensors", b""), ImportRefused, "managed ones"),
    "managed weights by option": (_engine_json(lambda d: d["build_config"]["plugin_config"].update(manage_weights=True)), ImportRefused, "managed ones"),
    "a plan that is none": (_bytes("engine/rank1.engine", b"no plan"), PlanInvalid, r"rank1\.engine"),
    "a plan cut short": (lambda f: os.truncate(f.engine / "rank1.engine", 40), PlanInvalid, r"rank1\.engine.*cut short"),
    "a plan of another TensorRT": (lambda f: (f.engine / "rank1.engine").write_bytes(plan_of(weights_of(1), version=(10, 15, 0, 1))), ImportRefused, r"10\.15\.0\.1, and rank0\.engine with 10\.16\.1\.11"),
    "a plan of TensorRT-RTX": (_other_rtx, ImportRefused, "for tensorrt-rtx, which TensorRT-LLM does not build"),
    "no checkpoint": (lambda f: os.rename(f.checkpoint, f.checkpoint.with_name("x")), SourceUnreadable, "has no rank0.safetensors"),
    "an empty checkpoint": (lambda f: [os.unlink(p) for p in f.checkpoint.iterdir()], SourceUnreadable, "has no rank0.safetensors"),
    "a rank's weights are missing": (lambda f: os.unlink(f.checkpoint / "rank1.safetensors"), SourceUnreadable, r"rank1\.safetensors"),
    "another architecture": (_checkpoint_json(lambda d: d.update(architecture="GemmaForCausalLM")), ImportRefused, "of a GemmaForCausalLM, and the engine of a LlamaForCausalLM"),
    "another split": (_checkpoint_json(lambda d: d.update(mapping={"pp_size": 2})), ImportRefused, "split with tp_size 1 and pp_size 2, and the engine with tp_size 2 and pp_size 1"),
    "a pruned checkpoint": (_checkpoint_json(lambda d: d.update(is_pruned=True)), ImportRefused, "was pruned"),
    "a checkpoint's config that is none": (_bytes("checkpoint/config.json", b"[]"), ImportRefused, "cannot be understood"),
    "a header that lies": (_bytes("checkpoint/rank1.safetensors", packed({"a": entry("F16", [1 << 40], 0, 1 << 41)})), SafetensorsMalformed, r"rank1\.safetensors"),
    "a cut checkpoint": (lambda f: os.truncate(f.checkpoint / "rank1.safetensors", 700), SafetensorsMalformed, r"rank1\.safetensors"),
    "an index that leaves": (_index(lambda names: dict.fromkeys(names, "../checkpoint/part.safetensors")), ImportRefused, "which leaves the folder by '..'"),
    "an index that is absolute": (_index(lambda names: dict.fromkeys(names, "/etc/passwd")), ImportRefused, "which is absolute"),
    "an index to a folder below": (_index(lambda names: dict.fromkeys(names, "a/part.safetensors")), ImportRefused, "which is not beside it"),
    "an index with a backslash": (_index(lambda names: dict.fromkeys(names, "..\\part")), ImportRefused, "which holds a backslash"),
    "an index of no name": (_index(lambda names: dict.fromkeys(names, "")), ImportRefused, "which is empty"),
    "an index of nothing": (_index({}), ImportRefused, "lists no tensor"),
    "an index that is none": (_index(["part.safetensors"]), ImportRefused, "Expected `object`"),
    "an index to a file that is gone": (_index(lambda names: dict.fromkeys(names, "gone.safetensors")), SourceUnreadable, r"gone\.safetensors"),
    "an index with a tensor too many": (_index(lambda names: {**names, "x": "part.safetensors"}), ImportRefused, "'x' is not in 'part.safetensors'"),
    "an index that mixes up its files": (_two_shards, ImportRefused, "is in 'b.safetensors', and not in 'a.safetensors'"),
    "an index with a tensor too few": (_index(lambda names: dict(list(names.items())[1:])), ImportRefused, "is in 'part.safetensors', other than it says"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_in_words_and_the_bundle_is_as_it_was(folders: Folders, case: str) -> None:
    """Damaged, hostile or merely unexpected."""
    folders.add("before")
    before = folders.snapshot()
    change, kind, says = BAD[case]
    change(folders)
    with pytest.raises(kind, match=says) as info:
        folders.add(facts=EngineFacts(os=("linux",), compute_capabilities=("8.9",), gpu="NVIDIA L4"))
    assert "<" not in str(info.value)
    assert folders.snapshot() == before


def test_a_plan_that_another_one_replaces_meanwhile_is_noticed(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header was read before."""
    before = folders.snapshot()
    copy = import_trt_llm.copy_hashed

    def replacing(*args: Any) -> Any:
        (folders.engine / "rank1.engine").write_bytes(plan_of({**weights_of(1), "more": np.zeros(1, np.float16)}))
        return copy(*args)

    monkeypatch.setattr(import_trt_llm, "copy_hashed", replacing)
    with pytest.raises(ImportRefused, match=r"rank1\.engine cannot be imported: it changed while it was read"):
        folders.add()
    assert folders.snapshot() == before


@pytest.mark.parametrize("which", ["engine/rank1.engine", "checkpoint/rank1.safetensors"])
def test_a_file_that_changes_while_it_is_copied_is_noticed(
    folders: Folders, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the bundle is as it was."""
    before = folders.snapshot()
    path = folders.bundle.parent / which
    read = sources.read_chunks

    def changing(name: str, *args: Any) -> Any:
        if name == str(path) and path.stat().st_size > 20:
            os.truncate(path, 20)
        return read(name, *args)

    monkeypatch.setattr(sources, "read_chunks", changing)
    monkeypatch.setattr("refit_agent.authoring.compress.read_chunks", changing)
    with pytest.raises((ImportRefused, EngineRefused), match="it changed while it was"):
        folders.add()
    assert folders.snapshot() == before


# ---------------------------------------------------------------- where a rank's weights are


def test_an_index_spreads_one_checkpoint_over_several_files(tmp_path: Path) -> None:
    """For all ranks alike."""
    folders = Folders(tmp_path)
    folders.engine = write_engine(tmp_path / "pp", [weights_of(0), weights_of(1)], config(pp=2))
    folders.checkpoint = tmp_path / "shards"
    folders.checkpoint.mkdir()
    weights = weights_of(0)
    parts = {"b.safetensors": dict(list(weights.items())[:2]), "a.safetensors": dict(list(weights.items())[2:])}
    for name, part in parts.items():
        (folders.checkpoint / name).write_bytes(file_of(part))
    index = {tensor: name for name, part in parts.items() for tensor in part}
    (folders.checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    engine = folders.add().added.engine
    model = folders.model()
    assert [f.path for f in model.safetensors] == ["models/llm/a.safetensors", "models/llm/b.safetensors"]
    assert [plan.safetensors for plan in engine.plans] == [(), ()]


def test_one_whole_file_serves_all_ranks(tmp_path: Path) -> None:
    """Ranks of a pipeline have different names in it."""
    folders = Folders(tmp_path)
    folders.engine = write_engine(tmp_path / "pp", [weights_of(0), weights_of(1)], config(pp=2))
    folders.checkpoint = tmp_path / "whole"
    folders.checkpoint.mkdir()
    (folders.checkpoint / "model.safetensors").write_bytes(file_of(weights_of(0)))
    assert [f.path for f in (folders.add(), folders.model())[1].safetensors] == ["models/llm/model.safetensors"]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_ranks_of_the_same_part_of_the_model_share_a_file(tp: int, pp: int, cp: int) -> None:
    """Those that differ in their part of the sequence alone; every file of the checkpoint is used."""
    from refit_agent.authoring.trt_llm_checkpoint import _file_number

    mapping = Mapping(tp_size=tp, pp_size=pp, cp_size=cp)
    files: dict[tuple[int, int], set[int]] = {}
    for rank in range(tp * pp * cp):
        # TensorRT-LLM numbers ranks by tp first, then cp, then pp.
        files.setdefault((rank // (tp * cp), rank % tp), set()).add(_file_number(rank, mapping))
    assert all(len(numbers) == 1 for numbers in files.values())
    assert {n for numbers in files.values() for n in numbers} == set(range(tp * pp))


def test_ranks_that_share_a_file_ship_it_once(tmp_path: Path) -> None:
    """Context parallelism over two GPUs, one checkpoint file."""
    folders = Folders(tmp_path)
    document = config(model=pretrained(mapping={"world_size": 2, "cp_size": 2}))
    folders.engine = write_engine(tmp_path / "cp", [weights_of(0), weights_of(0)], document)
    folders.checkpoint = write_checkpoint(tmp_path / "one", [weights_of(0)])
    engine = folders.add().added.engine
    assert len(folders.model().safetensors) == 1
    assert [plan.safetensors for plan in engine.plans] == [(), ()]
    assert sound(folders.bundle)


@given(st.recursive(st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["pretrained_config", "build_config", "mapping", "architecture", "tp_size", "quantization", "version", "plugin_config"]), x, max_size=4), max_leaves=12))  # fmt: skip
def test_whatever_config_json_says_is_understood_or_refused(document: Any) -> None:
    """Never anything but an error of ours."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = write_engine(
            Path(name), [weights_of(0)], document if isinstance(document, dict) else {"version": document}
        )
        try:
            engine = read_engine_folder(folder)
        except (ImportRefused, PlanInvalid):
            return
        assert isinstance(engine.model, Pretrained)
        assert len(engine.plans) == 1
        with pytest.raises((SourceUnreadable, ImportRefused)):
            read_checkpoint(folder, engine)
