"""`select` on a table of machines, one rule at a time."""

from __future__ import annotations

from typing import Any

import pytest

from refit_agent.errors import UnknownProfile, UnknownTarget
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.manifest import App, Engine, FileRef, Manifest, Model, Plan
from refit_agent.selection import Selection, no_match_detail, select

HASH = "0" * 64
H100 = "NVIDIA H100 80GB HBM3"
A10 = "NVIDIA A10"


def engine(**fields: Any) -> Engine:
    base: dict[str, Any] = {
        "path": "e.plan",
        "size": 1,
        "sha256": HASH,
        "plan_size": 1,
        "runtime": "tensorrt",
        "built_with": "10.16.1.11",
        "version_compatible": True,
        "os": ("linux",),
        "compute_capabilities": ("9.0",),
    }
    if fields.get("runtime") == "onnxruntime":
        base |= {"built_with": "1.20.0", "version_compatible": False, "os": (), "compute_capabilities": ()}
    return Engine(**(base | fields))


def model(*engines: Engine, **fields: Any) -> Model:
    return Model(name="m", onnx=FileRef(path="m.onnx", size=1, sha256=HASH), engines=engines, **fields)


def gpu(index: int = 0, name: str = H100, cc: str = "9.0", memory: int = 80 << 30, **fields: Any) -> Gpu:
    return Gpu(
        index=index, name=name, uuid=f"GPU-{index}-{name[-4:]}", compute_capability=cc, memory_total=memory, **fields
    )


LEAN11 = InstalledRuntime(module="tensorrt_lean", version="11.4.0.106", cuda_major=13)
LEAN10 = InstalledRuntime(module="tensorrt_lean", version="10.16.1.11", cuda_major=12, folder="/opt/trt10")
FULL86 = InstalledRuntime(module="tensorrt", version="8.6.0")
RTX17 = InstalledRuntime(module="tensorrt_rtx", version="1.7.1.116", cuda_major=12)
ORT = InstalledRuntime(module="onnxruntime", version="1.31.1")
ALL = (LEAN11, LEAN10, FULL86, RTX17, ORT)


def machine(*gpus: Gpu, **fields: Any) -> Machine:
    base: dict[str, Any] = {"os": "linux", "arch": "x86_64", "gpus": gpus, "driver": "580.159.04", "runtimes": ALL}
    if not gpus:
        base |= {"driver": "", "no_gpu_reason": "no NVIDIA driver: libnvidia-ml.so.1 was not found"}
    return Machine(**(base | fields))


def run(m: Model, on: Machine, profile: str | None = None, target: str | None = None) -> Selection:
    manifest = Manifest(schema=1, app=App(id="com.example.app", name="App", version="1"), models=(m,))
    return select(manifest, m, profile, on, target)


def order(selection: Selection) -> list[tuple[int, str]]:
    return [(c.number, c.target) for c in selection.candidates]


def codes(selection: Selection) -> list[tuple[int, str, str]]:
    return [(r.number, r.target, r.code) for r in selection.refusals]


CPU = engine(runtime="onnxruntime", path="cpu.onnx")
AMPERE = engine(hardware_compatibility="ampere-plus", compute_capabilities=(), min_compute_capability="8.0")


def test_tiers_come_in_their_order_whatever_the_manifest_says() -> None:
    tiers = [
        CPU,
        engine(runtime="tensorrt-rtx", built_with="1.7.1.116", compute_capabilities=("8.6",)),
        AMPERE,
        engine(compute_capabilities=("8.6",)),
        engine(compute_capabilities=("8.6",), hardware_compatibility="same-compute-capability", gpu="NVIDIA RTX A6000"),
        engine(compute_capabilities=("8.6",), gpu=A10),
    ]
    result = run(model(*tiers), machine(gpu(name=A10, cc="8.6")))
    assert [c.tier for c in result.candidates] == [
        "this-gpu",
        "same-compute-capability",
        "same-sm-unpromised",
        "ampere-plus",
        "rtx",
        "cpu",
    ]
    assert [c.needs_check for c in result.candidates] == [False, False, True, False, False, False]
    assert result.refusals == ()
    assert [c.runtime.module for c in result.candidates][-2:] == ["tensorrt_rtx", "onnxruntime"]
    assert result.candidates[-1].target == "cpu" and result.candidates[-1].gpu is None


