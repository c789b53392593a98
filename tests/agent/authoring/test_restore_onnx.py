"""Restoring a stripped model: after tools have changed it, into folders that are not empty, and from the wrong model."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refit_agent.authoring import restore_onnx, strip_onnx
from refit_agent.authoring.errors import (
    ModelUnsupported,
    NotRestorable,
    OutputInTheWay,
    OutputRefused,
    OutputUnwritable,
)
from refit_agent.authoring.stripping import restore as module
from refit_agent.authoring.stripping.marker import KEY
from refit_agent.errors import BundleError, OnnxExternalMissing

RNG = np.random.default_rng(5)


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape or (8, 8)).astype(np.float32), name)


def external(tensor: TensorProto, folder: Path, location: str) -> TensorProto:
    """The tensor with its data at the end of another file."""
    path = folder / location
    path.parent.mkdir(parents=True, exist_ok=True)
    offset = path.stat().st_size if path.exists() else 0
    with open(path, "ab") as file:
        file.write(tensor.raw_data)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    onnx.external_data_helper.set_external_data(tensor, location, offset, length) if tensor.HasField(
        "raw_data"
    ) else None
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def write(path: Path, tensors: list[TensorProto], nodes: list[onnx.NodeProto] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [helper.make_node("Constant", [], ["c"], value=weight("inner"))] if nodes is None else nodes
    graph = helper.make_graph(body, "g", [], [], tensors)
    path.write_bytes(helper.make_model(graph, ir_version=9).SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a weight inside, two outside, a small table outside, and a Constant."""
    folder = tmp_path / "in"
    table = numpy_helper.from_array(np.arange(9, dtype=np.int64), "table")
    outside = [external(weight("b"), folder, "w.bin"), external(weight("d"), folder, "more/v.bin")]
    return write(folder / "m.onnx", [weight("a"), *outside, external(table, folder, "w.bin")])


@pytest.fixture
def sent(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "sent" / "s.onnx"
    path.parent.mkdir()
    strip_onnx(model, path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.onnx"


def change(path: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    proto = onnx.load(str(path), load_external_data=False)
    edit(proto)
    path.write_bytes(proto.SerializeToString())


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def refused(sent: Path, model: Path, out: Path, kind: type[Exception], words: str) -> None:
    """The error, and that it left nothing."""
    before = names(out.parent)
    with pytest.raises(kind, match=words):
        restore_onnx(sent, model, out)
    assert names(out.parent) == before


# ---------------------------------------------------------------- copies that a tool has changed


def test_what_a_tool_changed_stays(model: Path, sent: Path, out: Path) -> None:
    """Names, nodes and small tensors that it has replaced; weights and what lay outside come from the original."""

    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.name = "renamed"
        proto.graph.node.insert(0, helper.make_node("Identity", ["a"], ["a2"]))
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "small"))
        proto.metadata_props.add(key="tool", value="1")

    change(sent, edit)
    back = restore_onnx(sent, model, out)
    assert not back.identical and back.restored == 4 and back.external == ("w.bin", "more/v.bin")
    wanted = onnx.load(str(model), load_external_data=False)
    edit(wanted)
    assert onnx.load(str(out), load_external_data=False) == wanted
    assert (out.parent / "more/v.bin").read_bytes() == (model.parent / "more/v.bin").read_bytes()
    assert KEY.encode() not in out.read_bytes()


def test_a_value_that_a_tool_changed_is_not_taken_back(model: Path, sent: Path, out: Path) -> None:
    """A small table lies in the copy; with other values than the original's it stays there."""
    other = np.arange(1, 10, dtype=np.int64)
    change(sent, lambda p: p.graph.initializer[3].CopyFrom(numpy_helper.from_array(other, "table")))
    restore_onnx(sent, model, out)
    assert numpy_helper.to_array(onnx.load(str(out)).graph.initializer[3]).tolist() == other.tolist()


def test_a_constant_that_became_an_initializer(model: Path, sent: Path, out: Path) -> None:
    """It is found by its name, and keeps the one that it has now."""

    def edit(proto: onnx.ModelProto) -> None:
        moved = proto.graph.initializer.add()
        moved.CopyFrom(proto.graph.node[0].attribute[0].t)
        moved.name = "c"
        del proto.graph.node[:]

    change(sent, edit)
    restore_onnx(sent, model, out)
    was = onnx.load(str(model)).graph.node[0].attribute[0].t
    now = next(t for t in onnx.load(str(out)).graph.initializer if t.name == "c")
    assert numpy_helper.to_array(now).tolist() == numpy_helper.to_array(was).tolist()


def test_zeros_that_a_tool_took_in(tmp_path: Path, model: Path, out: Path) -> None:
    """A tool that loads a zeroed copy and saves it writes all data inside; the original's place comes back."""
    sent = tmp_path / "z.onnx"
    strip_onnx(model, sent, zeros=True)
    onnx.save(onnx.load(str(sent)), str(sent))
    back = restore_onnx(sent, model, out)
    assert back.restored == 4
    assert onnx.load(str(out), load_external_data=False) == onnx.load(str(model), load_external_data=False)


def test_weights_that_are_gone_are_named(model: Path, sent: Path, out: Path) -> None:
    """A tool may have dropped what nobody used."""
    change(sent, lambda p: p.graph.initializer.pop(0))
    back = restore_onnx(sent, model, out)
    assert back.missing == ("a",) and back.restored == 3


def inline(name: str, tensor: TensorProto) -> Callable[[onnx.ModelProto], object]:
    def edit(proto: onnx.ModelProto) -> None:
        tensor.name = name
        proto.graph.initializer.append(tensor)

    return edit


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda p: setattr(p.graph.initializer[0], "name", "z"), "'z' has its values in another file"),
        (lambda p: setattr(p.graph.initializer[0], "data_type", 6), "'a' has the type float32 there, and int32"),
        (lambda p: p.graph.initializer[0].dims.append(1), r"'a' has the shape \(8, 8\) there, and \(8, 8, 1\)"),
        (inline("new", weight("new")), "'new' is a weight of the stripped copy, and there is no such tensor"),
        (lambda p: p.ClearField("metadata_props"), "no mark of strip-onnx"),
        (lambda p: p.metadata_props.add(key=KEY, value="{}"), "several marks"),
        (lambda p: setattr(p.metadata_props[0], "value", "{"), "damaged"),
        (lambda p: setattr(p.metadata_props[0], "value", '{"version":2}'), "version 2"),
        (lambda p: setattr(p.metadata_props[0], "value", "[" * 100_000), "damaged"),
    ],
)
def test_changes_that_cannot_be(
    model: Path, sent: Path, out: Path, edit: Callable[[onnx.ModelProto], object], words: str
) -> None:
    """A weight without its twin, or one of another type; a mark that is gone or makes no sense."""
    change(sent, edit)
    refused(sent, model, out, NotRestorable, words)


