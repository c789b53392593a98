"""Whole builds, with a real process for each and real files: what the folder holds afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundles import python
from fakes_tensorrt_builder import machine, told, write_builder
from refit_agent.authoring import add_engine, add_model, init_bundle
from refit_agent.authoring.build import engines, publish
from refit_agent.authoring.build.engines import build_engines
from refit_agent.authoring.build.options import BuildOptions
from refit_agent.authoring.build.publish import BuiltPlan
from refit_agent.authoring.build.record import read_record
from refit_agent.authoring.build.shapes import make_profile
from refit_agent.authoring.errors import (
    AuthoringError,
    BuilderCrashed,
    BuilderLacks,
    BuilderMissing,
    BuildFailed,
    BuildOptionsInvalid,
    ModelUnsupported,
    OutputInTheWay,
    WeightsLost,
)
from refit_agent.bundle import Bundle
from refit_agent.errors import BundleFileMismatch, BundleFileMissing, Cancelled, DeviceFailed, WeightsUncovered
from refit_agent.manifest import Engine
from refit_agent.progress import Progress
from refit_agent.weight_map import Prototype, resolve
from refit_agent.weights import OnnxWeights

from .models import make_model

SHAPES = make_profile(None, {"opt": "x:1x3x8x8"})
SMALL = make_profile("small", {"opt": "x:1x3x8x8"})
LARGE = make_profile("large", {"min": "x:1x3x8x8", "opt": "x:4x3x8x8", "max": "x:8x3x8x8"})


class Bench:
    """A model, and a machine with the builder that was asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.model = make_model(folder / "src" / "net.onnx", external="weights.bin")
        self._monkeypatch = monkeypatch
        self.install()

    def install(self, module: str = "tensorrt", version: str = "10.16.1.11", **faults: Any) -> None:
        shutil.rmtree(self.folder / "runtime", ignore_errors=True)
        write_builder(self.folder / "runtime", module, version, **faults)
        here = machine((module, version, str(self.folder / "runtime")))
        self._monkeypatch.setattr(engines, "detect", lambda: here)

    def build(self, options: BuildOptions | None = None, **how: Any) -> tuple[BuiltPlan, ...]:
        given = options or BuildOptions(profiles=(SHAPES,))
        return build_engines(self.model, self.out, given, **{"deadline_s": 60, **how})

    def files(self) -> list[str]:
        return sorted(os.listdir(self.out)) if self.out.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- what is there afterwards


def test_a_build(bench: Bench) -> None:
    """Plan, record and the canonical model; the record's every statement is true of them."""
    source = {p.name: p.read_bytes() for p in bench.model.parent.iterdir()}
    (plan,) = bench.build()
    assert bench.files() == ["net.onnx", "net.onnx.data", "net.plan", "net.plan.json"]
    assert read_record(plan.record_path) == plan.record
    record = plan.record
    assert [(f.path, f.sha256) for f in (record.plan, record.onnx, *record.external)] == [
        (name, _sha256(bench.out / name)) for name in ("net.plan", "net.onnx", "net.onnx.data")
    ]
    assert record.source.path == str(bench.model)
    assert record.source.sha256 == _sha256(bench.model)
    assert [f.sha256 for f in record.source_external] == [_sha256(bench.model.parent / "weights.bin")]
    assert (record.runtime, record.built_with, record.builder) == ("tensorrt", "10.16.1.11", "tensorrt 10.16.1.11")
    assert (record.strip, record.refit, record.refittable, record.precision) == ("plan", "identical", True, "fp32")
    assert (record.os, record.arch, record.gpu, record.driver) == (("linux",), "x86_64", "NVIDIA H100 80GB HBM3", "580.159.04")  # fmt: skip
    assert (record.compute_capabilities, record.min_compute_capability) == (("9.0",), None)
    assert (record.version_compatible, record.host_code, record.min_driver) == (False, False, None)
    assert record.plan_size == (bench.out / "net.plan").stat().st_size and record.plan_sha256 == record.plan.sha256
    assert record.canonical and record.weights_sha256 is not None and record.notes == ("a warning",)
    assert {p.name: p.read_bytes() for p in bench.model.parent.iterdir()} == source


def test_a_folder_that_is_a_link(bench: Bench) -> None:
    """The record names files as they lie in it."""
    (bench.folder / "real").mkdir()
    bench.out.symlink_to(bench.folder / "real")
    (plan,) = bench.build()
    assert [plan.record.onnx.path, *(f.path for f in plan.record.external)] == ["net.onnx", "net.onnx.data"]


