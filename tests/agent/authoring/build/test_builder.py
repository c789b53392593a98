"""What TensorRT is told, and what becomes of what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes_tensorrt import FakeTensorRt
from fakes_tensorrt_builder import FakeBuilder
from refit_agent.authoring.build.builder import build_plan
from refit_agent.authoring.build.builder_worker import perform
from refit_agent.authoring.build.messages import BuildJob, Built, Event, RefittableNames, Step
from refit_agent.authoring.build.options import BuilderVersion, BuildOptions, settle
from refit_agent.authoring.build.shapes import Profile, make_profile
from refit_agent.authoring.build.weight_list import list_weights
from refit_agent.authoring.errors import BuilderLacks, BuildFailed, BuildOptionsInvalid
from refit_agent.errors import DeviceFailed, RefitAgentError, from_wire
from refit_agent.plan_header import parse_plan_header
from refit_agent.refit.messages import Failed
from refit_agent.runtimes.tensorrt_log import MessageSink, make_logger

from .models import make_model, write

V8, V10, V11 = "8.6.0.12", "10.16.1.11", "11.4.0.106"
SHAPES = make_profile(None, {"min": "x:1x3x8x8", "opt": "x:2x3x8x8", "max": "x:4x3x8x8"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "net.onnx")


def job_for(model: Path, module: FakeTensorRt, profile: Profile = SHAPES, **options: Any) -> BuildJob:
    kind: Any = "tensorrt-rtx" if module.__name__ == "tensorrt_rtx" else "tensorrt"
    refittable = tuple(options.get("refittable", ()))
    return BuildJob(
        kind=kind,
        module=module.__name__,
        module_folder="",
        module_version=module.__version__,
        gpu="GPU-0",
        onnx=str(model),
        model=str(model),
        plan=str(model.parent / "out.plan"),
        options=settle(BuildOptions(**options), BuilderVersion(kind, module.__version__)),
        profile=profile,
        refittable=tuple(RefittableNames(pattern=name, names=(name,)) for name in refittable),
    )


def built(module: FakeTensorRt, job: BuildJob) -> bytes:
    sink = MessageSink()
    return bytes(build_plan(module, make_logger(module, sink), sink, job, lambda _: None))


def told_by(module: FakeTensorRt, job: BuildJob) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(built(module, job)[28:])
    return body


@pytest.mark.parametrize(
    ("version", "options", "flags"),
    [
        (V8, {}, {"REFIT"}),
        (V8, {"fp16": True, "tf32": False}, {"REFIT", "FP16"}),
        (V8, {"strip": "none", "version_compatible": True}, {"VERSION_COMPATIBLE"}),
        (V10, {}, {"REFIT_IDENTICAL", "STRIP_PLAN"}),
        (V10, {"refit": "any", "int8": True, "bf16": True}, {"REFIT", "STRIP_PLAN", "INT8", "BF16"}),
        (V10, {"strip": "zeros", "fp8": True}, {"REFIT", "FP8"}),
        (V10, {"refittable": ["fc.w"]}, {"REFIT_INDIVIDUAL", "STRIP_PLAN"}),
        (V10, {"strip": "none"}, set()),
        (V10, {"version_compatible": True, "exclude_lean_runtime": True}, {"REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}),
        (V11, {"refit": "any"}, {"REFIT", "STRIP_PLAN"}),
    ],
)  # fmt: skip
def test_flags(model: Path, version: str, options: dict[str, Any], flags: set[str]) -> None:
    """Exactly these; TF32 is TensorRT's default and goes only where it is unwanted."""
    module = FakeBuilder(version=version)
    wanted = flags | ({"TF32"} if options.get("tf32", True) else set())
    assert set(told_by(module, job_for(model, module, **options))["flags"]) == wanted


def test_rtx(model: Path) -> None:
    """The same code under another module's name."""
    module = FakeBuilder("tensorrt_rtx", "1.7.1.116")
    assert built(module, job_for(model, module))[:4] == b"vtrt"


