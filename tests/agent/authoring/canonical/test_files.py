"""Files: sources of every kind, outputs that appear together or not at all, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from bundles import python
from refit_agent.authoring.canonical import canonicalize, publish, reorder, write
from refit_agent.authoring.errors import ModelUnsupported, OutputInTheWay, OutputRefused, OutputUnwritable
from refit_agent.errors import BundleFileMissing, OnnxError, OnnxExternalMissing, OnnxMalformed, OnnxUnsafePath

from .models import B, D, branches, canonical, check_file, constant, graph, model, node, noise, run, tensor, value

X = np.random.default_rng(2).standard_normal((3, 40)).astype(np.float32)
_X, _Y = value("x", ["n", 40]), value("y", ["n", 40])


def _source() -> onnx.ModelProto:
    """Weights in initializers, a Constant node and a branch."""
    then = graph([constant("c", np.full(40, 2)), node("Mul", ["h", "c"], ["o"])], [], [value("o", None)])
    other = graph([node("Mul", ["h", "b"], ["o2"])], [], [value("o2", None)], [noise("b", 40)])
    parts = [
        node("MatMul", ["x", "w"], ["m"]),
        constant("k", True, bool),
        node("Constant", [], ["f"], value=noise("f", 40, 40)),
        node("MatMul", ["m", "f"], ["h"]),
        branches(then, other, "y"),
    ]
    return model(parts, [_X], [_Y], [noise("w", 40, 40)])


def _save(folder: Path, source: onnx.ModelProto, *, external: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "m.onnx"
    if external:
        # every tensor in attributes and initializers, whatever its size
        onnx.save_model(source, path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=True)  # fmt: skip
    else:
        path.write_bytes(source.SerializeToString())
    return path


def test_where_the_source_keeps_its_weights_makes_no_difference(tmp_path: Path) -> None:
    """Inside, or all of them in a file beside it, down to conditions and shapes."""
    inside = check_file(tmp_path / "1", _save(tmp_path / "1/given", _source()), check=False)
    outside = check_file(tmp_path / "2", _save(tmp_path / "2/given", _source(), external=True), check=False)
    for file in inside.path.parent.iterdir():
        assert file.read_bytes() == (outside.path.parent / file.name).read_bytes()
    for one, other in zip(run(tmp_path / "1/given/m.onnx", {"x": X}), run(inside.path, {"x": X}), strict=True):
        assert np.array_equal(one, other)


def test_weights_stay_out_of_the_memory(tmp_path: Path) -> None:
    """A model of 400 MB in external data takes a small part of that in private memory."""
    (tmp_path / "w.bin").write_bytes(b"")
    os.truncate(tmp_path / "w.bin", 400 << 20)
    parts, weights = [], []
    for i in range(25):
        t = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[4 << 20], data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "w.bin"), ("offset", i << 24), ("length", 16 << 20)):
            t.external_data.add(key=key, value=str(entry))
        weights.append(t)
        parts.append(node("Add", [f"a{i - 1}" if i else "x", f"w{i}"], [f"a{i}"]))
    (tmp_path / "m.onnx").write_bytes(
        model(parts, [value("x", [1])], [value("a24", [4 << 20])], weights).SerializeToString()
    )
    command, env = python(
        """
        import sys, psutil
        from refit_agent.authoring.canonical import canonicalize, reorder
        import onnx, refit_agent.authoring.canonical.write, refit_agent.authoring.canonical.source
        import refit_agent.authoring.canonical.check, refit_agent.authoring.canonical.batch_norm
        import resource
        limit = psutil.Process().memory_full_info().uss
        resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + (150 << 20),) * 2)
        canonicalize(sys.argv[1], sys.argv[2], check=False)
        reorder(sys.argv[2], ["w7"])
        """,
        tmp_path / "m.onnx",
        tmp_path / "o.onnx",
    )
    if sys.platform != "linux":
        pytest.skip("limits on private memory are Linux's")
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.onnx.data").stat().st_size == 400 << 20


def test_the_name_of_the_data_file(tmp_path: Path) -> None:
    """Is the caller's, in the graph too."""
    path = _save(tmp_path / "given", _source())
    report = canonicalize(path, tmp_path / "o.onnx", data="weights.bin")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["o.onnx", "weights.bin"]
    assert report.data == str(tmp_path / "weights.bin") and report.check.done


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "/b", "a\\b", "c:b", "o.onnx", "a\0b"])
def test_other_names_of_the_data_file_are_refused(tmp_path: Path, name: str) -> None:
    """It has to be one name beside the graph, on every operating system."""
    path = _save(tmp_path / "given", _source())
    with pytest.raises(OutputRefused):
        canonicalize(path, tmp_path / "o.onnx", data=name, check=False)
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["given"]