def test_the_map_covers_the_engine(bench: Bench) -> None:
    """Every weight that the plan asks for, from the canonical model; and its values there are the true ones."""
    (plan,) = bench.build()
    asked = [(w[0], w[1]) for w in told(plan.path)["weights"]]
    assert [w.name for w in plan.record.weights] == [name for name, _ in asked]
    assert plan.record.weight_map is not None and plan.record.weight_map.keys() == {name for name, _ in asked}
    assert plan.record.weights_by_rule == ()
    wanted = {w.name: Prototype(w.dtype, w.count) for w in plan.record.weights}
    with OnnxWeights(bench.out / "net.onnx") as weights:
        resolve(wanted, weights, builder=(99, 0), explicit=plan.record.weight_map)


def test_the_data_lies_in_the_engine_s_order(bench: Bench) -> None:
    """So that a refit reads the file front to back."""
    (plan,) = bench.build()
    with OnnxWeights(bench.out / "net.onnx") as weights:
        offsets = [weights[w.name].offset for w in plan.record.weights]
    assert len(offsets) > 2 and offsets == sorted(offsets)


def test_the_file_as_it_is(bench: Bench) -> None:
    """Nothing but plan and record is written, and the record names the caller's file."""
    (plan,) = bench.build(canonical=False)
    assert bench.files() == ["net.plan", "net.plan.json"]
    record = plan.record
    assert not record.canonical and record.onnx == record.source and record.external == record.source_external
    assert record.onnx.path == str(bench.model)
    folds = [entry for entry in (record.weight_map or {}).values() if "batch_norm" in entry]
    assert sorted(entry["batch_norm"] for entry in folds) == ["bias", "scale"]


@pytest.mark.parametrize("canonical", [True, False])
def test_zeros(bench: Bench, canonical: bool) -> None:
    """8.6 gets a model of zeros, and what ships are the true weights."""
    bench.install(version="8.6.0.12")
    (plan,) = bench.build(canonical=canonical)
    values = told(plan.path)["values"]
    assert values and not any(set(value) - {"A", "="} for value in values.values())
    assert (plan.record.strip, plan.record.refit, plan.record.weights_sha256) == ("zeros", "any", None)
    assert {w.dtype for w in plan.record.weights} == {None}
    assert [name for name in bench.files() if "zero" in name] == []
    shipped = bench.out / "net.onnx" if canonical else bench.model
    with OnnxWeights(shipped) as weights:
        assert np.abs(weights["fc.w"].array()).min() > 0


def test_one_plan_for_each_profile(bench: Bench) -> None:
    """From one canonical model, each with its own shapes."""
    plans = bench.build(BuildOptions(profiles=(SMALL, LARGE)))
    assert bench.files() == ["net.large.plan", "net.large.plan.json", "net.onnx", "net.onnx.data", "net.small.plan", "net.small.plan.json"]  # fmt: skip
    assert [plan.record.profile for plan in plans] == ["small", "large"]
    assert [plan.record.options.profiles for plan in plans] == [(SMALL,), (LARGE,)]
    assert told(bench.out / "net.large.plan")["profiles"] == [{"x": [[1, 3, 8, 8], [4, 3, 8, 8], [8, 3, 8, 8]]}]


def test_a_second_build_uses_the_canonical_model_of_the_first(bench: Bench) -> None:
    """So that plans of several precisions belong to one file; another name keeps the plans apart."""
    bench.build(BuildOptions(profiles=(SMALL,)))
    model = {name: (bench.out / name).stat() for name in ("net.onnx", "net.onnx.data")}
    (plan,) = bench.build(BuildOptions(profiles=(LARGE,), fp16=True))
    assert {name: (bench.out / name).stat() for name in model} == model
    assert plan.record.canonical and plan.record.precision == "fp16"
    shared = {read_record(str(p)).onnx.sha256 for p in bench.out.glob("*.plan.json")}
    assert shared == {_sha256(bench.out / "net.onnx")}


