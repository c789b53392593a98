from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper

from fakes_tensorrt import (
    STUB_ERROR,
    FakeCuda,
    FakeTensorRt,
    build_driver,
    fingerprint,
    output,
    plan,
    tensor,
    write_package,
)
from refit_agent import ensure_engine, provision
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.errors import (
    DeviceFailed,
    GoldenMismatch,
    GpuMemoryShort,
    PlanInvalid,
    PlanRefused,
    RefitAgentError,
    RefitError,
    RuntimeMissing,
    WeightsUncovered,
)
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.manifest import App, Engine, FileRef, Golden, Manifest, Model
from refit_agent.refit.messages import Job, Located
from refit_agent.refit.unpack import PlanImage, unpack
from refit_agent.runtimes import load_runtime, tensorrt
from refit_agent.runtimes.tensorrt import TensorRtRuntime

_HASH = "0" * 64
IO = [tensor("x"), output("y", "x")]


# ---------------------------------------------------------------- the class


class Pending:
    """In the place of the context in the making."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1
        if self.error is not None:
            raise self.error


class Bench:
    """A runtime over a fake module, and what it opens."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.contexts: list[Pending] = []

    def job(self, data: bytes, **changes: Any) -> Job:
        path = self.folder / "p.plan"
        path.write_bytes(data)
        facts = {"strip": "plan", "built_with": "10.16.1.11", **changes.pop("engine", {})}
        engine = Engine(path="p.plan", size=len(data), sha256=_HASH, runtime="tensorrt", plan_size=len(data), **facts)
        weights = Located(path="/w.onnx", ref=FileRef(path="w", size=1, sha256=_HASH))
        fields: dict[str, Any] = {
            "staging": str(self.folder), "plan": str(path), "engine": engine, "weights": weights, "external": (),
            "runtime": "tensorrt", "module": "tensorrt", "module_folder": "", "module_version": "10.16.1.11",
            "gpu": "GPU-1",
        }  # fmt: skip
        return Job(**{**fields, **changes})

    def runtime(self, job: Job, module: FakeTensorRt, error: Exception | None = None) -> TensorRtRuntime:
        self.monkeypatch.setitem(sys.modules, job.module, module)

        def start(job: Job) -> Pending:
            self.contexts.append(Pending(error))
            return self.contexts[-1]

        self.monkeypatch.setattr(tensorrt, "open_context", start)
        return TensorRtRuntime(job)

    def open(self, data: bytes, fake: FakeTensorRt, **changes: Any) -> Any:
        job = self.job(data, **changes)
        return self.runtime(job, fake).open(image(job))


def image(job: Job) -> PlanImage:
    return unpack(job.plan, job.engine)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_plan_is_opened_with_several_threads(bench: Bench) -> None:
    """Runtime and refitter may use them; the module's version is told."""
    module = FakeTensorRt()
    job = bench.job(plan({"a": ("FLOAT", 1)}))
    runtime = bench.runtime(job, module)
    opened = runtime.open(image(job))
    assert (runtime.name, runtime.version) == ("tensorrt", "10.16.1.11")
    assert set(opened.wanted()) == {"a"}
    threads = tensorrt._threads()
    assert 1 <= threads <= 8
    assert (module.state.runtimes[0].max_threads, opened._refitter.max_threads) == (threads, threads)
    assert module.state.runtimes[0].engine_host_code_allowed is False


def test_no_runtime_is_made_before_the_driver_has_answered(bench: Bench) -> None:
    """Its creation without a driver is a segmentation fault: the context is begun first and waited for."""
    module = FakeTensorRt()
    job = bench.job(plan())
    runtime = bench.runtime(job, module)
    assert [context.waits for context in bench.contexts] == [0]
    assert module.state.runtimes == []
    seen: list[int] = []
    bench.monkeypatch.setattr(bench.contexts[0], "wait", lambda: seen.append(len(module.state.runtimes)))
    runtime.open(image(job))
    assert seen == [0]
    assert len(module.state.runtimes) == 1