@pytest.mark.parametrize(("version", "typed", "flags"), [(V8, False, 1), (V10, False, 1), (V10, True, 3), (V11, False, 0), (V11, True, 1)])  # fmt: skip
def test_network_flags(model: Path, version: str, typed: bool, flags: int) -> None:
    """8.6 needs EXPLICIT_BATCH, which 11 does not know any more; STRONGLY_TYPED has another number there."""
    module = FakeBuilder(version=version)
    assert told_by(module, job_for(model, module, strongly_typed=typed))["network_flags"] == flags


def test_the_rest_of_the_configuration(model: Path) -> None:
    """Level, pools, hardware compatibility and shapes arrive as they were given."""
    module = FakeBuilder(version=V10)
    pools = {"workspace": 1 << 30, "tactic-shared-memory": 48 << 10}
    options = {"optimization_level": 1, "memory_pools": pools, "hardware_compatibility": "same-compute-capability"}
    told = told_by(module, job_for(model, module, **options))
    assert (told["level"], told["hardware"]) == (1, "SAME_COMPUTE_CAPABILITY")
    assert told["pools"] == {"WORKSPACE": 1 << 30, "TACTIC_SHARED_MEMORY": 48 << 10}
    assert told["profiles"] == [{"x": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}]
    assert module.plugins == [""]


def test_what_is_not_asked_for_is_left_alone(model: Path) -> None:
    """TensorRT keeps its own defaults."""
    module = FakeBuilder(version=V10)
    told = told_by(module, job_for(model, module))
    assert (told["level"], told["hardware"], told["pools"]) == (3, "NONE", {})


def test_a_flag_that_this_version_does_not_have(model: Path) -> None:
    """What the table of versions does not know the module itself tells."""
    module = FakeBuilder(version=V10)
    job = job_for(model, module, memory_pools={"tactic-shared-memory": 1})
    module.MemoryPoolType = type("MemoryPoolType", (), {})
    with pytest.raises(
        BuilderLacks,
        match=r"tensorrt 10\.16\.1\.11 cannot build that: it has no MemoryPoolType\.TACTIC_SHARED_MEMORY\.",
    ):
        built(module, job)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, r"--opt-shapes must give their shapes: x \(\?x3x8x8\)"),
        ({"opt": "z:1"}, "no input 'z'; it has: x"),
        ({"opt": "x:1x3x8"}, "1x3x8 is not"),
        ({"opt": "x:1x4x8x8"}, r"1x4x8x8 is not \?x3x8x8"),
    ],
)
def test_shapes_that_are_not_the_model_s(model: Path, shapes: Any, words: str) -> None:
    """An input without a shape would silently become one of batch 1, as with trtexec."""
    module = FakeBuilder(version=V10)
    with pytest.raises(BuildOptionsInvalid, match=words):
        built(module, job_for(model, module, make_profile(None, shapes)))


def test_a_model_without_dynamic_shapes(tmp_path: Path) -> None:
    """Needs no profile, and gets none; shapes that say the same do no harm."""
    module = FakeBuilder(version=V10)
    static = make_model(tmp_path / "static.onnx", batch=2)
    assert told_by(module, job_for(static, module, Profile(name="p")))["profiles"] == []
    assert told_by(module, job_for(static, module, make_profile("p", {"opt": "x:2x3x8x8"})))["profiles"] == []
    with pytest.raises(BuildOptionsInvalid, match="is not 2x3x8x8"):
        built(module, job_for(static, module, make_profile("p", {"opt": "x:1x3x8x8"})))