def test_no_gpu_leaves_the_cpu_and_says_why() -> None:
    result = run(model(engine(), CPU), machine())
    assert order(result) == [(1, "cpu")]
    assert codes(result) == [(0, "", "no-gpu")]
    assert "libnvidia-ml.so.1 was not found" in result.refusals[0].reason


def test_of_two_gpus_the_stronger_comes_first_with_all_its_engines() -> None:
    weak, strong = gpu(0, A10, "8.6", 24 << 30), gpu(1)
    result = run(model(engine(compute_capabilities=("8.6",), gpu=A10), AMPERE, engine(gpu=H100)), machine(weak, strong))
    assert order(result) == [(2, "cuda:1"), (1, "cuda:1"), (0, "cuda:0"), (1, "cuda:0")]
    assert codes(result) == [(0, "cuda:1", "wrong-compute-capability"), (2, "cuda:0", "wrong-compute-capability")]
    assert result.refusals[1].reason == "built for compute capability 9.0; this GPU, NVIDIA A10, has 8.6"


def test_of_equal_gpus_more_memory_then_the_lower_index_comes_first() -> None:
    result = run(model(engine()), machine(gpu(0, memory=1), gpu(1, memory=2), gpu(2, memory=2)))
    assert [c.target for c in result.candidates] == ["cuda:1", "cuda:2", "cuda:0"]


def test_a_gpu_newer_than_every_engine_gets_the_portable_ones_only() -> None:
    rtx = engine(
        runtime="tensorrt-rtx",
        built_with="1.7.1",
        hardware_compatibility="ampere-plus",
        min_compute_capability="8.0",
        compute_capabilities=(),
    )
    result = run(model(engine(), AMPERE, rtx, CPU), machine(gpu(name="NVIDIA Next", cc="13.0")))
    assert order(result) == [(1, "cuda:0"), (2, "cuda:0"), (3, "cpu")]
    assert "has 13.0" in result.refusals[0].reason


def test_a_mig_slice_is_not_the_gpu_that_the_plan_was_built_on() -> None:
    part = gpu(name=H100 + " MIG 1g.10gb", mig=True, parent_uuid="GPU-parent")
    result = run(model(engine(gpu=H100)), machine(part))
    assert [(c.tier, c.needs_check) for c in result.candidates] == [("same-sm-unpromised", True)]


def test_the_makers_name_may_be_missing() -> None:
    result = run(model(engine(gpu="H100  80GB hbm3")), machine(gpu()))
    assert result.candidates[0].tier == "this-gpu"


def test_this_gpu_needs_the_compute_capability_too() -> None:
    result = run(model(engine(gpu=A10, compute_capabilities=("9.0",))), machine(gpu(name=A10, cc="8.6")))
    assert codes(result) == [(0, "cuda:0", "wrong-compute-capability")]


def test_wrong_os() -> None:
    result = run(model(engine(os=("windows",)), engine(os=("linux", "windows"))), machine(gpu()))
    assert order(result) == [(1, "cuda:0")]
    assert codes(result) == [(0, "", "wrong-os")]
    assert result.refusals[0].reason == "built for windows; this machine runs linux"


def test_an_ampere_plus_plan_never_runs_below_8_0() -> None:
    turing = engine(hardware_compatibility="ampere-plus", compute_capabilities=(), min_compute_capability="7.5")
    result = run(model(turing), machine(gpu(cc="7.5")))
    assert codes(result) == [(0, "cuda:0", "wrong-compute-capability")]
    assert run(model(turing), machine(gpu(cc="10.0"))).candidates  # 10 is more than 8, not less than "8"


