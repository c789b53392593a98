"""What holds for every selection: against an oracle written apart from the code, and under reordering."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from properties import thorough
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.manifest import App, Engine, FileRef, Manifest, Model, Plan
from refit_agent.selection import Candidate, Selection, no_match_detail, select
from refit_agent.selection.fit import Fit, cpu_fit, gpu_fit, os_misfit

HASH = "0" * 64
CCS = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "13.0"]
NAMES = ["NVIDIA A10", "NVIDIA H100", "NVIDIA H200"]
TRT = ["8.5.3", "8.6", "8.6.0", "8.6.0.12", "8.6.1", "9.2.0", "10.0.1", "10.16.1.11", "11.0.0", "11.4.0.106", "12.0.0"]
TIERS = ["this-gpu", "same-compute-capability", "same-sm-unpromised", "ampere-plus", "rtx", "cpu"]
LEAN = FileRef(path="lean.so", size=1, sha256=HASH)
CONFIG = FileRef(path="config.json", size=1, sha256=HASH)
RANK = Plan(path="r", size=1, sha256=HASH, plan_size=1)

engines = st.builds(
    lambda runtime, trt, rtx, ort, oldest, more, **rest: Engine(
        path="e",
        size=1,
        sha256=HASH,
        plan_size=1,
        runtime=runtime,
        built_with={"tensorrt": trt, "tensorrt-rtx": rtx, "onnxruntime": ort}[runtime],
        min_runtime=oldest if runtime == "onnxruntime" else None,
        # An engine of TensorRT-LLM now and then, for one GPU or more.
        config=CONFIG if more is not None and runtime == "tensorrt" else None,
        ranks=(RANK,) * more if more is not None and runtime == "tensorrt" else (),
        **rest,
    ),
    runtime=st.sampled_from(["tensorrt", "tensorrt", "tensorrt-rtx", "onnxruntime"]),
    trt=st.sampled_from(TRT),
    rtx=st.sampled_from(["1.7.1.116", "1.6.0"]),
    ort=st.sampled_from(["1.18.0", "1.31.1"]),
    oldest=st.sampled_from([None, "1.18", "1.31"]),
    more=st.sampled_from([None, None, 0, 1, 2]),
    version_compatible=st.booleans(),
    os=st.sampled_from([(), ("linux",), ("windows",), ("linux", "windows")]),
    compute_capabilities=st.lists(st.sampled_from(CCS), max_size=2, unique=True).map(tuple),
    min_compute_capability=st.sampled_from([None, "7.5", "8.0", "9.0"]),
    hardware_compatibility=st.sampled_from(["none", "same-compute-capability", "ampere-plus"]),
    gpu=st.sampled_from([None, *NAMES]),
    min_driver=st.sampled_from([None, "525.60.13", "580.200"]),
    profile=st.sampled_from([None, "default", "big"]),
    lean_runtime=st.sampled_from([None, None, LEAN]),
)
runtimes = st.one_of(
    st.builds(
        InstalledRuntime,
        module=st.sampled_from(["tensorrt_lean", "tensorrt"]),
        version=st.sampled_from([*TRT, ""]),
        cuda_major=st.sampled_from([0, 12, 13]),
    ),
    st.builds(InstalledRuntime, module=st.just("tensorrt_rtx"), version=st.sampled_from(["1.7.1.116", "1.6.0"])),
    st.builds(InstalledRuntime, module=st.just("onnxruntime"), version=st.sampled_from(["1.18.1", "1.31.1"])),
)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    gpus = [
        Gpu(
            index=i,
            name=draw(st.sampled_from(NAMES)),
            uuid=f"GPU-{i}",
            compute_capability=draw(st.sampled_from(CCS) if i == 0 or draw(st.booleans()) else st.just("9.0")),
            memory_total=draw(st.sampled_from([1, 2])),
        )
        for i in range(draw(st.integers(0, 3)))
    ]
    return Machine(
        os=draw(st.sampled_from(["linux", "windows", "darwin"])),
        arch="x86_64",
        gpus=tuple(gpus),
        driver=draw(st.sampled_from(["470.1", "535.104", "580.159.04", "590.1"])) if gpus else "",
        runtimes=tuple(draw(st.lists(runtimes, max_size=4))),
    )


def chosen(some: list[Engine], machine: Machine, target: str | None = None) -> Selection:
    # A model that names "default" lets every draw of profiles resolve.
    anchor = Engine(
        path="anchor",
        size=1,
        sha256=HASH,
        plan_size=1,
        runtime="onnxruntime",
        built_with="99.0",
        profile="default",
    )
    model = Model(name="m", onnx=LEAN, engines=(*some, anchor), default_profile="default")
    manifest = Manifest(schema=1, app=App(id="a.b", name="n", version="1"), models=(model,))
    return select(manifest, model, None, machine, target)


def ints(text: str) -> list[int]:
    return [int(part) for part in text.split(".")] if text else []


def may(engine: Engine, gpu: Gpu | None, runtime: InstalledRuntime, machine: Machine) -> bool:
    """The rules again, from the brief's text, by means other than the code's."""
    if engine.os and machine.os not in engine.os:
        return False
    if engine.profile not in (None, "default"):
        return False
    b, r = ints(engine.built_with), ints(runtime.version)
    if engine.runtime == "onnxruntime":
        oldest = ints(engine.min_runtime) if engine.min_runtime else b
        return gpu is None and runtime.module == "onnxruntime" and r[:2] >= oldest[:2]
    if gpu is None:
        return False
    if engine.min_driver and ints(machine.driver) < ints(engine.min_driver):
        return False
    if ints(machine.driver)[0] < {0: 0, 12: 525, 13: 580}[runtime.cuda_major]:
        return False
    number = float(gpu.compute_capability)
    if engine.hardware_compatibility == "ampere-plus":
        if number < max(8.0, float(engine.min_compute_capability or 0)):
            return False
    elif gpu.compute_capability not in engine.compute_capabilities and not (
        engine.runtime == "tensorrt-rtx" and not engine.compute_capabilities and engine.min_compute_capability is None
    ):
        return False
    if engine.config is not None:
        if engine.hardware_compatibility == "none" and engine.gpu != gpu.name:
            return False
        twins = [
            g for g in machine.gpus[gpu.index :] if (g.name, g.compute_capability) == (gpu.name, gpu.compute_capability)
        ]
        if len(twins) <= len(engine.ranks):
            return False
    exact = len(b) >= 3 and len(r) >= 3 and all(x == y for x, y in zip(b, r, strict=False))
    if engine.runtime == "tensorrt-rtx":
        return runtime.module == "tensorrt_rtx" and exact and (number in (8.0, 8.6, 8.9) or number >= 12)
    if runtime.module == "tensorrt":
        return exact
    if runtime.module != "tensorrt_lean" or not engine.version_compatible or not r:
        return False
    padded_b, padded_r = list(itertools.zip_longest(b, r)), None
    for x, y in padded_b:
        if x is None or y is None:
            break
        if x != y:
            padded_r = x < y
            break
    if padded_r is False:
        return False
    if engine.lean_runtime is not None and r[0] >= 10:
        return True
    floor = {8: 8.6, 9: 8.6, 10: 8.6, 11: 10.0, 12: 10.0}[r[0]]
    return float(f"{b[0]}.{b[1]}") >= floor and (r[0] >= 10 or r[0] == b[0])


@thorough(400)
@given(st.lists(engines, max_size=6), machines())
def test_candidates_are_exactly_what_the_rules_allow(some: list[Engine], machine: Machine) -> None:
    result = chosen(some, machine)
    for candidate in result.candidates:
        assert may(candidate.engine, candidate.gpu, candidate.runtime, machine)
        assert candidate.needs_check == (candidate.tier == "same-sm-unpromised")
    taken = {(c.number, c.target) for c in result.candidates}
    refused = [(r.number, r.target) for r in result.refusals]
    assert len(refused) == len(set(refused)) and len(taken) == len(result.candidates)
    for number, engine in enumerate(some):
        targets: list[Gpu | None] = [None] if engine.runtime == "onnxruntime" else list(machine.gpus)
        for gpu in targets:
            name = "cpu" if gpu is None else f"cuda:{gpu.index}"
            possible = any(may(engine, gpu, runtime, machine) for runtime in machine.runtimes)
            assert ((number, name) in taken) is possible
            assert (((number, name) in refused) or ((number, "") in refused)) is not possible
        if not targets:
            assert (number, "") in refused
    assert all(r.reason and r.need for r in result.refusals)
    assert no_match_detail(result) != "" or len(taken) > 0


def rank(c: Candidate) -> tuple[Any, ...]:
    """The order that was promised, the manifest's place left out."""
    built = [*ints(c.engine.built_with), 0, 0, 0][:4]
    if c.gpu is None:
        return (1, 0.0, 0, 0, TIERS.index(c.tier), [-n for n in built])
    strength = (0, -float(c.gpu.compute_capability), -c.gpu.memory_total, c.gpu.index)
    return (*strength, TIERS.index(c.tier), [-n for n in built])