@pytest.mark.parametrize("what", ["net.onnx", "net.onnx.data", "source", "record"])
def test_a_canonical_model_that_is_not_what_the_record_says(bench: Bench, what: str) -> None:
    """Changed, made from another model, or without a word about it: in the way, unless it may be replaced."""
    bench.build(BuildOptions(profiles=(SMALL,)))
    if what == "source":
        make_model(bench.model, external="weights.bin", seed=1)
    elif what == "record":
        (bench.out / "net.small.plan.json").write_text("{}")
    else:
        with open(bench.out / what, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    before = {p.name: p.read_bytes() for p in bench.out.iterdir()}
    with pytest.raises(OutputInTheWay, match=r"net\.onnx is there already, and no record"):
        bench.build(BuildOptions(profiles=(LARGE,)))
    assert {p.name: p.read_bytes() for p in bench.out.iterdir()} == before
    bench.build(BuildOptions(profiles=(LARGE,)), force=True)
    record = read_record(str(bench.out / "net.large.plan.json"))
    assert record.onnx.sha256 == _sha256(bench.out / "net.onnx")


def test_files_in_the_way(bench: Bench) -> None:
    """Found before anything is built; replaced only with force."""
    bench.build()
    bench.install(crash=True)
    with pytest.raises(OutputInTheWay, match=r"net\.plan is there already\.") as caught:
        bench.build()
    assert "--force" in caught.value.hint
    bench.install(version="10.15.0.1")
    (plan,) = bench.build(force=True)
    assert plan.record.built_with == read_record(plan.record_path).built_with == "10.15.0.1"


@pytest.mark.parametrize("name", ["net", "NET"])
def test_the_model_itself_is_never_replaced(bench: Bench, name: str) -> None:
    """With force neither."""
    before = {p.name: p.read_bytes() for p in bench.model.parent.iterdir()}
    if name == "NET":
        os.link(bench.model, bench.model.parent / "NET.onnx")
        before["NET.onnx"] = bench.model.read_bytes()
    with pytest.raises(OutputInTheWay, match="it is the model itself"):
        build_engines(bench.model, bench.model.parent, BuildOptions(profiles=(SHAPES,)), name=name, force=True)
    assert {p.name: p.read_bytes() for p in bench.model.parent.iterdir()} == before


# ---------------------------------------------------------------- what the record says of the options


def test_a_plan_for_the_lean_runtime(bench: Bench) -> None:
    """With its own lean runtime it holds code, without it does not."""
    (with_code,) = bench.build(BuildOptions(profiles=(SMALL,), version_compatible=True))
    options = BuildOptions(profiles=(LARGE,), version_compatible=True, exclude_lean_runtime=True)
    (without,) = bench.build(options)
    assert [(p.record.version_compatible, p.record.host_code) for p in (with_code, without)] == [(True, True), (True, False)]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "options", "expected"),
    [
        ("tensorrt", {"hardware_compatibility": "ampere-plus"}, ("ampere-plus", (), "8.0")),
        ("tensorrt", {"hardware_compatibility": "same-compute-capability"}, ("same-compute-capability", ("9.0",), None)),
        ("tensorrt_rtx", {}, ("ampere-plus", (), "8.0")),
    ],
)  # fmt: skip
def test_which_gpus_it_is_for(bench: Bench, module: str, options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """A plan of TensorRT-RTX is for every GPU that TensorRT-RTX supports."""
    rtx = module == "tensorrt_rtx"
    bench.install(module, "1.7.1.116" if rtx else "10.16.1.11")
    (plan,) = bench.build(BuildOptions(profiles=(SHAPES,), **options), kind="tensorrt-rtx" if rtx else "tensorrt")
    record = plan.record
    assert (record.hardware_compatibility, record.compute_capabilities, record.min_compute_capability) == expected


def test_single_weights(bench: Bench) -> None:
    """Patterns are of the canonical model's names; all others stay in the plan."""
    (plan,) = bench.build(BuildOptions(profiles=(SHAPES,), refittable=("fc.*",)))
    assert {w.name for w in plan.record.weights} == {"fc.w", "fc.b"}
    assert (plan.record.refit, plan.record.strip) == ("individual", "plan")


@pytest.mark.parametrize(
    ("pattern", "faults", "words"),
    [
        ("nothing.*", {}, r"--refittable 'nothing\.\*' means no weight of .*net\.onnx; it has: conv\.w"),
        ("fc.*", {"drop": ["fc.w", "fc.b"]}, "asks for none of the weights"),
    ],
)
def test_single_weights_that_come_to_nothing(bench: Bench, pattern: str, faults: Any, words: str) -> None:
    """Misspelt, or folded away by the builder."""
    bench.install(**faults)
    with pytest.raises(BuildOptionsInvalid, match=words):
        bench.build(BuildOptions(profiles=(SHAPES,), refittable=("conv.w", pattern)))
    assert bench.files() == []


def test_a_whole_plan(bench: Bench) -> None:
    """With its weights in it and not refittable: nothing to list, nothing to map."""
    (plan,) = bench.build(BuildOptions(profiles=(SHAPES,), strip="none"))
    record = plan.record
    assert (record.strip, record.refit, record.refittable, record.weight_map, record.weights) == ("none", "any", False, None, ())  # fmt: skip


def test_the_precision_of_a_typed_network_is_the_model_s(bench: Bench) -> None:
    """What most of its weights are."""
    bench.install(version="11.4.0.106")
    (plan,) = bench.build()
    assert plan.record.precision == "fp32"
    bench.install()
    (plan,) = bench.build(BuildOptions(profiles=(SHAPES,), fp16=True, bf16=True), force=True)
    assert plan.record.precision == "fp16+bf16"


# ---------------------------------------------------------------- nothing is written


@pytest.mark.parametrize(
    ("version", "faults", "kind"),
    [
        ("10.16.1.11", {"crash": True}, BuilderCrashed),
        ("10.16.1.11", {"no_plan": True}, BuildFailed),
        ("10.16.1.11", {"deserialise_error": "no"}, BuildFailed),
        ("8.6.0.12", {"fold_zeros": True}, WeightsLost),
        ("8.6.0.12", {"drop": ["fc.b"]}, WeightsLost),
    ],
)
def test_a_build_that_fails_leaves_nothing(bench: Bench, version: str, faults: Any, kind: type[AuthoringError]) -> None:
    """No plan, no model, no temporary folder; not even the output folder, if the build made it."""
    bench.install(version=version, **faults)
    with pytest.raises(kind):
        bench.build()
    assert not bench.out.exists()
    bench.out.mkdir()
    (bench.out / "mine").write_text("mine")
    with pytest.raises(kind):
        bench.build()
    assert bench.files() == ["mine"]


_HANG = """
import sys, time
from refit_agent.authoring.build.engines import _staging_folder
with _staging_folder(sys.argv[1]) as staging:
    open(staging + "/half.plan", "w").write("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_build_left_goes_with_the_next(bench: Bench) -> None:
    """But not what a running one is working on, nor what only looks like it."""
    command, env = python(_HANG, bench.out)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        (left,) = bench.out.iterdir()
        (bench.out / ".build-cache").mkdir()
        bench.out.joinpath(left.name + ".txt").write_text("mine")
        bench.build()
        assert (left / "half.plan").read_text() == "half"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (left / "half.plan").exists()
    bench.build(force=True)
    assert [n for n in bench.files() if n.startswith(".")] == sorted([".build-cache", left.name + ".txt"])


def test_a_file_system_without_locks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is good enough to build on; nothing there can be known to be abandoned."""

    def none(self: object, **_: object) -> None:
        raise NotImplementedError

    left = bench.out / ".refit-agent-build-left"
    left.mkdir(parents=True)
    monkeypatch.setattr("filelock.FileLock.acquire", none)
    assert bench.build()
    assert [n for n in bench.files() if n.startswith(".")] == [left.name]


def test_folders_that_were_made_for_nothing(bench: Bench) -> None:
    """None of them stays."""
    bench.install(no_plan=True)
    bench.out = bench.folder / "a" / "b" / "c"
    with pytest.raises(BuildFailed):
        bench.build()
    assert not (bench.folder / "a").exists()


def test_the_second_of_two_fails(bench: Bench) -> None:
    """Then the first is not published either."""
    wrong = make_profile("wrong", {"opt": "x:1x4x8x8"})
    with pytest.raises(BuildOptionsInvalid, match="1x4x8x8"):
        bench.build(BuildOptions(profiles=(SMALL, wrong)))
    assert not bench.out.exists()


def test_weights_that_nobody_can_explain(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end user's error comes at the build."""
    bench.install(version="8.6.0.12")
    real = engines.run_builder

    def run(*args: Any) -> Any:
        built = real(*args)
        assert built.weights is not None
        stranger = type(built.weights[0])(name="stranger", dtype=None, count=None)
        return type(built)(**{f: getattr(built, f) for f in built.__struct_fields__} | {"weights": (stranger, *built.weights)})  # fmt: skip

    monkeypatch.setattr(engines, "run_builder", run)
    with pytest.raises(WeightsUncovered, match="stranger"):
        bench.build()
    assert not bench.out.exists()


def test_a_model_that_changes_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan would be published with the hash of another model."""
    real = engines.run_builder

    def run(*args: Any) -> Any:
        os.utime(bench.model, (1, 1))
        return real(*args)

    monkeypatch.setattr(engines, "run_builder", run)
    with pytest.raises(BundleFileMismatch, match="changed while"):
        bench.build()
    assert not bench.out.exists()


def test_cancelling(bench: Bench) -> None:
    """Between the steps as well as in the builder."""
    bench.install(hang=True)
    steps: list[str] = []
    with pytest.raises(Cancelled):
        bench.build(progress=lambda _, step: steps.append(step.phase), cancelled=lambda: "build" in steps)
    assert not bench.out.exists()
    with pytest.raises(Cancelled):
        bench.build(cancelled=lambda: True)


def test_a_disk_that_cannot_be_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours, and no half of a build."""
    monkeypatch.setattr(publish, "write_record", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(AuthoringError, match="No space left"):
        bench.build()
    assert not bench.out.exists()


@pytest.mark.parametrize("content", [None, b"", b"this is no ONNX file", b"\x08\x07\x3a\xff\xff\xff\xff\x7f"])
def test_what_is_no_model(bench: Bench, content: bytes | None) -> None:
    """Missing, empty, another file, one that promises gigabytes."""
    bench.model.unlink()
    if content is not None:
        bench.model.write_bytes(content)
    with pytest.raises((BundleFileMissing, AuthoringError, Exception)) as caught:
        bench.build()
    assert caught.value.code in ("bundle-file-missing", "onnx-malformed")  # type: ignore[attr-defined]
    assert not bench.out.exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "con", "a:b", "a\n"])
def test_names_that_are_none(bench: Bench, name: str) -> None:
    """A plan's name must do on every operating system."""
    with pytest.raises(BuildOptionsInvalid, match="plan's name"):
        bench.build(name=name)
    assert not bench.out.exists()


def test_before_anything_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No builder, no GPU, no such flag: said at once."""
    for here, kind in (
        (machine(), BuilderMissing),
        (machine(("tensorrt", "10.16.1.11", ""), gpus=0, no_gpu_reason="no driver"), DeviceFailed),
    ):
        monkeypatch.setattr(engines, "detect", lambda here=here: here)
        with pytest.raises(kind):
            bench.build()
    bench.install(version="8.6.0.12")
    with pytest.raises(BuilderLacks):
        bench.build(BuildOptions(profiles=(SHAPES,), strip="plan"))
    with pytest.raises(ModelUnsupported, match="--int8"):
        bench.build(BuildOptions(profiles=(SHAPES,), int8=True))
    assert not bench.out.exists()


# ---------------------------------------------------------------- on the way, and afterwards


def test_progress(bench: Bench) -> None:
    """Which plan, what is done, and a fraction that never goes back."""
    seen: list[tuple[str, Progress]] = []
    bench.install(version="8.6.0.12")
    bench.build(BuildOptions(profiles=(SMALL, LARGE)), progress=lambda name, step: seen.append((name, step)))
    phases = [(name, step.phase) for name, step in seen]
    one = ["start", "parse", "build", "write", "list", "map"]
    assert phases == [
        *(("net.small.plan", phase) for phase in ("hash", "canonicalize", "zero", *one)),
        *(("net.large.plan", phase) for phase in (*one, "publish")),
    ]
    fractions = [step.fraction for _, step in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert all(step.text for _, step in seen)


@pytest.mark.parametrize("version", ["8.6.0.12", "10.16.1.11"])
def test_from_the_build_into_a_bundle(bench: Bench, version: str) -> None:
    """The record tells `add-engine` everything that it needs."""
    bench.install(version=version)
    (plan,) = bench.build()
    root = bench.folder / "bundle"
    init_bundle(root, app_id="com.example.app", name="App", version="1.0")
    add_model(root, "net", bench.out / "net.onnx")
    add_engine(root, "net", plan.path)
    model = Bundle.open(root).model("net")
    (engine,) = model.engines
    record = plan.record
    same = [f for f in Engine.__struct_fields__ if f in record.__struct_fields__ and f != "weights_sha256"]
    assert {f: getattr(engine, f) for f in same} == {f: getattr(record, f) for f in same}
    assert engine.weights_sha256 == (model.weights_digest() if record.refit == "identical" else None)


def test_the_options_are_in_the_record(bench: Bench) -> None:
    """As they were settled, so that a build can be repeated."""
    (plan,) = bench.build(BuildOptions(profiles=(SMALL,), optimization_level=2, tf32=False))
    options = json.loads(Path(plan.record_path).read_text())["options"]
    assert (options["strip"], options["refit"], options["optimization_level"], options["tf32"]) == ("plan", "identical", 2, False)  # fmt: skip
    assert [p["name"] for p in options["profiles"]] == ["small"]