# ------------------------------------------------------------------ drivers


def test_an_old_driver_takes_the_older_cuda_runtime() -> None:
    result = run(model(engine()), machine(gpu(), driver="570.10"))
    assert result.candidates[0].runtime == LEAN10


def test_a_driver_too_old_for_cuda_13_says_what_to_do() -> None:
    result = run(model(engine()), machine(gpu(), driver="570.10", runtimes=(LEAN11,)))
    assert codes(result) == [(0, "cuda:0", "driver-too-old")]
    reason = result.refusals[0].reason
    assert "570.10" in reason and "580" in reason
    assert "update the NVIDIA driver or install the cu12 extra" in reason


def test_a_driver_too_old_for_cuda_12_is_not_sent_to_the_cu12_extra() -> None:
    for runtime in (LEAN10, LEAN11):
        result = run(model(engine()), machine(gpu(), driver="470.256", runtimes=(runtime,)))
        assert codes(result) == [(0, "cuda:0", "driver-too-old")]
        assert "cu12 extra" not in result.refusals[0].reason


def test_min_driver_is_compared_by_number() -> None:
    assert run(model(engine(min_driver="99.5")), machine(gpu())).candidates
    result = run(model(engine(min_driver="580.200")), machine(gpu()))
    assert codes(result) == [(0, "cuda:0", "driver-too-old")]
    assert codes(run(model(engine(min_driver="5.0")), machine(gpu(), driver=""))) == [(0, "cuda:0", "driver-too-old")]


# ------------------------------------------------------------------ runtimes


@pytest.mark.parametrize(
    ("built", "leans", "taken"),
    [
        ("10.0.0.6", ["11.4.0.106", "10.16.1.11"], "11.4.0.106"),
        ("11.4.0.106", ["11.4.0.106", "10.16.1.11"], "11.4.0.106"),
        ("10.16.1.11", ["10.16.1.11"], "10.16.1.11"),
        ("8.6.0.12", ["11.4.0.106", "10.16.1.11"], "10.16.1.11"),
        ("8.6", ["8.6.1"], "8.6.1"),
        ("8.6.1.6", ["8.6.1"], "8.6.1"),
        ("8.6.0.12", ["11.4.0.106"], None),
        ("8.5.3", ["10.16.1.11"], None),
        ("8.5.3", ["8.6.1"], None),
        ("8.6.1", ["9.3.0"], None),
        ("9.2.0", ["9.3.0"], "9.3.0"),
        ("10.17.0", ["10.16.1.11"], None),
        ("11.5.0", ["11.4.0.106"], None),
        ("10.16.1.11", ["7.2.3"], None),
        ("10.16.1.11", [""], None),
    ],
)
def test_which_lean_loads_a_version_compatible_plan(built: str, leans: list[str], taken: str | None) -> None:
    runtimes = tuple(InstalledRuntime(module="tensorrt_lean", version=v) for v in leans)
    result = run(model(engine(built_with=built)), machine(gpu(), runtimes=runtimes))
    if taken is None:
        assert codes(result) == [(0, "cuda:0", "runtime-version")]
        assert built in result.refusals[0].reason
    else:
        assert result.candidates[0].runtime.version == taken


def test_no_runtime_at_all() -> None:
    result = run(model(engine(), engine(version_compatible=False), CPU), machine(gpu(), runtimes=()))
    assert [code for _, _, code in codes(result)] == ["runtime-missing"] * 3
    assert "pip install 'refit-agent[cpu]'" in result.refusals[2].reason


@pytest.mark.parametrize(
    ("built", "fits"), [("8.6.0", True), ("8.6.0.12", True), ("8.6.1", False), ("8.6", False), ("10.16.1.11", False)]
)
def test_an_exact_plan_loads_on_tensorrt_of_its_version_only(built: str, fits: bool) -> None:
    result = run(model(engine(built_with=built, version_compatible=False)), machine(gpu()))
    if fits:
        assert result.candidates[0].runtime == FULL86
    else:
        assert codes(result) == [(0, "cuda:0", "runtime-version")]


