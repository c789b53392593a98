"""Whether an engine could ever be chosen: against selection itself, on machines that nobody made for it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit_agent.authoring.selectable import never_fits, outranked_by, same_conditions
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.manifest import App, Engine, FileRef, Manifest, Model
from refit_agent.selection import select

HASH = "0" * 64
CCS = ["7.5", "8.0", "8.6", "8.9", "9.0", "12.0", "13.0"]
NAMES = ["NVIDIA A10", "NVIDIA H100"]
TRT = ["8.6.0.12", "8.6.1.6", "10.0.1.6", "10.16.1.11", "11.4.0.106"]
LEAN = FileRef(path="lean.so", size=1, sha256=HASH)


def engine(**fields: Any) -> Engine:
    given_ = {"runtime": "tensorrt", "built_with": "10.0.1.6", "os": ("linux",), "compute_capabilities": ("8.9",)}
    return Engine(**{"path": "e", "size": 1, "sha256": HASH, "plan_size": 1, **given_, **fields})


engines = st.builds(
    engine,
    path=st.uuids().map(str),
    built_with=st.sampled_from(TRT),
    version_compatible=st.booleans(),
    os=st.sampled_from([("linux",), ("windows",), ("linux", "windows")]),
    compute_capabilities=st.lists(st.sampled_from(CCS), max_size=3, min_size=1, unique=True).map(tuple),
    min_compute_capability=st.sampled_from([None, "8.0", "9.0"]),
    hardware_compatibility=st.sampled_from(["none", "same-compute-capability", "ampere-plus"]),
    gpu=st.sampled_from([None, *NAMES]),
    min_driver=st.sampled_from([None, "525.60.13", "580.200"]),
    profile=st.sampled_from([None, None, "big"]),
    lean_runtime=st.sampled_from([None, None, LEAN]),
)
machines = st.builds(
    lambda system, names, driver, runtimes: Machine(
        os=system,
        arch="x86_64",
        gpus=tuple(
            Gpu(index=i, name=name, uuid=f"GPU-{i}", compute_capability=cc) for i, (name, cc) in enumerate(names)
        ),
        driver=driver,
        runtimes=tuple(runtimes),
    ),
    st.sampled_from(["linux", "windows"]),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(CCS)), min_size=1, max_size=2),
    st.sampled_from(["470.1", "535.104", "590.1"]),
    st.lists(
        st.builds(
            InstalledRuntime,
            module=st.sampled_from(["tensorrt_lean", "tensorrt"]),
            version=st.sampled_from([*TRT, "12.0.0"]),
        ),
        min_size=1,
        max_size=3,
    ),
)


def candidates(some: list[Engine], machine: Machine, profile: str | None) -> list[int]:
    anchor = engine(path="anchor", runtime="onnxruntime", built_with="1.0", os=(), profile="big")
    model = Model(name="m", onnx=LEAN, engines=(*some, anchor))
    manifest = Manifest(schema=1, app=App(id="a.b", name="n", version="1"), models=(model,))
    return [c.number for c in select(manifest, model, profile, machine).candidates]


@settings(max_examples=400, deadline=None)
@given(st.lists(engines, min_size=2, max_size=4), st.lists(machines, min_size=1, max_size=8))
def test_what_is_outranked_is_first_nowhere(some: list[Engine], tried: list[Machine]) -> None:
    """On no machine at all does selection take it first, whatever GPUs and runtimes that has."""
    hidden = [number for number in range(len(some)) if outranked_by(some, number) is not None]
    for machine in tried:
        found = candidates(some, machine, "big")
        assert not found or found[0] not in hidden


@settings(max_examples=200, deadline=None)
@given(engines, st.lists(machines, min_size=1, max_size=20))
def test_what_never_fits_is_a_candidate_nowhere(one: Engine, tried: list[Machine]) -> None:
    """And alone in a model no engine is outranked."""
    assert outranked_by([one], 0) is None
    if never_fits(one) and len(one.compute_capabilities) == 1:
        assert not any(candidates([one], machine, "big")[:1] == [0] for machine in tried)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"runtime": "tensorrt-rtx", "built_with": "1.7.1.116", "compute_capabilities": ("8.9", "9.0")}, "has 9.0"),
        ({"runtime": "tensorrt-rtx", "built_with": "1.7.1.116", "compute_capabilities": ("8.9",)}, ""),
        (
            {
                "runtime": "tensorrt-rtx",
                "built_with": "1.7.1.116",
                "compute_capabilities": (),
                "min_compute_capability": "8.0",
                "hardware_compatibility": "ampere-plus",
            },
            "",
        ),
        ({"runtime": "onnxruntime", "built_with": "1.31.1", "os": ()}, ""),
        ({"compute_capabilities": ("7.5", "12.1")}, ""),
        ({"version_compatible": True, "built_with": "9.2.0.5"}, ""),
        ({"built_with": "8.6"}, "for that version alone"),
    ],
)
def test_never_fits(fields: dict[str, Any], says: str) -> None:
    """In selection's own words; each compute capability that is named must be good for something."""
    reason = never_fits(engine(**fields))
    assert says in reason
    assert bool(reason) == bool(says)