def test_a_shape_tensor_gets_values(tmp_path: Path) -> None:
    """The numbers given for it are its values, not its dimensions."""
    write(tmp_path / "m.onnx", [], {}, {"x": ["n", 4], "s": [2]}, {})
    module = FakeBuilder(version=V10, shape_tensors=["s"])
    profile = make_profile(None, {"min": "x:1x4,s:1x2", "opt": "x:1x4,s:3x4", "max": "x:1x4,s:5x6"})
    told = told_by(module, job_for(tmp_path / "m.onnx", module, profile))
    assert told["profiles"][0]["s"] == ["values", [1, 2], [3, 4], [5, 6]]


def test_a_profile_that_tensorrt_does_not_take(model: Path) -> None:
    """An index below zero is its way to say no."""
    module = FakeBuilder(version=V10, no_profile=True)
    with pytest.raises(BuildOptionsInvalid, match="no optimization profile"):
        built(module, job_for(model, module))


# ---------------------------------------------------------------- single weights


def test_single_weights_are_marked(model: Path) -> None:
    """With REFIT_INDIVIDUAL the engine asks for what was marked and for nothing else."""
    module = FakeBuilder(version=V10)
    told = told_by(module, job_for(model, module, refittable=["fc.w", "conv.w"]))
    assert {weight[0] for weight in told["weights"]} == {"fc.w", "conv.w"}


def test_a_weight_that_cannot_be_marked(model: Path) -> None:
    """A name that means nothing in the end is an error, although others mean something."""
    module = FakeBuilder(version=V10, unmarkable=["fc.w"])
    with pytest.raises(BuildFailed, match=r"--refittable 'fc\.w'"):
        built(module, job_for(model, module, refittable=["conv.w", "fc.w"]))


# ---------------------------------------------------------------- measured times


def test_a_timing_cache_is_made_read_and_written(model: Path, tmp_path: Path) -> None:
    """The second build begins with what the first one measured."""
    module = FakeBuilder(version=V8)
    cache = tmp_path / "times"
    for content in (b"measured", b"measuredmeasured"):
        built(module, job_for(model, module, timing_cache=str(cache)))
        assert cache.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("times")] == ["times"]


def test_a_timing_cache_of_another_gpu(model: Path, tmp_path: Path) -> None:
    """It is left as it is, and the error names it."""
    (tmp_path / "times").write_bytes(b"of another GPU")
    module = FakeBuilder(version=V8, stale_cache=True)
    with pytest.raises(BuildOptionsInvalid, match="times"):
        built(module, job_for(model, module, timing_cache=str(tmp_path / "times")))
    assert (tmp_path / "times").read_bytes() == b"of another GPU"


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("faults", "kind", "words"),
    [
        ({"no_builder": True}, DeviceFailed, "error: 35"),
        ({"parse_error": ["unsupported operator Foo", "and so on"]}, BuildFailed, "node 0: unsupported operator Foo; node 1: and so on"),
        ({"no_plan": True}, BuildFailed, "out of memory"),
        ({"no_runtime": True}, BuildFailed, "cannot be opened: CUDA initialization failure"),
        ({"deserialise_error": "magic tag"}, BuildFailed, "cannot be opened: magic tag"),
        ({"unrefittable": True}, BuildFailed, "is not refittable"),
        ({"garbage": True}, BuildFailed, "ValueError: what no binding raises"),
    ],
)  # fmt: skip
def test_failures(model: Path, monkeypatch: pytest.MonkeyPatch, faults: Any, kind: type[RefitAgentError], words: str) -> None:  # fmt: skip
    """Every one reaches the parent as an error of ours with TensorRT's own words in it."""
    module = FakeBuilder(version=V10, **faults)
    ended = _perform(module, job_for(model, module), monkeypatch)
    assert isinstance(ended, Failed)
    error = from_wire(ended.code, ended.facts)
    assert isinstance(error, kind) and words in str(error), error


