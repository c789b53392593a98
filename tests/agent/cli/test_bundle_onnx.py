"""`refit-agent bundle canonicalize`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundles import make_onnx

from .command import Cli


def _with_norm(path: Path, *, shape: list[int | str] | None = None) -> None:
    """A convolution with a norm, a Constant, a float64 part and a weight that nothing reads."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((4, 3, 3, 3)), "unused": np.zeros(3)}
    arrays |= {f"bn.{p}": rng.uniform(0.5, 1.5, 4) for p in "gbmv"}
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    weights.append(numpy_helper.from_array(np.array(1 / 3), "third"))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *(f"bn.{p}" for p in "gbmv")], ["n"]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["n", "two"], ["m"]),
        helper.make_node("Cast", ["m"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["d", "third"], ["e"]),
        helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def test_text_for_people(cli: Cli, tmp_path: Path) -> None:
    """What was made, what was done, and that the results are the same."""
    _with_norm(tmp_path / "m.onnx")
    ran = cli("bundle", "canonicalize", tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert ran.code == 0 and "comparing results" in ran.err
    assert f"{tmp_path / 'o.onnx'}: " in ran.out and f"4 of them in {tmp_path / 'o.onnx.data'}: " in ran.out
    for line in (
        "4 weights\n",
        "1 weight taken out of nodes",
        "1 BatchNormalization put into the Conv",
        "1 weight dropped",
        "1 weight of float64 rounded to float32: largest relative error 3e-08, in 'third'; 0 numbers too small",
        "same results as",
        "in output 'y' (up to 0.0001 is rounding)",
    ):
        assert line in ran.out, line
    assert "Mul and an Add" not in ran.out and "renamed" not in ran.out


def test_one_document(cli: Cli, tmp_path: Path) -> None:
    """The whole report; an order and a name for the data file are used."""
    _with_norm(tmp_path / "m.onnx")
    (tmp_path / "order.json").write_text('["two", "nothing"]')
    command = ["bundle", "canonicalize", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--json"]
    document = cli(*command, "--order", tmp_path / "order.json", "--data", "weights").document
    assert document["data"] == str(tmp_path / "weights") and document["data_bytes"] == (tmp_path / "weights").stat().st_size  # fmt: skip
    assert (document["folded"], document["unknown_order"], document["dropped"]) == (1, ["nothing"], ["unused"])
    assert document["check"]["done"] and document["check"]["inputs"] == {"x": [2, 3, 8, 8]}
    (two,) = [t for t in onnx.load(str(tmp_path / "o.onnx"), load_external_data=False).graph.initializer if t.name == "two"]  # fmt: skip
    assert {e.key: e.value for e in two.external_data} == {"location": "weights", "offset": "0", "length": "4"}


def test_the_check_is_an_option(cli: Cli, tmp_path: Path) -> None:
    """Without it nothing is compared; with shapes it is done in these."""
    _with_norm(tmp_path / "m.onnx", shape=["n", 3, "h", "w"])
    command = ["bundle", "canonicalize", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    ran = cli(*command, "--no-check")
    assert ran.code == 0 and "results not compared" in ran.out and "it was not asked for" in ran.out
    ran = cli(*command, "--no-check", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (3, "output-in-the-way")
    for shape in ("x:1x3x5x7", "x=1x3x5x7"):
        document = cli(*command, "--input-shape", shape, "--force", "--json").document
        assert document["check"]["inputs"] == {"x": [1, 3, 5, 7]}
    ran = cli(*command, "--input-shape", "x:1x4x5x7", "--force")
    assert ran.code == 3 and "[model-unsupported]" in ran.err and "[1, 4, 5, 7]" in ran.err


@pytest.mark.parametrize("shape", ["x", "x:1xa", "x:1x2,", ":", "x:1,x:1", "x:99999999999"])
def test_shapes_that_cannot_be_read(cli: Cli, tmp_path: Path, shape: str) -> None:
    """Are a mistake in usage, and nothing is written."""
    make_onnx(tmp_path / "m.onnx")
    ran = cli("bundle", "canonicalize", tmp_path / "m.onnx", tmp_path / "o.onnx", "--input-shape", shape)
    assert ran.code == 2 and "--input-shape" in ran.err and not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("content", [None, "{", "{}", "[1]", '"w1"', "[" * 100_000])
def test_orders_that_cannot_be_read(cli: Cli, tmp_path: Path, content: str | None) -> None:
    """Are a mistake in usage, and nothing is written."""
    make_onnx(tmp_path / "m.onnx")
    if content is not None:
        (tmp_path / "order").write_text(content)
    ran = cli("bundle", "canonicalize", tmp_path / "m.onnx", tmp_path / "o.onnx", "--order", tmp_path / "order", "--json")  # fmt: skip
    assert ran.code == 2 and ran.document["error"]["code"] == "usage" and not (tmp_path / "o.onnx").exists()


def test_errors_have_their_codes(cli: Cli, tmp_path: Path) -> None:
    """A damaged model, an output that is the model, a folder that cannot be made."""
    make_onnx(tmp_path / "m.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x3agarbage")
    for model, out, code in (
        ("bad.onnx", "o.onnx", "onnx-malformed"),
        ("none.onnx", "o.onnx", "bundle-file-missing"),
        ("m.onnx", "m.onnx", "output-refused"),
        ("m.onnx", "bad.onnx/o.onnx", "output-unwritable"),
    ):
        ran = cli("bundle", "canonicalize", tmp_path / model, tmp_path / out, "--json")
        assert (ran.code, ran.document["error"]["code"]) == (3, code)
    assert not (tmp_path / "o.onnx").exists()


def test_without_the_onnx_package(cli: Cli, tmp_path: Path) -> None:
    """The command says what to install."""
    make_onnx(tmp_path / "m.onnx")
    package = tmp_path / "shadow" / "onnx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no onnx here')")
    path = os.pathsep.join([str(tmp_path / "shadow"), os.environ.get("PYTHONPATH", "")])
    ran = cli("bundle", "canonicalize", tmp_path / "m.onnx", tmp_path / "o.onnx", PYTHONPATH=path)
    assert ran.code == 3 and "[authoring-missing]" in ran.err and "refit-agent[authoring]" in ran.err


def test_a_signal_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    """Stopped in the middle of a large model, there is neither file, nor a temporary folder."""
    size = 64 << 20
    weights, nodes = [], []
    for i in range(24):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.DOUBLE, dims=[size // 8])
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", "zeros"), ("offset", "0"), ("length", size)):
            tensor.external_data.add(key=key, value=str(entry))
        weights.append(tensor)
        nodes.append(helper.make_node("Add", [f"y{i - 1}" if i else "x", f"w{i}"], [f"y{i}"]))
    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [size // 8]) for n in ("x", "y23")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights), ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(size)
    process = cli.start("bundle", "canonicalize", tmp_path / "m.onnx", tmp_path / "o.onnx", "--no-check", "--json")
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".o.onnx.*/o.onnx.data")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and json.loads(out)["error"]["code"] == "stopped"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["m.onnx", "zeros"]