def test_a_version_compatible_plan_may_fall_back_to_tensorrt_of_its_version() -> None:
    on = machine(gpu(), runtimes=(LEAN11, FULL86))
    assert run(model(engine(built_with="8.6.0.12")), on).candidates[0].runtime == FULL86


def test_a_lean_runtime_in_the_bundle_bridges_the_gap() -> None:
    lean = FileRef(path="libnvinfer_lean.so.8", size=1, sha256=HASH)
    result = run(model(engine(built_with="8.6.0.12", lean_runtime=lean)), machine(gpu(), runtimes=(LEAN11,)))
    assert result.candidates[0].runtime == LEAN11
    assert "lean runtime of TensorRT 8.6.0.12 in the bundle" in result.candidates[0].reason
    newer = run(model(engine(built_with="12.0.0", lean_runtime=lean)), machine(gpu(), runtimes=(LEAN11,)))
    assert codes(newer) == [(0, "cuda:0", "runtime-version")]


@pytest.mark.parametrize(
    ("cc", "code"),
    [
        ("7.5", "gpu-unsupported-by-runtime"),
        ("8.0", ""),
        ("8.7", "gpu-unsupported-by-runtime"),
        ("8.9", ""),
        ("9.0", "gpu-unsupported-by-runtime"),
        ("10.0", "gpu-unsupported-by-runtime"),
        ("12.1", ""),
        ("13.0", ""),
    ],
)
def test_gpus_of_tensorrt_rtx(cc: str, code: str) -> None:
    rtx = engine(runtime="tensorrt-rtx", built_with="1.7.1.116", compute_capabilities=(cc,))
    result = run(model(rtx), machine(gpu(name="NVIDIA Some", cc=cc)))
    assert [c for _, _, c in codes(result)] == ([code] if code else [])
    assert len(result.candidates) == (0 if code else 1)


def test_versions_and_architectures_of_tensorrt_rtx() -> None:
    other = engine(runtime="tensorrt-rtx", built_with="1.6.0", compute_capabilities=("8.9",))
    foreign = engine(runtime="tensorrt-rtx", built_with="1.7.1", compute_capabilities=("12.0",))
    result = run(model(other, foreign), machine(gpu(cc="8.9")))
    assert [c for _, _, c in codes(result)] == ["runtime-version", "wrong-compute-capability"]


@pytest.mark.parametrize(("version", "fits"), [("1.20.0", True), ("1.20", True), ("1.19.9", False), ("1.31.1", True)])
def test_onnxruntime_must_not_be_older(version: str, fits: bool) -> None:
    ort = InstalledRuntime(module="onnxruntime", version=version)
    result = run(model(engine(runtime="onnxruntime", built_with="1.20.3")), machine(runtimes=(ort,)))
    assert bool(result.candidates) is fits
    if not fits:
        assert codes(result) == [(0, "cpu", "runtime-version")]


@pytest.mark.parametrize(
    ("version", "fits", "load"),
    [("1.18.0", False, False), ("1.18.1", True, True), ("1.31.1", True, True), ("1.40.0", True, False), ("1.41.0", True, False)],
)  # fmt: skip
def test_a_graph_of_standard_operators_runs_on_older_ones(version: str, fits: bool, load: bool) -> None:
    """The author's ONNX Runtime may be years newer than the user's, which then has to show that it loads the model."""
    ort = InstalledRuntime(module="onnxruntime", version=version)
    graph = engine(runtime="onnxruntime", built_with="1.40.1", min_runtime="1.18.1")
    result = run(model(graph), machine(runtimes=(ort,)))
    assert [candidate.needs_load for candidate in result.candidates] == [load] * fits
    if not fits:
        assert "the graph is for ONNX Runtime 1.18.1 and newer" in result.refusals[0].reason