@pytest.mark.parametrize(
    "error",
    [
        DeviceFailed(detail="there is no NVIDIA driver"),
        GpuMemoryShort(gpu="GPU-1", free_bytes=1, needed_bytes=3, short_bytes=2),
        AttributeError("undefined symbol"),
    ],
)
def test_without_a_driver_there_is_no_runtime(bench: Bench, error: Exception) -> None:
    """Not for opening, not for running, however often it is asked."""
    module = FakeTensorRt()
    job = bench.job(plan())
    runtime = bench.runtime(job, module, error)
    for _ in range(2):
        with pytest.raises(type(error)):
            runtime.open(image(job))
        with pytest.raises(type(error)):
            runtime.run(job.plan, None)
    assert module.state.runtimes == []


def test_one_runtime_serves_opening_and_running(bench: Bench) -> None:
    """To make one takes a quarter of a second."""
    FakeCuda().install(bench.monkeypatch)
    module = FakeTensorRt()
    job = bench.job(plan(io=IO, stripped=False), engine={"strip": "none"})
    runtime = bench.runtime(job, module)
    runtime.open(image(job)).close()
    got = runtime.run(job.plan, {"x": np.ones((2, 4), np.float32)})
    assert got["y"].shape == (2, 4)
    assert len(module.state.runtimes) == 1


def test_a_header_that_is_not_the_manifest_s_is_refused_before_the_gpu(bench: Bench) -> None:
    """Nothing of TensorRT's has seen the plan then."""
    module = FakeTensorRt()
    for data in (plan(version=(10, 15, 0, 1)), b"vtrt" + plan()[4:], b"ftrt" + bytes(40)):
        with pytest.raises(PlanInvalid):
            bench.open(data, module)
    assert module.state.runtimes == []


def test_a_refused_plan_is_told_with_tensorrt_s_reason(bench: Bench) -> None:
    """deserialize_cuda_engine returns None and logs why."""
    module = FakeTensorRt(deserialise_error="Version tag does not match")
    with pytest.raises(
        PlanRefused, match=r"tensorrt 10\.16\.1\.11 refused .*p\.plan: Version tag does not match"
    ) as info:
        bench.open(plan(), module)
    assert info.value.facts["runtime"] == "tensorrt"


def test_the_stub_error_is_translated(bench: Bench) -> None:
    """What the lean runtime says of a plan without the version-compatible flag means nothing to anybody."""
    module = FakeTensorRt("tensorrt_lean", deserialise_error=STUB_ERROR)
    with pytest.raises(
        PlanRefused, match="built without the version-compatible flag, which tensorrt_lean needs"
    ) as info:
        bench.open(plan(), module, module="tensorrt_lean")
    assert "stub loadRunner" in str(info.value)


def test_a_stripped_plan_that_cannot_be_refitted_is_refused(bench: Bench) -> None:
    """Its weights would stay away for ever."""
    with pytest.raises(PlanRefused, match="built without REFIT"):
        bench.open(plan(refittable=False), FakeTensorRt())


def test_a_whole_plan_needs_no_refit(bench: Bench) -> None:
    """One that ships its weights may have been built without it."""
    opened = bench.open(plan(refittable=False, stripped=False), FakeTensorRt(), engine={"strip": "none"})
    assert opened.wanted() == {}


@pytest.mark.parametrize("changes", [{"engine": {"host_code": True}}, {"lean_runtime": "/lib.so"}])
def test_code_from_the_bundle_is_refused_unless_allowed(bench: Bench, changes: dict[str, Any]) -> None:
    """Neither loaded nor is the GPU touched; the error names the setting that allows it."""
    module = FakeTensorRt()
    with pytest.raises(PlanRefused, match="not signed"):
        bench.runtime(bench.job(plan(), **changes), module)
    assert bench.contexts == []
    assert module.state.runtimes == []


def test_host_code_is_allowed_only_where_the_plan_says_that_it_has_some(bench: Bench) -> None:
    """The permission of the user alone does not open the door for every plan."""
    data = plan(host_code=True)
    opened = bench.open(data, FakeTensorRt(), engine={"host_code": True}, host_code_allowed=True)
    assert opened.wanted() == {}
    with pytest.raises(PlanRefused, match="host code"):
        bench.open(data, FakeTensorRt(), host_code_allowed=True)


