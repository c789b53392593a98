"""Golden data: inputs by seed, outputs by ONNX Runtime, and no data that would check nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bundles import SIZE, make_onnx
from plan_files import FACTS, one_model_bundle, tree, write_plan
from refit_agent.authoring.errors import GoldenImpossible, NameTaken
from refit_agent.authoring.golden_data import add_golden, clear_golden
from refit_agent.authoring.golden_inputs import ModelInput, Wish, make_inputs, others
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_engine import add_engine
from refit_agent.authoring.new_model import add_model
from refit_agent.bundle import Bundle
from refit_agent.digest import verify_file
from refit_agent.errors import BundleError, SettingInvalid, UnknownModel, UnknownProfile
from refit_agent.manifest import Golden


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_model_bundle(tmp_path / "bundle")


def _load(root: Path, golden: Golden) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle = Bundle.open(root, draft=True)
    for ref in (*golden.inputs.values(), *golden.outputs.values()):
        verify_file(bundle.locate(ref), ref)
    return tuple({n: np.load(root / r.path) for n, r in refs.items()} for refs in (golden.inputs, golden.outputs))  # type: ignore[return-value]


def _model(root: Path, tmp_path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[Any]]], outputs: list[str]) -> Path:  # fmt: skip
    """A bundle of a model made of these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "own.onnx").write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    init_bundle(root, app_id="a.b", name="n", version="1")
    add_model(root, "own", tmp_path / "own.onnx")
    return root


FLOAT = TensorProto.FLOAT


# ---------------------------------------------------------------- what is stored


def test_outputs_are_onnx_runtimes(root: Path) -> None:
    """For the very inputs that are stored beside them."""
    added = add_golden(root, "mlp", shapes={"x": [3, SIZE]}, seed=7)
    inputs, outputs = _load(root, added.golden)
    session = onnxruntime.InferenceSession(root / "models/mlp/mlp.onnx", providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(["y"], inputs)[0], outputs["y"])
    assert inputs["x"].shape == (3, SIZE) and inputs["x"].dtype == np.float32
    assert added.golden.inputs["x"].path == "golden/mlp/set/in-x.npy"
    assert Bundle.open(root, draft=True).model("mlp").golden == (added.golden,)
    assert added.warnings == () and added.golden.tolerance == 1e-2


def test_several_calls_add_several_sets(root: Path) -> None:
    """The very same one again is refused; clear takes the older ones and their files."""
    first = add_golden(root, "mlp").golden
    with pytest.raises(NameTaken, match="very set") as info:
        add_golden(root, "mlp")
    assert "--seed" in info.value.hint
    second = add_golden(root, "mlp", seed=1).golden
    assert Bundle.open(root, draft=True).model("mlp").golden == (first, second)
    third = add_golden(root, "mlp", clear=True)
    assert third.removed == 2
    stored = {p for p in tree(root) if p.endswith(".npy")}
    assert stored == {third.golden.inputs["x"].path, third.golden.outputs["y"].path}
    assert clear_golden(root, "mlp") == 1
    assert not (root / "golden").exists()


def test_a_set_for_one_profile(root: Path, tmp_path: Path) -> None:
    """Which an engine must have; its engine alone is checked with it."""
    with pytest.raises(UnknownProfile, match="no engine with a named profile"):
        add_golden(root, "mlp", profile="big")
    add_engine(root, "mlp", write_plan(tmp_path / "p.plan"), msgspec.structs.replace(FACTS, profile="big"))
    golden = add_golden(root, "mlp", profile="big", shapes={"x": [5, SIZE]}).golden
    assert golden.inputs["x"].path == "golden/mlp/big/in-x.npy"
    model = Bundle.open(root).model("mlp")
    assert model.fitting_golden("big") == (golden,) and model.fitting_golden("small") == ()


def test_inputs_from_files_and_arrays(root: Path, tmp_path: Path) -> None:
    """Big-endian and Fortran-ordered ones too; stored as the model takes them."""
    given_ = np.asfortranarray(np.arange(2 * SIZE, dtype=">f4").reshape(2, SIZE))
    np.save(tmp_path / "x.npy", given_)
    inputs, _ = _load(root, add_golden(root, "mlp", inputs={"x": tmp_path / "x.npy"}).golden)
    assert np.array_equal(inputs["x"], given_) and inputs["x"].dtype == np.dtype("<f4")
    inputs, _ = _load(root, add_golden(root, "mlp", inputs={"x": -inputs["x"]}).golden)
    assert np.array_equal(inputs["x"], -given_)