# ------------------------------------------------------------------ profiles


def test_profiles() -> None:
    small, large, any_ = engine(profile="small"), engine(profile="large"), engine()
    on = machine(gpu())
    assert run(model(any_), on).profile is None
    assert run(model(small, any_), on).profile == "small"
    assert run(model(small, large, default_profile="large"), on).profile == "large"
    assert run(model(small, engine(profile="default")), on).profile == "default"
    chosen = run(model(small, large, any_), on, profile="large")
    assert chosen.profile == "large"
    assert order(chosen) == [(1, "cuda:0"), (2, "cuda:0")]
    assert codes(chosen) == [(0, "", "other-profile")]


@pytest.mark.parametrize("asked", [None, "huge"])
def test_an_unknown_profile(asked: str | None) -> None:
    with pytest.raises(UnknownProfile) as caught:
        run(model(engine(profile="small"), engine(profile="large")), machine(gpu()), profile=asked)
    assert caught.value.facts["known"] == "small, large"
    assert "None" not in str(caught.value)


def test_a_profile_that_no_engine_names_is_unknown_though_one_fits_all() -> None:
    with pytest.raises(UnknownProfile, match="no named profile"):
        run(model(engine()), machine(gpu()), profile="x")


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [(0, "cuda:0"), (0, "cuda:1"), (1, "cpu")]),
        ("cpu", [(1, "cpu")]),
        ("gpu", [(0, "cuda:0"), (0, "cuda:1")]),
        ("cuda", [(0, "cuda:0"), (0, "cuda:1")]),
        ("cuda:1", [(0, "cuda:1")]),
        (gpu(1).uuid, [(0, "cuda:1")]),
    ],
)
def test_targets(target: str | None, expected: list[tuple[int, str]]) -> None:
    result = run(model(engine(), CPU), machine(gpu(0), gpu(1)), target=target)
    assert order(result) == expected
    assert len(result.candidates) + len(result.refusals) >= 2
    assert {r.code for r in result.refusals} <= {"other-target"}