def _perform(module: FakeTensorRt, job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> Event:
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Path(job.plan).unlink(missing_ok=True)
    return perform(job, lambda _: None)


def test_a_build(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker reports: the plan's own version, its weights in the engine's order with their types."""
    module = FakeBuilder(version=V10)
    job = job_for(model, module)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    Path(job.plan).unlink(missing_ok=True)
    steps: list[Event] = []
    done = perform(job, steps.append)
    assert isinstance(done, Built)
    assert [step.phase for step in steps if isinstance(step, Step)] == ["start", "parse", "build", "write", "list"]
    assert list(done.seconds) == ["start", "parse", "build", "write", "list"]
    assert done.version == (10, 16, 1, 11) and done.size == Path(job.plan).stat().st_size
    assert done.notes == ("a warning",)
    weights = {w.name: (w.dtype, w.count) for w in done.weights or ()}
    assert list(weights.items()) == [
        ("fc.b", ("float32", 32)),
        ("fc.w", ("float32", 768)),
        ("conv.b", ("float32", 24)),
        ("conv.w", ("float32", 648)),
        ("tmp_refittable_weight_0", ("float32", 24)),
        ("tmp_refittable_weight", ("float32", 24)),
    ]


def test_before_10_the_types_are_not_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8.6 has no get_weights_prototype."""
    module = FakeBuilder(version=V8)
    done = _perform(module, job_for(model, module), monkeypatch)
    assert isinstance(done, Built) and done.weights is not None
    assert {(w.dtype, w.count) for w in done.weights} == {(None, None)}
    assert [w.name for w in done.weights] == ["fc.b", "fc.w", "conv.b", "conv.w", "tmp_weight_0", "tmp_weight"]


def test_a_plan_without_refit_lists_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, which is not the same as an empty list."""
    module = FakeBuilder(version=V10)
    done = _perform(module, job_for(model, module, strip="none"), monkeypatch)
    assert isinstance(done, Built) and done.weights is None


@pytest.mark.parametrize("found", ["10.15.0.1", "11.4.0.106"])
def test_another_version_than_the_one_that_was_chosen(model: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """What is possible was decided for the other one."""
    job = job_for(model, FakeBuilder(version=V10))
    ended = _perform(FakeBuilder(version=found), job, monkeypatch)
    assert isinstance(ended, Failed) and ended.code == "runtime-changed"


def test_a_module_without_a_builder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the lean runtime under the full one's name."""
    ended = _perform(FakeTensorRt(version=V10), job_for(model, FakeBuilder(version=V10)), monkeypatch)
    assert isinstance(ended, Failed) and ended.code == "builder-missing"


# ---------------------------------------------------------------- the lean runtime


def _listed(module: FakeTensorRt, job: BuildJob) -> int:
    sink = MessageSink()
    logger = make_logger(module, sink)
    plan = build_plan(module, logger, sink, job, lambda _: None)
    view = memoryview(plan).cast("B")
    header = parse_plan_header(view, len(view), job.plan)
    return len(list_weights(module, logger, sink, job, header, plan))


def test_a_plan_that_brings_the_lean_runtime_is_opened(model: Path) -> None:
    """We built it, so its code may run here."""
    module = FakeBuilder(version=V10)
    assert _listed(module, job_for(model, module, version_compatible=True)) == 6


def test_a_plan_without_the_lean_runtime_is_opened_by_an_installed_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the full runtime does not open it; of another release none is of use."""
    module = FakeBuilder(version=V10, refuse_without_lean=True)
    job = job_for(model, module, version_compatible=True, exclude_lean_runtime=True)
    modules = sys.modules
    monkeypatch.setitem(modules, "tensorrt_lean", FakeTensorRt("tensorrt_lean", "10.16.1.11"))
    assert _listed(module, job) == 6
    monkeypatch.setitem(modules, "tensorrt_lean", FakeTensorRt("tensorrt_lean", "10.15.0.1"))
    with pytest.raises(BuildFailed, match=r"tensorrt_lean 10\.16\.1\.11 must be installed"):
        _listed(module, job)
