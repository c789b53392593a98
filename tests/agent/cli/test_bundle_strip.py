"""`refit-agent bundle strip-onnx` and `restore-onnx`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bundles import make_onnx
from refit_agent.authoring.stripping.marker import KEY

from .command import Cli


def test_there_and_back(cli: Cli, tmp_path: Path) -> None:
    """Text for people, one document with --json, and the original bit for bit."""
    make_onnx(tmp_path / "m.onnx", external="w1.bin")
    ran = cli("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "s.onnx")
    assert ran.code == 0 and "without the values of 3 tensors" in ran.out and "truncate -s" in ran.out
    ran = cli("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "s.onnx", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (3, "output-in-the-way")
    document = cli("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "s.onnx", "--force", "--json").document
    assert document["path"] == str(tmp_path / "s.onnx")
    assert document["size"] == (tmp_path / "s.onnx").stat().st_size < 2000
    assert document["stripped"] == {"tensors": 3, "bytes": 2 * 48 * 48 * 4 + 48 * 4}
    assert document["zeros"]["location"] == "s.onnx.zeros" and document["zeros"]["written"] is False

    ran = cli("bundle", "restore-onnx", tmp_path / "s.onnx", tmp_path / "m.onnx", tmp_path / "out" / "m.onnx")
    assert ran.code == 0 and "bit for bit" in ran.out and "w1.bin" in ran.out
    command = ["bundle", "restore-onnx", tmp_path / "s.onnx", tmp_path / "m.onnx", tmp_path / "out" / "m.onnx"]
    assert cli(*command, "--json").document["error"]["code"] == "output-in-the-way"
    document = cli(*command, "--force", "--json").document
    assert document["identical"] is True and document["restored"] == 3 and document["external"] == ["w1.bin"]
    for name in ("m.onnx", "w1.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_zeros_and_what_stays(cli: Cli, tmp_path: Path) -> None:
    """An ordinary model; what is large and keeps its values is named, unless it is asked to go."""
    table = numpy_helper.from_array(np.arange(300, dtype=np.int64), "table")
    graph = helper.make_graph([helper.make_node("Identity", ["table"], ["y"])], "g", [], [], [table])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, ir_version=9).SerializeToString())
    command = ["bundle", "strip-onnx", str(tmp_path / "m.onnx"), str(tmp_path / "z.onnx"), "--zeros"]
    ran = cli(*command)
    assert ran.code == 0 and "keeps its values: table, int64, 2.3 KiB (integer)" in ran.out
    command.append("--force")
    assert cli(*command, "--json").document["kept"]["large"][0]["name"] == "table"
    assert cli(*command, "--strip-integers", "--json").document["stripped"]["tensors"] == 1
    assert not numpy_helper.to_array(onnx.load(str(tmp_path / "z.onnx")).graph.initializer[0]).any()


def test_a_copy_that_a_tool_has_changed(cli: Cli, tmp_path: Path) -> None:
    """It says so, and names what the copy has no more."""
    make_onnx(tmp_path / "m.onnx")
    cli("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "s.onnx")
    proto = onnx.load(str(tmp_path / "s.onnx"), load_external_data=False)
    del proto.graph.initializer[1]
    (tmp_path / "s.onnx").write_bytes(proto.SerializeToString())
    ran = cli("bundle", "restore-onnx", tmp_path / "s.onnx", tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert ran.code == 0 and "as a tool has changed it" in ran.out and "these no more: b1" in ran.out
    assert KEY.encode() not in (tmp_path / "out.onnx").read_bytes()


def test_errors(cli: Cli, tmp_path: Path) -> None:
    """Exit code 3 with the error's code, 2 for usage."""
    make_onnx(tmp_path / "m.onnx")
    ran = cli("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "m.onnx", "--json")
    assert ran.code == 3 and ran.document["error"]["code"] == "output-refused"
    ran = cli("bundle", "restore-onnx", tmp_path / "m.onnx", tmp_path / "m.onnx", tmp_path / "o.onnx", "--json")
    assert ran.code == 3 and ran.document["error"]["code"] == "not-restorable"
    assert cli("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "o", "--keep-below", "-1").code == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["m.onnx"]


def test_stopped(cli: Cli, tmp_path: Path) -> None:
    """SIGTERM in the middle of a large copy leaves nothing of it."""
    tensor = onnx.TensorProto(name="w", data_type=2, dims=[4 << 30])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(4 << 30)
    graph = helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, ir_version=9).SerializeToString())
    process = cli.start("bundle", "strip-onnx", tmp_path / "m.onnx", tmp_path / "s.onnx")
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".refit-agent-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and "Nothing half-done" in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["m.onnx", "w.bin"]