def test_names_that_are_no_file_names(tmp_path: Path) -> None:
    """Tensors may be called anything; two that would share a file do not."""
    names = ["a/../../x", "a:.:..:x", "\u00e9", "con"]
    nodes = [helper.make_node("Neg", [name], [f"{name}!"]) for name in names]
    root = _model(tmp_path / "b", tmp_path, nodes, dict.fromkeys(names, (FLOAT, [4])), [f"{name}!" for name in names])
    before = set(tree(tmp_path)) - set(tree(tmp_path / "b"))
    added = add_golden(root, "own")
    inputs, outputs = _load(root, added.golden)
    assert sorted(inputs) == sorted(names) and all(np.array_equal(outputs[f"{n}!"], -inputs[n]) for n in names)
    assert {p for p in tree(tmp_path) if not p.startswith("b/")} - {"b"} <= before


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"shapes": {"z": [1]}}, "an input is 'z', which is not one of the model's inputs ('x')"),
        ({"ranges": {"z": (0, 1)}}, "'z'"),
        ({"inputs": {"z": np.zeros(3)}}, "'z'"),
        ({"shapes": {"x": [1]}}, "which is not one of 2 dimensions"),
        ({"shapes": {"x": [1, SIZE + 1]}}, f"which is not one with {SIZE} in dimension 1"),
        ({"shapes": {"x": [(5, 2), SIZE]}}, "the smaller number first"),
        ({"shapes": {"x": [10**9, SIZE]}}, "of at most 1024 MiB"),
        ({"ranges": {"x": (1.0, 0.0)}}, "the smaller one first"),
        ({"ranges": {"x": (0.0, float("inf"))}}, "two finite numbers"),
        ({"inputs": {"x": np.zeros((1, SIZE))}}, "the type of the array for 'x' is 'float64'"),
        ({"inputs": {"x": np.zeros((1, SIZE), np.float32)}, "shapes": {"x": [1, SIZE]}}, "it is given as an array"),
        ({"seed": -1}, "the seed is -1"),
        ({"tolerance": 2.0}, "the tolerance is 2.0"),
    ],
)
def test_wishes_that_do_not_fit_the_model(root: Path, wish: dict[str, Any], says: str) -> None:
    """Each is named with what would fit, and nothing is stored."""
    before = tree(root)
    with pytest.raises(SettingInvalid) as info:
        add_golden(root, "mlp", **wish)
    assert says in str(info.value)
    assert tree(root) == before


