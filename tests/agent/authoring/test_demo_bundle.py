"""The demo's bundle: a sound ONNX model, a plan without its weights, golden data that holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from refit_agent.authoring import demo_bundle
from refit_agent.bundle import Bundle
from refit_agent.digest import verify_file
from refit_agent.weights import OnnxWeights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo_bundle.write_demo_bundle(str(folder))
    return folder


def test_the_model_is_sound(root: Path) -> None:
    """The onnx package accepts it, with the layers that were promised and a few megabytes of weights."""
    path = root / demo_bundle.ONNX_PATH
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == operators.count("BatchNormalization") == 4 and operators.count("Gemm") == 1
    assert 2_000_000 < path.stat().st_size < 8_000_000


def test_every_file_is_as_the_manifest_says(root: Path) -> None:
    """The bundle opens and verifies."""
    bundle = Bundle.open(root)
    assert bundle.manifest.app.id == demo_bundle.APP_ID
    (model,) = bundle.manifest.models
    for ref in model.files():
        verify_file(bundle.locate(ref), ref)


def test_the_plan_has_no_large_weights(root: Path) -> None:
    """It is a small fraction of the model: the weights are shipped once."""
    assert (root / demo_bundle.PLAN_PATH).stat().st_size < (root / demo_bundle.ONNX_PATH).stat().st_size / 100


def test_the_cpu_plan_is_for_older_runtimes_too(root: Path) -> None:
    """Made with whatever is newest, the demo's bundle must run in a package that was made before."""
    (engine,) = Bundle.open(root).manifest.models[0].engines
    assert engine.min_runtime == "1.18"


def test_golden_outputs_depend_on_every_weight(root: Path) -> None:
    """Zeroing any one convolution or the head changes the outputs far beyond the tolerance."""
    image = np.load(root / "classifier" / "golden-image.npy")
    expected = np.load(root / "classifier" / "golden-scores.npy")
    path = root / demo_bundle.ONNX_PATH
    assert np.array_equal(demo_bundle.run_model(str(path), image), expected)
    with OnnxWeights(str(path)) as weights:
        names = [name for name in weights if name.endswith(".weight")]
    for name in names:
        model = onnx.load(str(path))
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        tensor.raw_data = bytes(len(tensor.raw_data))
        changed = root / "changed.onnx"
        onnx.save(model, str(changed))
        got = demo_bundle.run_model(str(changed), image)
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) > 100 * demo_bundle.TOLERANCE, name


def test_the_same_twice(root: Path, tmp_path: Path) -> None:
    """The same bytes each time, so that an earlier demo's engine has the same key; another seed gives others."""
    demo_bundle.write_demo_bundle(str(tmp_path / "again"))
    assert (tmp_path / "again" / "bundle.json").read_bytes() == (root / "bundle.json").read_bytes()
    assert demo_bundle.demo_model(8, seed=1) != demo_bundle.demo_model(8, seed=2)
    demo_bundle.write_demo_bundle(str(tmp_path / "other"), width=8, seed=1)
    hashes = [
        json.loads((p / "bundle.json").read_text())["models"][0]["onnx"]["sha256"] for p in (root, tmp_path / "other")
    ]
    assert hashes[0] != hashes[1]