def test_the_model_itself_is_no_output(tmp_path: Path) -> None:
    """Nor its external data, under whatever name or link; nor a folder."""
    path = _save(tmp_path / "given", _source(), external=True)
    (tmp_path / "link.onnx").symlink_to(path)
    os.link(tmp_path / "given/w.bin", tmp_path / "hard.bin")
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.onnx.data").mkdir()
    before = {p: p.read_bytes() for p in (tmp_path / "given").iterdir()}
    for out, data in (
        (path, None),
        (tmp_path / "given/../given/m.onnx", None),
        (tmp_path / "link.onnx", None),
        (tmp_path / "given/w.bin", None),
        (tmp_path / "given/o.onnx", "w.bin"),
        (tmp_path / "given/o.onnx", "m.onnx"),
        (tmp_path / "o.onnx", "hard.bin"),
        (tmp_path / "folder", None),
        (tmp_path / "x.onnx", None),
    ):
        with pytest.raises(OutputRefused):
            canonicalize(path, out, data=data, check=False)
    assert {p: p.read_bytes() for p in (tmp_path / "given").iterdir()} == before


@pytest.mark.parametrize("name", ["o.onnx", "o.onnx.data"])
def test_old_outputs_stay(tmp_path: Path, name: str) -> None:
    """One of the two is enough to say so, before anything is written; also a link that leads nowhere."""
    path = _save(tmp_path / "given", _source())
    (tmp_path / name).write_bytes(b"old")
    before = _snapshot(tmp_path)
    with pytest.raises(OutputInTheWay, match=rf"/{name} is there already\.") as caught:
        canonicalize(path, tmp_path / "o.onnx")
    assert "--force" in caught.value.hint and _snapshot(tmp_path) == before
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputInTheWay):
        canonicalize(path, tmp_path / "o.onnx")
    assert not (tmp_path / "elsewhere").exists()