def test_order_decides_between_equals() -> None:
    """Of two entries for the same machines the first is taken; a plan for the lean runtime alone still has its own."""
    exact, compatible = engine(path="exact"), engine(path="compatible", version_compatible=True)
    assert outranked_by([exact, compatible], 1) is None
    assert outranked_by([compatible, exact], 1) == compatible
    narrow, wide = engine(path="narrow"), engine(path="wide", compute_capabilities=("8.9", "8.6"))
    assert outranked_by([wide, narrow], 1) == wide
    assert outranked_by([narrow, wide], 1) is None
    assert outranked_by([engine(profile="a"), engine(profile="b")], 1) is None
    assert outranked_by([engine(), engine(profile="b")], 1) == engine()


def test_an_ampere_plan_is_hidden_by_nothing_that_lists_gpus() -> None:
    """There will be a GPU that no list has."""
    plus = engine(compute_capabilities=(), min_compute_capability="8.0", hardware_compatibility="ampere-plus")
    known = engine(compute_capabilities=("8.0", "8.6", "8.7", "8.8", "8.9", "9.0", "10.0", "10.1", "10.3", "11.0", "12.0", "12.1"))  # fmt: skip
    assert outranked_by([known, plus], 1) is None
    assert outranked_by([plus, known], 0) is None and outranked_by([plus, known], 1) is None
    assert outranked_by([plus, plus], 1) == plus


def test_same_conditions_ignore_what_is_for_people() -> None:
    """Order of lists, precision and tolerance make no difference to selection."""
    one = engine(os=("linux", "windows"), compute_capabilities=("8.6", "8.9"), precision="fp16", tolerance=0.1)
    assert same_conditions(one, engine(os=("windows", "linux"), compute_capabilities=("8.9", "8.6")))
    for fields in ({"gpu": "x"}, {"profile": "p"}, {"built_with": "10.0.1.7"}, {"min_driver": "1.0"}):
        assert not same_conditions(engine(), engine(**fields))


def test_a_graph_that_older_runtimes_run_too_hides_the_others() -> None:
    """It fits wherever they do, and the newer goes first."""
    made = engine(path="new", runtime="onnxruntime", built_with="1.32.0", min_runtime="1.18", os=())
    plain = engine(path="old", runtime="onnxruntime", built_with="1.20.0", os=())
    assert outranked_by([plain, made], 0) == made and outranked_by([plain, made], 1) is None
    assert not same_conditions(made, engine(path="new", runtime="onnxruntime", built_with="1.32.0", os=()))
    assert not never_fits(made)
    # Nor is it hidden by one of its own release that the users of an older ONNX Runtime cannot have.
    assert outranked_by([engine(runtime="onnxruntime", built_with="1.32.0", os=()), made], 1) is None


def test_every_pair_of_cpu_engines() -> None:
    """The newer ONNX Runtime's graph goes first, and the older one serves who has the older one alone."""
    made = [engine(path=v, runtime="onnxruntime", built_with=v, os=()) for v in ("1.18.0", "1.20.0", "1.20.1")]
    for old, new in itertools.combinations(made, 2):
        assert outranked_by([old, new], 1) is None
        hidden = outranked_by([old, new], 0)
        # Within a release the older graph needs no older runtime.
        assert (hidden is not None) == (old.built_with == "1.20.0")


def test_a_newer_lean_runtime_may_drop_the_older_plan() -> None:
    """TensorRT 11 loads no plans of 8.6: there the other one is first, though a better place is kept for the old one."""
    old = engine(path="old", built_with="8.6.1.6", version_compatible=True, hardware_compatibility="same-compute-capability")  # fmt: skip
    new = engine(path="new", built_with="10.16.1.11", version_compatible=True)
    assert outranked_by([old, new], 1) is None