def test_the_wrong_model(model: Path, sent: Path, out: Path) -> None:
    """One weight more or less, or other external data."""
    data = bytearray((model.parent / "w.bin").read_bytes())
    data[0] ^= 1
    (model.parent / "w.bin").write_bytes(data)
    refused(sent, model, out, NotRestorable, "external data 'w.bin' are not those")
    data[0] ^= 1
    (model.parent / "w.bin").write_bytes(data)
    change(model, lambda p: setattr(p.graph, "name", "h"))
    refused(sent, model, out, NotRestorable, "made from a file with the SHA-256")
    refused(sent, sent, out, OnnxExternalMissing, "s.onnx.zeros")


def test_a_mark_that_lies(model: Path, sent: Path, out: Path) -> None:
    """Other external data than the model has, or a hash that the result does not have."""
    change(sent, lambda p: setattr(p.metadata_props[0], "value", p.metadata_props[0].value.replace('"external":[', '"external":[{"size":1,"sha256":"' + "0" * 64 + '"},')))  # fmt: skip
    refused(sent, model, out, NotRestorable, "lists 3 files of external data, and there are 2")


def test_the_result_is_compared_with_the_original(
    model: Path, sent: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was checked before: what was written must have the original's hash."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    lie = "0" * 64
    change(sent, lambda p: setattr(p.metadata_props[0], "value", p.metadata_props[0].value.replace(digest, lie)))
    refused(sent, model, out, NotRestorable, f"SHA-256 {lie}")
    monkeypatch.setattr(module, "_require_original", lambda *_: None)
    refused(sent, model, out, NotRestorable, "not the original, bit for bit")


# ---------------------------------------------------------------- where it is written


def test_beside_the_original(model: Path, sent: Path) -> None:
    """External data that are there already stay where they are."""
    before = {p: p.stat().st_mtime_ns for p in model.parent.rglob("*") if p.is_file()}
    back = restore_onnx(sent, model, model.parent / "again.onnx")
    assert back.identical and (model.parent / "again.onnx").read_bytes() == model.read_bytes()
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_another_file_in_the_place_of_external_data(model: Path, sent: Path, out: Path) -> None:
    """It is not overwritten, equal length or not; an equal one stays."""
    place = out.parent / "w.bin"
    for data in (b"mine", bytes((model.parent / "w.bin").stat().st_size)):
        place.write_bytes(data)
        refused(sent, model, out, OutputRefused, "another file has this name")
        assert place.read_bytes() == data
    shutil.copy(model.parent / "w.bin", place)
    inode = place.stat().st_ino
    assert restore_onnx(sent, model, out).identical and place.stat().st_ino == inode


def test_links_lead_nowhere_else(tmp_path: Path, model: Path, sent: Path, out: Path) -> None:
    """A link in the target's folder is no way out of it, for a folder or for a file, dangling or not."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (out.parent / "more").symlink_to(outside)
    refused(sent, model, out, OutputRefused, "symbolic link")
    (out.parent / "more").unlink()
    (out.parent / "w.bin").symlink_to(outside / "new")
    refused(sent, model, out, OutputRefused, "symbolic link")
    assert names(outside) == []


@pytest.mark.parametrize("which", ["model", "stripped", "weights"])
@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_no_input_is_overwritten(tmp_path: Path, model: Path, sent: Path, which: str, link: str) -> None:
    """By its own name, by a symbolic or a hard link."""
    source = {"model": model, "stripped": sent, "weights": model.parent / "w.bin"}[which]
    target = source if link == "same" else source.parent / "alias"
    if link == "symbolic":
        target.symlink_to(source)
    elif link == "hard":
        target.hardlink_to(source)
    before = source.read_bytes()
    refused(sent, model, target, OutputRefused, "the same file as")
    if which != "stripped":
        with pytest.raises(OutputRefused, match="the same file as"):
            strip_onnx(model, target)
    assert source.read_bytes() == before


def test_a_target_where_external_data_belong(tmp_path: Path, model: Path, sent: Path) -> None:
    """The model cannot be written over its own weights."""
    (tmp_path / "out").mkdir()
    refused(sent, model, tmp_path / "out" / "w.bin", OutputRefused, "external data belong there")


def test_a_target_that_is_no_file(tmp_path: Path, model: Path, sent: Path) -> None:
    """Devices, folders, and what would lie below a file."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for target in (tmp_path / "folder", tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(OutputRefused, match="not a regular file"):
            restore_onnx(sent, model, target)
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "plain2").mkdir()
    (tmp_path / "plain2" / "more").write_bytes(b"")
    refused(sent, model, tmp_path / "plain2" / "m.onnx", OutputUnwritable, "more")


