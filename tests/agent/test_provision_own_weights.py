"""`ensure_engine` with the caller's own weights: the new model's result, or an error, never a mixture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from bundles import MODEL, SIZE, edit, make_bundle, make_onnx, model_of
from refit_agent import ensure_engine
from refit_agent.errors import OwnWeightsInvalid, WeightsMismatch, WeightsNotIdentical


def run(path: Path) -> np.ndarray:
    """What ONNX Runtime computes with the model at ``path``."""
    x = np.random.default_rng(5).standard_normal((3, SIZE), np.float32)
    result: np.ndarray = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]  # fmt: skip
    return result


def changed(bundle: Path, target: Path, **arrays: np.ndarray) -> Path:
    """The bundle's model with other values for some initializers."""
    model = onnx.load(bundle / "models/mlp.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(model, target)
    return target


def test_the_engine_computes_what_the_own_model_computes(bundle: Path, tmp_path: Path) -> None:
    """Bit for bit what ONNX Runtime makes of the own file."""
    w1 = np.random.default_rng(9).standard_normal((SIZE, SIZE), np.float32)
    own = changed(bundle, tmp_path / "own.onnx", w1=w1)
    with ensure_engine(bundle, MODEL) as old, ensure_engine(bundle, MODEL, weights=own) as new:
        assert (old.check, new.check) == ("golden", "smoke")
        assert old.key != new.key
        np.testing.assert_allclose(run(new.path), run(own), rtol=1e-6)
        assert not np.allclose(run(old.path), run(own))
    with ensure_engine(bundle, MODEL, weights=own) as again:
        assert again.hit


def test_a_weight_that_the_plan_keeps_must_not_differ(bundle: Path, tmp_path: Path) -> None:
    """Small tensors stay in a CPU plan: an engine with new matrices and old biases is neither model."""
    own = changed(bundle, tmp_path / "own.onnx", b1=np.zeros(SIZE, np.float32))
    with pytest.raises(WeightsMismatch, match=r"'b1'.*the plan keeps"):
        ensure_engine(bundle, MODEL, weights=own)


def test_a_plan_that_asks_for_nothing_takes_no_other_weights(bundle: Path, tmp_path: Path) -> None:
    """It would be published as if it had them."""
    shutil.copyfile(bundle / "models/mlp.onnx", bundle / "plans/mlp.cpu")
    size = (bundle / "plans/mlp.cpu").stat().st_size
    edit(bundle, lambda d: model_of(d)["engines"][0].update(plan_size=size, strip="none", plan_sha256=None))
    from bundles import rehash

    rehash(bundle)
    own = tmp_path / "own.onnx"
    make_onnx(own, seed=3)
    with pytest.raises(WeightsMismatch, match="the plan keeps"):
        ensure_engine(bundle, MODEL, weights=own)


@pytest.mark.parametrize("change", ["another operator", "another attribute", "another shape", "another tensor"])
def test_weights_of_another_graph_are_refused(bundle: Path, tmp_path: Path, change: str) -> None:
    """Names and sizes may agree by chance; the graph must be the same."""
    model = onnx.load(bundle / "models/mlp.onnx")
    if change == "another operator":
        model.graph.node[2].op_type = "Sigmoid"
    elif change == "another attribute":
        model.graph.node[2].attribute.append(onnx.helper.make_attribute("alpha", 0.5))
    elif change == "another shape":
        wide = np.ones((SIZE // 2, SIZE * 2), np.float32)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(wide, "w1"))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "more"))
    onnx.save(model, tmp_path / "own.onnx")
    with pytest.raises(OwnWeightsInvalid, match=r"own\.onnx cannot be used: .*the bundle's model") as info:
        ensure_engine(bundle, MODEL, weights=tmp_path / "own.onnx")
    assert info.value.exit_code == 2 and "ONNX file of the same model" in info.value.hint
    if change == "another shape":
        assert f"its tensor 'w1' is float32 [{SIZE // 2}, {SIZE * 2}]" in str(info.value)


def test_another_model_altogether_is_the_caller_s_mistake(bundle: Path, tmp_path: Path, home: Path) -> None:
    """Also with none of the names that the plan asks for; and nothing is held against the engine."""
    tensors = [numpy_helper.from_array(np.ones((2, 2), np.float32), "kernel")]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 2]) for n in "ab"]
    node = onnx.helper.make_node("MatMul", ["a", "kernel"], ["b"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:], tensors), ir_version=9)
    onnx.save(model, tmp_path / "other.onnx")
    for _ in range(2):
        with pytest.raises(OwnWeightsInvalid, match="its main graph is not that of the bundle's model"):
            ensure_engine(bundle, MODEL, weights=tmp_path / "other.onnx")
    assert not list((home / "state").glob("failures/*"))


def test_an_identical_plan_takes_its_own_weights_only_with_external_data_too(tmp_path: Path) -> None:
    """With external data the ONNX file itself holds no weights: its hash alone says nothing."""
    root = make_bundle(tmp_path / "bundle", external=True)
    from refit_agent.bundle import Bundle

    digest = Bundle.open(root).manifest.models[0].weights_digest()
    edit(root, lambda d: model_of(d)["engines"][0].update(refit="identical", weights_sha256=digest))
    ensure_engine(root, MODEL).close()
    (tmp_path / "own").mkdir()
    shutil.copyfile(root / "models/mlp.onnx", tmp_path / "own/mlp.onnx")
    (tmp_path / "own/w1.bin").write_bytes(np.ones((SIZE, SIZE), np.float32).tobytes())
    with pytest.raises(WeightsNotIdentical):
        ensure_engine(root, MODEL, weights=tmp_path / "own/mlp.onnx")


def test_a_file_that_is_no_model_is_the_caller_s_mistake(bundle: Path, tmp_path: Path) -> None:
    """Nobody is sent to reinstall the app for it."""
    (tmp_path / "text").write_text("no model")
    for path in (tmp_path / "missing", tmp_path / "text", tmp_path, tmp_path / "b\udcff"):
        with pytest.raises(OwnWeightsInvalid) as info:
            ensure_engine(bundle, MODEL, weights=path)
        assert info.value.exit_code == 2