@pytest.mark.parametrize("target", ["cuda:2", "cuda:", "cuda:00", "tpu", "", "GPU-", "CPU"])
def test_an_unknown_target(target: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        run(model(engine()), machine(gpu(0)), target=target)
    assert "cuda:0" in str(caught.value) and "cpu" in str(caught.value)


def test_a_gpu_target_without_a_gpu_carries_the_reason() -> None:
    with pytest.raises(UnknownTarget) as caught:
        run(model(engine()), machine(), target="cuda:0")
    assert "libnvidia-ml.so.1" in caught.value.hint
    assert codes(run(model(engine(), CPU), machine(), target="gpu")) == [(0, "", "no-gpu"), (1, "", "other-target")]
    for target in ("gpu", "cuda"):
        (refusal,) = run(model(CPU), machine(), target=target).refusals
        assert refusal.reason.startswith(f"only {target} was asked for, and no GPU can be used here: ")
        assert "libnvidia-ml.so.1" in refusal.reason and "libnvidia-ml.so.1" in refusal.need
    (refusal,) = run(model(CPU), machine(gpu()), target="gpu").refusals
    assert refusal.reason == "only gpu was asked for"
    (refusal,) = run(model(engine()), machine(), target="cpu").refusals
    assert refusal.reason == "only cpu was asked for"


# ------------------------------------------------------------------ the sentence


def test_no_match_detail_counts_engines() -> None:
    engines = [engine(compute_capabilities=("8.6",))] * 2 + [CPU]
    result = run(model(*engines), machine(gpu(0), gpu(1), runtimes=(LEAN11,)))
    assert no_match_detail(result) == (
        "2 need compute capability 8.6, 1 needs onnxruntime (pip install 'refit-agent[cpu]')"
    )


def test_no_match_detail_tells_what_can_be_changed_soonest() -> None:
    result = run(
        model(engine(min_driver="590.0")), machine(gpu(0, A10, "8.6"), gpu(1))
    )  # cuda:0 lacks the capability, cuda:1 only the driver
    assert no_match_detail(result) == "it needs NVIDIA driver 590.0 or newer (update the NVIDIA driver)"


def test_no_match_detail_stays_short() -> None:
    engines = [engine(compute_capabilities=(f"7.{i}",)) for i in range(10)]
    detail = no_match_detail(run(model(*engines), machine(gpu())))
    assert detail.endswith("6 need something else") and detail.count(",") == 4


def test_no_match_detail_of_nothing() -> None:
    assert no_match_detail(run(model(), machine(gpu()))) == "the bundle holds no engine for it"
    assert no_match_detail(run(model(engine()), machine(gpu()))) == ""
    # refused on one GPU, but a candidate on the other
    assert no_match_detail(run(model(engine()), machine(gpu(0), gpu(1, A10, "8.6")))) == ""


# ---------------------------------------------------------------- TensorRT-LLM

FULL10 = InstalledRuntime(module="tensorrt", version="10.16.1.11", cuda_major=12)


def llm(ranks: int = 2, **fields: Any) -> Engine:
    """An engine of TensorRT-LLM for so many GPUs."""
    further = tuple(Plan(path=f"r{i}", size=1, sha256=HASH, plan_size=1) for i in range(1, ranks))
    config = FileRef(path="config.json", size=1, sha256=HASH)
    return engine(**({"version_compatible": False, "gpu": H100, "config": config, "ranks": further} | fields))


@pytest.mark.parametrize(
    ("found", "count"),
    [
        ([gpu(0)], "1"),
        ([gpu(0), gpu(1, "NVIDIA H200")], "1"),
        ([gpu(0), gpu(1, cc="9.1")], "1"),
        ([gpu(0), gpu(1, mig=True)], "1"),
        ([gpu(0, mig=True), gpu(1, mig=True)], "0"),
    ],
)
def test_plans_for_two_gpus_need_two_of_one_model(found: list[Gpu], count: str) -> None:
    result = run(model(llm(), CPU), machine(*found, runtimes=(FULL10, ORT)), target="cuda:0")
    assert order(result) == []
    refusal = result.refusals[0]
    assert refusal.code == "too-few-gpus"
    assert refusal.reason.endswith(f"from cuda:0 on this machine has {count} {H100} (compute capability 9.0)")
    assert no_match_detail(result).startswith("1 needs 2 GPUs of one model")


def test_the_first_of_the_gpus_is_the_target_and_the_others_come_behind_it() -> None:
    here = machine(gpu(0, A10, "8.6"), gpu(1), gpu(2), gpu(3), runtimes=(FULL10,))
    result = run(model(llm()), here)
    assert order(result) == [(0, "cuda:1"), (0, "cuda:2")]
    assert codes(result) == [(0, "cuda:0", "wrong-compute-capability"), (0, "cuda:3", "too-few-gpus")]
    assert order(run(model(llm()), here, target="cuda:2")) == [(0, "cuda:2")]


def test_older_drivers_leave_the_maker_s_name_away_here_too() -> None:
    here = machine(gpu(0, H100), gpu(1, "H100 80GB  HBM3"), runtimes=(FULL10,))
    assert order(run(model(llm()), here)) == [(0, "cuda:0")]


def test_an_engine_that_cannot_be_tried_is_not_tried_where_nobody_promises_that_it_works() -> None:
    other = machine(gpu(0, "NVIDIA H200"), runtimes=(FULL10,))
    result = run(model(llm(1)), other)
    assert codes(result) == [(0, "cuda:0", "other-gpu-model")]
    assert result.refusals[0].reason.startswith(f"built on {H100}; NVIDIA H200 is another GPU of the same compute")
    promised = llm(1, hardware_compatibility="same-compute-capability")
    assert order(run(model(promised), other)) == [(0, "cuda:0")]