def test_old_outputs_are_replaced_if_it_is_wished(tmp_path: Path) -> None:
    """Both; one that the new model has no use for stays."""
    path = _save(tmp_path / "given", _source())
    for name in ("o.onnx", "o.onnx.data"):
        (tmp_path / name).write_bytes(b"old")
    canonicalize(path, tmp_path / "o.onnx", check=False, force=True)
    assert np.array_equal(run(path, {"x": X})[0], run(tmp_path / "o.onnx", {"x": X})[0])
    small = _save(tmp_path / "small", model([node("Neg", ["x"], ["y"])], [_X], [_Y]))
    (tmp_path / "p.onnx.data").write_bytes(b"old")
    assert canonicalize(small, tmp_path / "p.onnx", check=False).data == ""
    assert (tmp_path / "p.onnx.data").read_bytes() == b"old"


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("call", ["canonicalize", "reorder"])
@pytest.mark.parametrize("step", ["write_data", "write_graph", "data", "graph"])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: str, old: bool) -> None:  # fmt: skip
    """Wherever it strikes, a full disk for one; no temporary file is left."""
    path = _save(tmp_path / "given", _source())
    out = tmp_path / "out"
    out.mkdir()
    if old or call == "reorder":
        canonicalize(path, out / "o.onnx", check=False)
    before = _snapshot(tmp_path)
    full = OSError(28, "No space left on device")
    if step.startswith("write"):
        real = getattr(write, step)

        def fail(*arguments: Any) -> None:
            real(*arguments)
            raise full

        monkeypatch.setattr(write, step, fail)
    else:
        replace = os.replace
        wanted = "o.onnx.data" if step == "data" else "o.onnx"

        def fail_replace(source: str, target: str) -> None:
            if Path(source).name == wanted and Path(source).parent != out:
                raise full
            replace(source, target)

        monkeypatch.setattr(publish.os, "replace", fail_replace)
    with pytest.raises(OutputUnwritable, match="No space left"):
        if call == "reorder":
            reorder(out / "o.onnx", ["f"])
        else:
            canonicalize(path, out / "o.onnx", check=False, force=True)
    monkeypatch.undo()
    assert _snapshot(tmp_path) == before
    assert [p.name for p in out.iterdir() if p.is_dir()] == []


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is made, with those above it; and goes again if nothing comes of it. A file is no folder."""
    path = _save(tmp_path / "given", _source())
    assert canonicalize(path, tmp_path / "none/at/all/o.onnx").check.done
    assert sorted(p.name for p in (tmp_path / "none/at/all").iterdir()) == ["o.onnx", "o.onnx.data"]
    with pytest.raises(OutputUnwritable):
        canonicalize(path, tmp_path / "given/m.onnx/o.onnx", check=False)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_graph", full)
    with pytest.raises(OutputUnwritable):
        canonicalize(path, tmp_path / "other/at/all/o.onnx", check=False)
    assert not (tmp_path / "other").exists()


def _broken(kind: str, folder: Path) -> Path:
    path = _save(folder, _source(), external=kind in ("short", "missing", "unsafe"))
    if kind == "none":
        return folder / "none.onnx"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(b"\x3a\xff\xff\xff\xff\x0fgarbage")
    elif kind == "short":
        os.truncate(folder / "w.bin", 100)
    elif kind == "missing":
        (folder / "w.bin").unlink()
    elif kind == "unsafe":
        path.write_bytes(path.read_bytes().replace(b"w.bin", b"../ww"))
    elif kind == "deep":
        inner = graph([node("Neg", ["x"], ["o"])], [], [value("o", None)])
        for _ in range(30):
            inner = graph([branches(inner, inner, "o", "k")], [], [value("o", None)])
            if len(inner.SerializeToString()) > 200_000:
                inner.node[0].attribute.pop()
        path.write_bytes(model([branches(inner, inner, "y")], [_X, value("k", [], B)], [_Y]).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("none", BundleFileMissing),
        ("cut", OnnxMalformed),
        ("empty", OnnxMalformed),
        ("garbage", OnnxMalformed),
        ("short", OnnxMalformed),
        ("missing", OnnxExternalMissing),
        ("unsafe", OnnxUnsafePath),
        ("deep", OnnxMalformed),
    ],
)
def test_damaged_and_hostile_models(tmp_path: Path, kind: str, error: type[OnnxError]) -> None:
    """Each ends in an error of ours, and nothing is written."""
    path = _broken(kind, tmp_path / "given")
    with pytest.raises(error):
        canonicalize(path, tmp_path / "o.onnx")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["given"]


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes(tmp_path: Path, seed: int) -> None:
    """An error of ours or a model; never anything else, never a file that is half there."""
    source = _save(tmp_path / "given", _source()).read_bytes()
    rng = np.random.default_rng(seed)
    data = bytearray(source)
    where = [i for i in range(len(data)) if i < 300 or i > len(data) - 1500]
    for i in rng.choice(where, 4):
        data[i] = rng.integers(256)
    (tmp_path / "given/m.onnx").write_bytes(bytes(data))
    try:
        canonicalize(tmp_path / "given/m.onnx", tmp_path / "o.onnx")
    except (OnnxError, ModelUnsupported):
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["given"]
    else:
        onnx.load(str(tmp_path / "o.onnx"))


def test_tensors_that_stay_in_attributes_are_whole(tmp_path: Path) -> None:
    """Large ones as well: of foreign nodes, sparse, in lists."""
    numbers = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    one = tensor("t", numbers)
    sparse = onnx.helper.make_sparse_tensor(tensor("sv", numbers), tensor("si", np.arange(5000), np.int64), [9000])
    foreign = node("Thing", ["x"], ["y"], domain="org.example", one=one, many=[one, one], sparse=sparse)
    source = model([foreign], [_X], [_Y], domains={"org.example": 1})
    for external in (False, True):
        path = _save(tmp_path / f"given{external}", source, external=external)
        canonicalize(path, tmp_path / "o.onnx", check=False, force=True)
        assert not (tmp_path / "o.onnx.data").exists()
        (made,) = onnx.load(str(tmp_path / "o.onnx")).graph.node
        found = {a.name: a for a in made.attribute}
        tensors = [found["one"].t, *found["many"].tensors, found["sparse"].sparse_tensor.values]
        assert all(t.raw_data == numbers.tobytes() and not t.external_data for t in tensors)


def test_training_information_is_left_out(tmp_path: Path) -> None:
    """And mentioned."""
    source = model([node("Neg", ["x"], ["y"])], [value("x", [2], D)], [value("y", [2], D)])
    source.training_info.add().algorithm.CopyFrom(graph([node("Neg", ["x"], ["q"])]))
    assert "Training information was left out." in canonical(tmp_path, source).report.notes