def test_files_that_hold_no_array(root: Path, tmp_path: Path) -> None:
    """Nothing is ever unpickled."""
    np.savez(tmp_path / "archive.npz", x=np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros(1000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    (tmp_path / "text.npy").write_text("1 2 3")
    before = tree(root)
    os.mkfifo(tmp_path / "pipe.npy")  # opening it would wait for a writer for ever
    for name in ("archive.npz", "objects.npy", "cut.npy", "text.npy", "none.npy", "pipe.npy", "."):
        with pytest.raises(SettingInvalid, match="the input file"):
            add_golden(root, "mlp", inputs={"x": tmp_path / name})
    assert tree(root) == before


def test_outputs_that_no_engine_could_be_compared_with(tmp_path: Path) -> None:
    """NaNs, infinities, strings, nothing at all."""
    for number, (nodes, shape, says) in enumerate(
        [
            ([helper.make_node("Sqrt", ["x"], ["y"])], [4], "'y' holds a NaN"),
            ([helper.make_node("Sub", ["x", "x"], ["z"]), helper.make_node("Reciprocal", ["z"], ["y"])], [4], "'y' holds an infinity"),
            ([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)], [4], "'y' is no tensor of numbers"),
            ([helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Shape", ["i"], ["s"], start=2), helper.make_node("Cast", ["s"], ["y"], to=FLOAT)], [4], "and no values"),
        ]
    ):  # fmt: skip
        root = _model(tmp_path / f"b{number}", tmp_path, nodes, {"x": (FLOAT, shape)}, ["y"])
        before = tree(root)
        with pytest.raises(GoldenImpossible) as info:
            add_golden(root, "own", ranges={"x": (-2.0, -1.0)})
        assert says in str(info.value)
        assert tree(root) == before


def test_weak_checks_are_told(tmp_path: Path) -> None:
    """Outputs that do not depend on the inputs, zeros, integers, and a tolerance that nobody uses."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Relu", ["x"], ["zeros"]),
        helper.make_node("Neg", ["x"], ["fine"]),
    ]
    root = _model(tmp_path / "b", tmp_path, nodes, {"x": (FLOAT, [4])}, ["shape", "zeros", "fine"])
    add_engine(root, "own", write_plan(tmp_path / "p.plan"), FACTS)
    warnings = add_golden(root, "own", ranges={"x": (-2.0, -1.0)}, tolerance=0.3).warnings
    assert [w.split(",")[0] for w in warnings] == [
        "output 'shape' is the same for other inputs",
        "output 'zeros' is the same for other inputs",
        "output 'zeros' is all zeros",
        "output 'shape' holds int64: where rounding decides between two numbers",
        "the tolerance 0.3 does not hold for engines that have their own: engines/own/sm89-fp16-linux.plan.zst",
    ]
    x = np.array([1, 2, 3, 4], np.float32)
    assert not any("'fine'" in w for w in add_golden(root, "own", inputs={"x": x}).warnings)


def test_a_model_that_cannot_be_run(tmp_path: Path) -> None:
    """By its operators, or with these inputs: ONNX Runtime's words are passed on, and what could help."""
    root = _model(tmp_path / "b", tmp_path, [helper.make_node("Nonsense", ["x"], ["y"])], {"x": (FLOAT, [4])}, ["y"])
    with pytest.raises(GoldenImpossible, match="cannot load it"):
        add_golden(root, "own")
    nodes = [helper.make_node("Gather", ["x", "i"], ["y"])]
    inputs: dict[str, tuple[int, list[Any]]] = {"x": (FLOAT, [4]), "i": (TensorProto.INT64, ["n"])}
    root = _model(tmp_path / "c", tmp_path, nodes, inputs, ["y"])
    with pytest.raises(GoldenImpossible, match=r"with the inputs x \[4\], i \[1\]") as info:
        add_golden(root, "own", ranges={"i": (9, 9)})
    assert "--range" in info.value.hint
    add_golden(root, "own")


def test_a_model_that_was_changed(root: Path) -> None:
    """Outputs of other weights than the manifest names would be wrong for every engine."""
    make_onnx(root / "models" / "mlp" / "mlp.onnx", seed=4)
    before = tree(root)
    with pytest.raises(BundleError, match="not the one that the manifest describes"):
        add_golden(root, "mlp")
    with pytest.raises(UnknownModel):
        add_golden(root, "other")
    assert tree(root) == before


# ---------------------------------------------------------------- inputs


def _input(name: str, dtype: str, dims: tuple[Any, ...]) -> ModelInput:
    return ModelInput(name, dtype, np.dtype(dtype), dims)


def test_symbols_mean_the_same_everywhere() -> None:
    """What one input binds holds for the others; what nothing binds is 1."""
    inputs = [_input("a", "float32", ("batch", 3, "side", None)), _input("b", "int64", ("batch", "side"))]
    made = make_inputs(inputs, Wish({}, {"b": [4, 7]}, {}), 0)
    assert (made["a"].shape, made["b"].shape) == ((4, 3, 7, 1), (4, 7))
    assert make_inputs(inputs, Wish({}, {}, {}), 0)["a"].shape == (1, 3, 1, 1)
    with pytest.raises(SettingInvalid, match=r"with 4 in dimension 0 \(batch\)"):
        make_inputs(inputs, Wish({}, {"a": [4, 3, 5, 5], "b": [2, 5]}, {}), 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["float16", "float32", "float64", "bool", "int8", "uint8", "int32", "int64", "uint64"]), st.data())  # fmt: skip
def test_the_same_seed_gives_the_same_inputs(seed: int, dtype: str, data: st.DataObject) -> None:
    """Whatever other inputs there are; and random values stay in their range, both ends included."""
    kind = np.dtype(dtype)
    one = _input("x", dtype, ("n",))
    ranges: dict[str, tuple[float, float]] = {}
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        low, high = sorted(data.draw(st.lists(st.integers(limits.min, limits.max), min_size=2, max_size=2)))
        ranges["x"] = (low, high)
    shapes = {"x": [(1, 40)]}
    made = make_inputs([one], Wish({}, shapes, ranges), seed)["x"]
    again = make_inputs([_input("y", "float32", (3,)), one], Wish({}, shapes, ranges), seed)["x"]
    assert made.dtype == kind and 1 <= len(made) <= 40
    assert np.array_equal(made, again)
    if kind.kind == "f" and len(made) > 3:
        assert not np.array_equal(made, make_inputs([_input("y", dtype, (len(made),))], Wish({}, {}, {}), seed)["y"])
    if ranges:
        assert all(ranges["x"][0] <= int(v) <= ranges["x"][1] for v in made)
    elif kind.kind == "f":
        assert np.isfinite(made).all()


def test_integers_without_a_range_are_small() -> None:
    """0 and 1, since nobody knows what a model takes."""
    made = make_inputs([_input("x", "int64", (1000,))], Wish({}, {}, {}), 0)["x"]
    assert set(made.tolist()) == {0, 1}
    for within, says in (((0, 300), "that uint8 holds"), ((0.5, 1), "whole numbers")):
        with pytest.raises(SettingInvalid, match=says):
            make_inputs([_input("x", "uint8", (3,))], Wish({}, {}, {"x": within}), 0)
    with pytest.raises(SettingInvalid, match="it is a boolean"):
        make_inputs([_input("x", "bool", (3,))], Wish({}, {}, {"x": (0, 1)}), 0)


def test_types_without_a_form_in_npy() -> None:
    """A model with bfloat16 or string inputs cannot have golden data."""
    with pytest.raises(SettingInvalid, match=r"tensor\(bfloat16\)"):
        make_inputs([ModelInput("x", "tensor(bfloat16)", None, (3,))], Wish({}, {}, {}), 0)


def test_other_inputs_are_other_inputs() -> None:
    """Random ones are drawn anew, given ones turned round, shapes stay."""
    inputs = [_input("a", "float32", (2, 3)), _input("b", "int32", (4,))]
    wish = Wish({"b": np.arange(4, dtype=np.int32)}, {}, {})
    made = make_inputs(inputs, wish, 5)
    changed = others(inputs, made, wish, 5)
    assert changed["a"].shape == (2, 3) and not np.array_equal(changed["a"], made["a"])
    assert changed["b"].tolist() == [3, 2, 1, 0]