@thorough(300)
@given(st.lists(engines, max_size=7), machines(), st.randoms(use_true_random=False))
def test_the_manifests_order_decides_only_between_equals(some: list[Engine], machine: Machine, random: Any) -> None:
    labelled = [msgspec.structs.replace(e, path=f"e{i}") for i, e in enumerate(some)]
    first = chosen(labelled, machine)
    ranks = [(*rank(c), c.number) for c in first.candidates]
    assert ranks == sorted(ranks)

    shuffled = list(labelled)
    random.shuffle(shuffled)
    second = chosen(shuffled, machine)
    assert {(c.engine.path, c.target, c.tier, c.runtime) for c in first.candidates} == {
        (c.engine.path, c.target, c.tier, c.runtime) for c in second.candidates
    }
    assert [rank(c) for c in first.candidates] == [rank(c) for c in second.candidates]
    # Equals stand in the order of the manifest that they are in now; nothing else has moved.
    expected = sorted(first.candidates, key=lambda c: (*rank(c), _place(shuffled, c.engine.path)))
    assert [(c.engine.path, c.target) for c in second.candidates] == [(c.engine.path, c.target) for c in expected]


def _place(some: list[Engine], path: str) -> int:
    """Where the engine stands; behind all of them the one that `chosen` adds."""
    return next((i for i, engine in enumerate(some) if engine.path == path), len(some))


