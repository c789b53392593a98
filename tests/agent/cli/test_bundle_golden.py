"""`refit-agent bundle golden`: what is stored, what is said of it, wrong values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from bundles import SIZE
from plan_files import one_model_bundle, tree
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_model import add_model

from .command import Cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_model_bundle(tmp_path / "b")


def test_random_inputs(cli: Cli, root: Path) -> None:
    """What was made is listed with its shapes and where it lies."""
    ran = cli("bundle", "golden", root, "mlp", "--shape", f"x=3x{SIZE}", "--range", "x=-0.5:0.5", "--seed", "7")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[:4] == [
        f"input x: float32 3x{SIZE}, random, seed 7",
        "  golden/mlp/set/in-x.npy, 704 B",
        f"output y: float32 3x{SIZE}",
        "  golden/mlp/set/out-y.npy, 704 B",
    ]
    array = np.load(root / "golden/mlp/set/in-x.npy")
    assert array.shape == (3, SIZE) and np.abs(array).max() <= 0.5


def test_as_json_with_a_file(cli: Cli, root: Path, tmp_path: Path) -> None:
    """The set as the manifest has it, and what it consists of."""
    np.save(tmp_path / "x=1.npy", np.ones((2, SIZE), np.float32))
    document = cli("bundle", "golden", root, "mlp", "--input", f"x={tmp_path}/x=1.npy", "--tolerance", "0.1", "--json").document  # fmt: skip
    assert document["golden"]["tolerance"] == 0.1
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, SIZE]}]
    assert document["outputs"] == [{"name": "y", "dtype": "float32", "shape": [2, SIZE]}]
    assert np.load(root / document["golden"]["inputs"]["x"]["path"]).min() == 1
    assert "x: float32 2x48, from a file" in cli("bundle", "golden", root, "mlp", "--clear", "--input", f"x={tmp_path}/x=1.npy").out  # fmt: skip


def test_what_integers_mean_is_for_the_caller_to_say(cli: Cli, tmp_path: Path) -> None:
    """Until he does, they are 0 and 1, and the command says so."""
    values = [helper.make_tensor_value_info(n, TensorProto.INT64, [4]) for n in ("ids", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["ids"], ["y"])], "g", values[:1], values[1:])
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(onnx.SerializeToString())
    root = tmp_path / "b"
    init_bundle(root, app_id="org.example.test", name="Test", version="1.0")
    add_model(root, "m", tmp_path / "m.onnx")
    assert "input ids: int64 4, random 0 and 1 (say with --range" in cli("bundle", "golden", root, "m").out
    assert "input ids: int64 4, random, seed 0\n" in cli("bundle", "golden", root, "m", "--range", "ids=0:99").out


def test_a_shape_may_be_a_range(cli: Cli, root: Path) -> None:
    """Of which the seed picks one."""
    shapes = {
        cli("bundle", "golden", root, "mlp", "--shape", f"x=1..9x{SIZE}", "--seed", str(seed), "--json").document[
            "inputs"
        ][0]["shape"][0]
        for seed in range(4)
    }
    assert len(shapes) > 1 and shapes <= set(range(1, 10))


@pytest.mark.parametrize("shape", [f"x=3x{SIZE}", f"x:3x{SIZE}", f"'x':3x{SIZE}"])
def test_a_shape_is_written_as_for_a_build(cli: Cli, root: Path, shape: str) -> None:
    """With a colon or an equals sign; a name may stand in quotes."""
    document = cli("bundle", "golden", root, "mlp", "--shape", shape, "--json").document
    assert document["inputs"][0]["shape"] == [3, SIZE]


def test_clear(cli: Cli, root: Path) -> None:
    """Before the new set, or alone."""
    cli("bundle", "golden", root, "mlp")
    assert "removed 1 older set of golden data" in cli("bundle", "golden", root, "mlp", "--clear", "--seed", "1").out
    assert cli("bundle", "golden", root, "mlp", "--clear-only", "--json").document["removed"] == 1
    assert not (root / "golden").exists()
    assert cli("bundle", "golden", root, "mlp", "--clear-only", "--shape", "x=1x48").code == 2


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--shape", "x"], 2, "--shape has 'x', which does not begin with a shape such as input:1x3x224x224"),
        (["--shape", "x=axb"], 2, "--shape has 'x=axb', which does not"),
        (["--shape", "x:12345678901x3"], 2, "'12345678901' is no dimension such as 64 or 1..8"),
        (["--shape", "x:1x2,x:1x3"], 2, "gives the input 'x' twice"),
        (["--shape", "x=1x2", "--shape", "x=1x3"], 2, "names the input 'x' twice"),
        (["--shape", f"x=1x{SIZE + 1}"], 2, "in dimension 1"),
        (["--range", "x=1"], 2, "is not LOW:HIGH, two numbers"),
        (["--range", "x=low:high"], 2, "is not LOW:HIGH, two numbers"),
        (["--range", "x=2:1"], 2, "the smaller one first"),
        (["--input", "x=/nowhere.npy"], 2, "No such file"),
        (["--seed", "-1"], 2, "-1 is not in the range"),
        (["--tolerance", "5"], 2, "a number above 0"),
        (["--profile", "nope"], 3, "has no profile 'nope'"),
        (["--frobnicate"], 2, "No such option"),
    ],
)
def test_wrong_usage(cli: Cli, root: Path, options: list[str], code: int, says: str) -> None:
    """The reason in words; the bundle is as it was."""
    before = tree(root)
    ran = cli("bundle", "golden", root, "mlp", *options)
    assert ran.code == code and says in ran.err, ran.err
    assert tree(root) == before