def test_a_lean_runtime_of_the_bundle_opens_its_plan(bench: Bench) -> None:
    """Loaded from where it lies; the one that loaded it lives on, since it owns the library."""
    module = FakeTensorRt()
    job = bench.job(plan({"a": ("FLOAT", 1)}), lean_runtime="/lib.so", host_code_allowed=True)
    runtime = bench.runtime(job, module)
    runtime.open(image(job))
    parent, loaded = module.state.runtimes
    assert parent.loaded_from == "/lib.so"
    assert runtime._parent_runtime is parent
    assert loaded.max_threads == tensorrt._threads()


def test_a_lean_runtime_that_does_not_load_is_named(bench: Bench) -> None:
    """It, not the plan."""
    module = FakeTensorRt(lean_version="")
    with pytest.raises(PlanRefused, match=r"/lib\.so: /lib\.so is no library"):
        bench.open(plan(), module, lean_runtime="/lib.so", host_code_allowed=True)


def test_a_runtime_that_cannot_be_made_says_why(bench: Bench) -> None:
    """A driver too old for this CUDA: pybind11 would say that a factory returned nullptr."""
    with pytest.raises(DeviceFailed, match="could not start: CUDA initialization failure with error: 35"):
        bench.open(plan(), FakeTensorRt(no_runtime=1))


@pytest.mark.parametrize("module", ["tensorrt_lean", "tensorrt_rtx"])
@pytest.mark.parametrize("fault", [None, "raise OSError('libcudart.so.13: cannot open shared object file')"])
def test_a_module_that_is_not_there_is_named(bench: Bench, module: str, fault: str | None) -> None:
    """Or one whose libraries are missing; and what to do about it is told."""
    bench.monkeypatch.setattr(tensorrt, "open_context", lambda job: Pending(None))
    if fault is None:
        bench.monkeypatch.setitem(sys.modules, module, None)
    else:
        (bench.folder / "m" / module).mkdir(parents=True)
        (bench.folder / "m" / module / "__init__.py").write_text(fault)
        bench.monkeypatch.delitem(sys.modules, module, raising=False)
    bench.monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RuntimeMissing) as info:
        TensorRtRuntime(bench.job(plan(), module=module, module_folder=str(bench.folder / "m")))
    assert info.value.facts["runtime"] == module
    assert "install" in info.value.hint.lower()


def test_a_module_in_a_folder_of_its_own_goes_first(bench: Bench) -> None:
    """The job says which of several installed runtimes is meant."""
    folder = str(write_package(bench.folder / "m", "tensorrt_rtx", "1.7.1"))
    bench.monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.ModuleType("tensorrt_rtx"))
    del sys.modules["tensorrt_rtx"]
    bench.monkeypatch.setattr(sys, "path", list(sys.path))
    bench.monkeypatch.setattr(tensorrt, "open_context", lambda job: Pending(None))
    runtime = load_runtime(bench.job(plan(), module="tensorrt_rtx", module_folder=folder, module_version="1.7.1"))
    assert (runtime.name, runtime.version) == ("tensorrt_rtx", "1.7.1")


def test_a_finished_plan_that_does_not_load_is_an_error(bench: Bench) -> None:
    """The check run loads it from the disk, as the app will."""
    job = bench.job(plan(io=IO))
    runtime = bench.runtime(job, FakeTensorRt())
    (bench.folder / "engine.plan").write_bytes(b"ftrt" + bytes(60))
    with pytest.raises(PlanRefused, match=r"engine\.plan: .*magicTag"):
        runtime.run(str(bench.folder / "engine.plan"), None)


def test_an_exception_of_tensorrt_s_in_the_check_run_is_told_in_words(bench: Bench) -> None:
    """With what it logged."""
    FakeCuda().install(bench.monkeypatch)
    job = bench.job(plan(io=IO))
    module = FakeTensorRt()
    runtime = bench.runtime(job, module)

    def fail(*_: Any) -> None:
        runtime._logger.say("ERROR", "the kernel is gone")
        raise RuntimeError("Cask")

    bench.monkeypatch.setattr("refit_agent.runtimes.tensorrt_run.run_engine", fail)
    with pytest.raises(RefitError, match="did not run: Cask: the kernel is gone"):
        runtime.run(job.plan, None)


# ---------------------------------------------------------------- the whole way, in the real worker