def said(selection: Selection) -> set[tuple[str, ...]]:
    """Everything that was said of the engines, without an order."""
    kept = {
        (c.engine.path, c.target, c.tier, c.runtime.module, c.runtime.version, c.reason) for c in selection.candidates
    }
    return kept | {(r.engine_path, r.target, r.code, r.reason, r.need) for r in selection.refusals}


@thorough(200)
@given(st.lists(engines, max_size=6), machines())
def test_no_candidate_is_one_that_its_own_rules_refuse(some: list[Engine], machine: Machine) -> None:
    """Asked one by one, the rules say of every candidate what the choice says of it."""
    for candidate in chosen(some, machine).candidates:
        assert os_misfit(candidate.engine, machine) is None
        assert candidate.engine.profile in (None, "default")
        gpu = candidate.gpu
        alone = cpu_fit(candidate.engine, machine) if gpu is None else gpu_fit(candidate.engine, gpu, machine)
        assert isinstance(alone, Fit)
        assert (alone.runtime, alone.tier, alone.reason) == (candidate.runtime, candidate.tier, candidate.reason)


@st.composite
def spread(draw: st.DrawFn) -> tuple[list[Engine], Machine]:
    """Engines for one to three GPUs, and a machine that has some of them."""
    kind = {"path": "e", "size": 1, "sha256": HASH, "plan_size": 1, "runtime": "tensorrt", "built_with": "10.16.1.11"}
    counts = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
    names = [draw(st.sampled_from(NAMES[1:])) for _ in range(draw(st.integers(1, 4)))]
    some = [
        Engine(**kind, compute_capabilities=("9.0",), gpu=NAMES[1], config=CONFIG, ranks=(RANK,) * count)  # type: ignore[arg-type]
        for count in counts
    ]
    gpus = tuple(
        Gpu(index=i, name=name, uuid=f"GPU-{i}", compute_capability="9.0", memory_total=2)
        for i, name in enumerate(names)
    )
    runtime = InstalledRuntime(module="tensorrt", version="10.16.1.11", cuda_major=13)
    return some, Machine(os="linux", arch="x86_64", gpus=gpus, driver="580.159.04", runtimes=(runtime,))