def test_a_folder_that_is_not_there(tmp_path: Path, model: Path, sent: Path) -> None:
    """Is made, with those above it."""
    back = restore_onnx(sent, model, tmp_path / "nowhere" / "at" / "m.onnx")
    assert back.identical and names(tmp_path / "nowhere" / "at") == ["m.onnx", "more", "more/v.bin", "w.bin"]


def test_a_file_at_the_target_stays(model: Path, sent: Path, out: Path) -> None:
    """Unless it is to be replaced."""
    out.write_bytes(b"old")
    refused(sent, model, out, OutputInTheWay, r"m\.onnx is there already\.")
    with pytest.raises(OutputInTheWay):
        restore_onnx(sent, model, out, on_progress=lambda *_: pytest.fail("gigabytes were read in vain"))
    assert out.read_bytes() == b"old"


def test_a_file_at_the_target_is_replaced_only_at_the_end(model: Path, sent: Path, out: Path) -> None:
    """Whatever raises in between, it is the old one or the new one."""
    out.write_bytes(b"old")
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_onnx(sent, model, out, force=True, on_progress=stop)
    assert out.read_bytes() == b"old" and names(out.parent) == ["m.onnx"]
    calls.clear()
    restore_onnx(sent, model, out, force=True, on_progress=lambda done, total: calls.append((done, total)))
    assert out.read_bytes() == model.read_bytes()
    assert calls == sorted(calls) and all(done <= total for done, total in calls)


def test_a_file_that_comes_in_between(model: Path, sent: Path, out: Path) -> None:
    """Somebody else's file of that name is not replaced, and what was placed already goes again."""

    def intrude(done: int, total: int) -> None:
        (out.parent / "more").mkdir(exist_ok=True)
        (out.parent / "more" / "v.bin").write_bytes(b"theirs")

    steps = iter(range(10**6))
    with pytest.raises(OutputRefused, match="meanwhile"):
        restore_onnx(sent, model, out, on_progress=lambda *a: intrude(*a) if next(steps) == 4 else None)
    assert names(out.parent) == ["more", "more/v.bin"] and (out.parent / "more/v.bin").read_bytes() == b"theirs"


def test_a_model_that_changes_meanwhile(model: Path, sent: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is not what is there any more: nothing is written."""
    real = module.body_sha256

    def touched(*arguments: object) -> str:
        os.utime(model.parent / "w.bin", (1, 1))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "body_sha256", touched)
    refused(sent, model, out, ModelUnsupported, "changed while it was read")


def test_a_full_disk(model: Path, sent: Path, mounted: Callable[[str], Path]) -> None:
    """An error in our words, and nothing is left."""
    big = model.parent / "w.bin"
    with open(big, "ab") as file:
        file.write(os.urandom(4 << 20))
    strip_onnx(model, sent, force=True)
    disk = mounted("size=2m")
    refused(sent, model, disk / "m.onnx", OutputUnwritable, "No space left")
    (model.parent / "more" / "v.bin").unlink()
    write(model, [numpy_helper.from_array(np.full(4 << 20, 7, np.int64), "table")])
    with pytest.raises(OutputUnwritable, match="No space left"):
        strip_onnx(model, disk / "s.onnx")
    assert names(disk) == []


def test_damaged_copies(model: Path, sent: Path, out: Path) -> None:
    """Cut off anywhere, it is refused: as malformed, or for its missing mark."""
    data = sent.read_bytes()
    for size in range(0, len(data), 7):
        sent.write_bytes(data[:size])
        refused(sent, model, out, BundleError, "s.onnx")