GPU = "NVIDIA H100 80GB HBM3"
UUID = "GPU-11111111-2222-3333-4444-555555555555"
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def write_onnx(path: Path) -> dict[str, Any]:
    """Two convolutions with a BatchNormalization each, and a Gemm; gives the arrays."""
    rng = np.random.default_rng(5)
    arrays = {"c1.w": rng.standard_normal((4, 3, 3, 3)), "c1.b": rng.standard_normal(4)}
    arrays |= {
        "c2.w": rng.standard_normal((5, 4, 1, 1)),
        "fc.w": rng.standard_normal((5, 6)),
        "fc.b": rng.standard_normal(6),
    }
    nodes = []
    for number, channels, x in ((1, 4, "x"), (2, 5, "r1")):
        bias = ["c1.b"] if number == 1 else []
        nodes.append(helper.make_node("Conv", [x, f"c{number}.w", *bias], [f"c{number}"]))
        names = [f"bn{number}.{part}" for part in ("g", "b", "m", "v")]
        arrays |= {name: rng.uniform(0.5, 2, channels) for name in names}
        nodes.append(helper.make_node("BatchNormalization", [f"c{number}", *names], [f"n{number}"], epsilon=1e-3))
        nodes.append(helper.make_node("Relu", [f"n{number}"], [f"r{number}"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["r2"], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"]))
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return arrays


def engine_weights(arrays: dict[str, Any], family: str) -> dict[str, Any]:
    """What the engine must be given, by the names that its parser made: folded here, by the formula."""
    wanted = {name: arrays[name] for name in ("fc.w", "fc.b", "c1.w", "c1.b", "c2.w")}
    for number, names in ((1, (family, f"{family}_0")), (2, (f"{family}_1", f"{family}_2"))):
        g, b, m, v = (arrays[f"bn{number}.{part}"] for part in ("g", "b", "m", "v"))
        scale = (g / np.sqrt(v + np.float32(1e-3))).astype(np.float32)
        wanted |= {names[0]: scale, names[1]: (b - m * scale).astype(np.float32)}
    return wanted


class Place:
    """A bundle with one TensorRT engine, and a machine with a GPU for it."""

    def __init__(self, root: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "bundle"
        self.folder = root / "modules"
        self.root.mkdir()
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
        self.arrays = write_onnx(self.root / "m.onnx")

    def build(
        self,
        version: tuple[int, ...] = (10, 16, 1, 11),
        *,
        module: str = "tensorrt",
        installed: str = "",
        more: dict[str, tuple[str, int]] | None = None,
        golden: bool = True,
        changes: dict[str, Any] | None = None,
        **faults: Any,
    ) -> Path:
        old = version < (10, 0)
        wanted = engine_weights(self.arrays, "tmp_weight" if old else "tmp_refittable_weight")
        specs = {name: ("FLOAT", array.size) for name, array in wanted.items()} | (more or {})
        data = plan(specs, IO, version=version, stripped=not old)
        (self.root / "m.plan").write_bytes(zstandard.ZstdCompressor().compress(data))
        np.save(self.root / "x.npy", X)
        np.save(self.root / "y.npy", X * np.float32(fingerprint(wanted.items())))

        def ref(name: str) -> FileRef:
            return file_ref(str(self.root), name)

        shipped = ref("m.plan")
        stated = ".".join(map(str, version))
        engine = Engine(
            path=shipped.path, size=shipped.size, sha256=shipped.sha256, runtime="tensorrt", built_with=stated,
            plan_size=len(data), plan_sha256=hashlib.sha256(data).hexdigest(), compression="zstd", os=("linux",),
            compute_capabilities=("9.0",), gpu=GPU, strip="zeros" if old else "plan",
            version_compatible=module == "tensorrt_lean",
        )  # fmt: skip
        engine = msgspec.structs.replace(engine, **(changes or {}))
        check = Golden(inputs={"x": ref("x.npy")}, outputs={"y": ref("y.npy")}, tolerance=1e-5)
        model = Model(name="m", onnx=ref("m.onnx"), engines=(engine,), golden=(check,) if golden else ())
        app = App(id="org.example.test", name="Test", version="1.0")
        write_manifest(str(self.root), Manifest(schema=1, app=app, models=(model,)))
        installed = installed or stated
        write_package(self.folder, module, installed, **faults)
        machine = Machine(
            os="linux",
            arch="x86_64",
            gpus=(Gpu(index=0, name=GPU, uuid=UUID, compute_capability="9.0", memory_total=80 << 30),),
            driver="580.159.04",
            cuda="13.0",
            runtimes=(InstalledRuntime(module=module, version=installed, cuda_major=12, folder=str(self.folder)),),
        )
        self.monkeypatch.setattr(provision, "detect", lambda **_: machine)
        return self.root

    def published(self, home: Path) -> list[str]:
        folder = home / "cache" / "engines"
        return [p.name for p in folder.iterdir()] if folder.exists() else []


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def place(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, library, monkeypatch)


@pytest.mark.parametrize(
    ("version", "module"),
    [((10, 16, 1, 11), "tensorrt"), ((10, 16, 1, 11), "tensorrt_lean"), ((8, 6, 0, 12), "tensorrt")],
)
def test_an_engine_is_refitted_checked_and_served(place: Place, version: tuple[int, ...], module: str) -> None:
    """With every weight of the model where the engine wants it, BatchNorms folded, and a hit the second time."""
    bundle = place.build(version, module=module)
    with ensure_engine(bundle, "m") as engine:
        assert (engine.hit, engine.runtime, engine.target) == (False, "tensorrt", "cuda:0")
        wanted = engine_weights(place.arrays, "tmp_weight" if version < (10, 0) else "tmp_refittable_weight")
        found = FakeTensorRt().engine(engine.path.read_bytes()).values
        assert set(found) == set(wanted)
        for name, array in wanted.items():
            assert np.allclose(np.frombuffer(found[name], np.float32), array.ravel(), rtol=1e-6), name
    with ensure_engine(bundle, "m") as again:
        assert again.hit


@pytest.mark.parametrize(
    ("build", "env", "kind", "words"),
    [
        ({"deserialise_error": STUB_ERROR}, {}, PlanRefused, "version-compatible flag"),
        ({"more": {"left": ("FLOAT", 1)}}, {}, WeightsUncovered, "left"),
        ({"no_run": 1}, {}, RefitError, "did not run on the check input"),
        ({"no_serialise": 1}, {}, RefitError, "out of memory"),
        ({"no_runtime": 1}, {}, DeviceFailed, "CUDA initialization failure"),
        ({}, {"FAKE_CUDA_FAIL": "cuInit"}, DeviceFailed, "CUDA_ERROR_NO_DEVICE"),
        ({}, {"FAKE_CUDA_FREE": "1000"}, GpuMemoryShort, f"GPU {UUID} has 1000 B of memory"),
    ],
)
def test_what_fails_in_the_worker_is_told_and_nothing_published(
    place: Place, home: Path, build: dict[str, Any], env: dict[str, str], kind: type[RefitAgentError], words: str
) -> None:
    """The error crosses the process boundary with its class."""
    for name, value in env.items():
        place.monkeypatch.setenv(name, value)
    bundle = place.build(**build)
    with pytest.raises(kind, match=words):
        ensure_engine(bundle, "m")
    assert place.published(home) == []


def test_an_engine_that_computes_something_else_is_not_served(place: Place, home: Path) -> None:
    """The golden run is on the written file: a refit that said it had succeeded does not count."""
    bundle = place.build()
    np.save(bundle / "y.npy", X * 3)
    document = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    ref = file_ref(str(bundle), "y.npy")
    document["models"][0]["golden"][0]["outputs"]["y"] = {"path": "y.npy", "size": ref.size, "sha256": ref.sha256}
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(document))
    with pytest.raises(GoldenMismatch):
        ensure_engine(bundle, "m")
    assert place.published(home) == []


def test_a_machine_whose_driver_is_gone_does_not_crash_the_worker(place: Place, home: Path, tmp_path: Path) -> None:
    """The GPU fell away after detection: an error in words, and no segmentation fault of a Runtime without a driver."""
    bundle = place.build()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "libcuda.so.1").write_text("no library")
    place.monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "broken"))
    with pytest.raises(DeviceFailed, match="there is no NVIDIA driver"):
        ensure_engine(bundle, "m")
    assert place.published(home) == []