@thorough(200)
@given(st.one_of(st.tuples(st.lists(engines, max_size=5), machines()), spread()), st.randoms(use_true_random=False))
def test_the_order_in_which_the_driver_lists_its_gpus_changes_nothing(
    case: tuple[list[Engine], Machine], random: Any
) -> None:
    """What counts is each one's index, also for an engine that is spread over several of them."""
    some, machine = case
    labelled = [msgspec.structs.replace(e, path=f"e{i}") for i, e in enumerate(some)]
    listed = list(machine.gpus)
    random.shuffle(listed)
    one, other = chosen(labelled, machine), chosen(labelled, msgspec.structs.replace(machine, gpus=tuple(listed)))
    assert one.candidates == other.candidates
    assert said(one) == said(other)


@thorough(200)
@given(st.lists(engines.filter(lambda e: not e.ranks), max_size=5), machines(), st.permutations([0, 1, 2]))
def test_gpus_that_change_places_keep_their_engines(some: list[Engine], machine: Machine, order: list[int]) -> None:
    """With a card put in or CUDA_DEVICE_ORDER changed a GPU has another index; which engines it can have, in which
    order, it has from what it is. Only an engine for several of them needs neighbours."""
    labelled = [msgspec.structs.replace(e, path=f"e{i}") for i, e in enumerate(some)]
    places = sorted(range(len(machine.gpus)), key=order.__getitem__)
    moved = tuple(msgspec.structs.replace(machine.gpus[old], index=new) for new, old in enumerate(places))
    one, other = chosen(labelled, machine), chosen(labelled, msgspec.structs.replace(machine, gpus=moved))
    for gpu in machine.gpus:
        assert _engines_of(one, gpu.uuid) == _engines_of(other, gpu.uuid)
    strengths = [[rank(c)[1:3] for c in s.candidates if c.gpu is not None] for s in (one, other)]
    assert strengths[0] == strengths[1]


def _engines_of(selection: Selection, uuid: str) -> list[tuple[str, str]]:
    return [(c.engine.path, c.tier) for c in selection.candidates if c.gpu is not None and c.gpu.uuid == uuid]


@thorough(150)
@given(st.lists(engines, max_size=5), engines, machines())
def test_another_engine_never_changes_what_is_said_of_the_rest(
    some: list[Engine], extra: Engine, machine: Machine
) -> None:
    labelled = [msgspec.structs.replace(e, path=f"e{i}") for i, e in enumerate(some)]
    before = chosen(labelled, machine)
    after = chosen([*labelled, msgspec.structs.replace(extra, path="extra")], machine)

    def told(selection: Selection) -> list[tuple[str, str, str]]:
        kept = [(c.engine.path, c.target, c.reason) for c in selection.candidates]
        kept += [(r.engine_path, r.target, r.reason) for r in selection.refusals]
        return [entry for entry in kept if entry[0] not in ("extra", "anchor")]

    assert told(before) == told(after)


@thorough(150)
@given(st.lists(engines, max_size=5), machines(), st.sampled_from(["cpu", "gpu", "cuda"]))
def test_a_target_only_filters(some: list[Engine], machine: Machine, target: str) -> None:
    everything = chosen(some, machine).candidates
    wanted = [c for c in everything if (c.target == "cpu") == (target == "cpu")]
    assert list(chosen(some, machine, target).candidates) == wanted
