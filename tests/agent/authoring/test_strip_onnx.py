"""Stripping an ONNX file, and restoring it: the two together change nothing, whatever the file looks like."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bundles import SIZE, make_onnx
from refit_agent.authoring import restore_onnx, strip_onnx, zeroed_copy
from refit_agent.authoring.errors import ModelUnsupported, OutputInTheWay, OutputRefused
from refit_agent.authoring.stripping.tensors import OnnxFile, TensorWalk
from refit_agent.weights import OnnxWeights
from refit_agent.weights import wire_writer as pb
from wild_onnx import Wild, wild_models

#: Type -> its number and the bytes of an element.
WEIGHTS = {"float32": (1, 4), "float16": (10, 2), "int8": (3, 1), "float8e4m3fn": (17, 1), "complex64": (14, 8)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=150, deadline=None)
@given(wild=wild_models(), zeros=st.booleans(), keep_below=st.sampled_from([0, 64, 64, 500]), integers=st.booleans())
def test_strip_then_restore_is_the_identity(wild: Wild, zeros: bool, keep_below: int, integers: bool) -> None:
    """Bit for bit, external data included, for every storage form and type; the original is not touched."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = wild.write(folder / "in")
        before = files_of(folder / "in")
        (folder / "sent").mkdir()
        sent = folder / "sent" / "s.onnx"
        made = strip_onnx(model, sent, zeros=zeros, keep_below=keep_below, integers=integers)
        assert made.size == sent.stat().st_size
        assert sorted(files_of(folder / "sent")) == ["s.onnx"] + ["s.onnx.zeros"] * (made.zeros_path is not None)
        (folder / "out").mkdir()
        back = restore_onnx(sent, model, folder / "out" / "m.onnx")
        assert back.identical and back.restored == len(made.stripped) and not back.missing
        used = {os.path.normpath(location) for location in back.external}
        assert files_of(folder / "out") == {k: v for k, v in before.items() if k == "m.onnx" or k in used}
        assert files_of(folder / "in") == before


@settings(max_examples=150, deadline=None)
@given(wild=wild_models(), zeros=st.booleans(), integers=st.booleans())
def test_what_loses_its_values_reads_as_zeros_and_the_rest_as_before(wild: Wild, zeros: bool, integers: bool) -> None:
    """Checked with the reader of weights, on the zeros form and on the small one beside a file of zeros."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = wild.write(folder / "in")
        sent = folder / "s.onnx"
        made = strip_onnx(model, sent, zeros=zeros, integers=integers)
        if made.zeros_location and not zeros:
            with open(folder / made.zeros_location, "wb") as file:
                file.truncate(made.zeros_size)
        stripped = {tensor.place.key for tensor in made.stripped}
        with OnnxFile(str(model)) as one, OnnxFile(str(sent)) as other:
            places = {p.key: p for p in TensorWalk(one.wire).places()}
            for place in TensorWalk(other.wire).places():
                was = places.pop(place.key)
                if place.number:
                    continue
                ours, theirs = other.ref(place), one.ref(was)
                assert (ours.dtype, ours.shape, ours.nbytes) == (theirs.dtype, theirs.shape, theirs.nbytes)
                if zeros or not (place.key in stripped or theirs.payload.external):
                    assert ours.payload.form == theirs.payload.form
                    assert (ours.payload.external is None) == (theirs.payload.external is None)
            assert not places
        with OnnxWeights(model) as weights, OnnxWeights(sent) as bare:
            weights.model, bare.model  # noqa: B018 - reads and checks all of it
            assert list(weights) == list(bare)
            lost = {tensor.name for tensor in made.stripped}
            for key, ref in weights.items():
                if ref.kind == "sparse" or ref.dtype == "string":
                    continue
                array, now = ref.array(), bare[key].array()
                if ref.name in lost:
                    assert now.shape == array.shape and not now.tobytes().strip(b"\0")
                else:
                    assert now.tobytes() == array.tobytes()


@settings(max_examples=100, deadline=None)
@given(wild=wild_models(overlong=False), zeros=st.booleans())
def test_a_copy_that_a_tool_wrote_anew_gets_its_weights_by_name(wild: Wild, zeros: bool) -> None:
    """Another order of the fields and another doc string: the rest is the original, as the onnx package reads it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = wild.write(folder / "in")
        sent = folder / "s.onnx"
        made = strip_onnx(model, sent, zeros=zeros)
        proto = onnx.ModelProto.FromString(sent.read_bytes())
        proto.doc_string = "seen by a tool"
        sent.write_bytes(proto.SerializeToString(deterministic=True))
        (folder / "out").mkdir()
        back = restore_onnx(sent, model, folder / "out" / "m.onnx")
        assert not back.identical and back.restored == len(made.stripped) and not back.missing
        wanted = onnx.ModelProto.FromString(wild.model)
        wanted.doc_string = "seen by a tool"
        assert onnx.ModelProto.FromString((folder / "out" / "m.onnx").read_bytes()) == wanted


def save(path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], **more: object) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("org.example", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=10, **more).SerializeToString())


def reasons(model: Path, **rule: object) -> dict[str, str]:
    """Label of each tensor -> why it stays."""
    made = strip_onnx(model, model.with_name("s.onnx"), force=True, **rule)  # type: ignore[arg-type]
    return {t.place.label: t.stays for t in (*made.stripped, *made.kept)}


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_weights_go_from_64_bytes_on(tmp_path: Path, dtype: str) -> None:
    """What counts are the bytes, whatever the type."""
    number, width = WEIGHTS[dtype]
    tensors = [
        TensorProto(name=f"w{size}", data_type=number, dims=[size // width], raw_data=bytes(range(1, size + 1)))
        for size in (56, 64)
    ]
    save(tmp_path / "m.onnx", [], tensors)
    assert reasons(tmp_path / "m.onnx") == {"w56": "small", "w64": ""}
    assert reasons(tmp_path / "m.onnx", keep_below=56) == {"w56": "", "w64": ""}
    assert reasons(tmp_path / "m.onnx", keep_below=65) == {"w56": "small", "w64": "small"}


def test_what_a_builder_bakes_in_stays(tmp_path: Path) -> None:
    """Integers and strings, quantization parameters, attributes of operators; integers go on request."""
    tensors = [
        numpy_helper.from_array(np.arange(1, 201, dtype=np.int64), "table"),
        numpy_helper.from_array(np.arange(1, 101, dtype=np.int64), "axes"),
        numpy_helper.from_array(np.ones(2000, bool), "mask"),
        numpy_helper.from_array(np.full(64, 0.5, np.float32), "scale"),
        numpy_helper.from_array(np.full(64, 3, np.int8), "zero"),
        numpy_helper.from_array(np.full((64, 9), 3, np.int8), "weight"),
        TensorProto(name="words", data_type=8, dims=[40], string_data=[b"token"] * 40),
    ]
    plugin = helper.make_node("Plugin", ["x"], ["p"], domain="org.example", table=tensors[3], ids=list(range(600)))
    quantize = helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["y"], axis=0)
    save(tmp_path / "m.onnx", [plugin, quantize], tensors)
    found = {
        "table": "integer",
        "axes": "integer",
        "mask": "integer",
        "scale": "quantization",
        "zero": "quantization",
        "weight": "",
        "words": "string",
        "p / table": "attribute",
    }
    everything = reasons(tmp_path / "m.onnx")
    listed = everything.pop("p / ids", "attribute")
    assert everything == found and listed == "attribute"
    changed = {"table": "", "mask": "", "axes": "small"}
    assert {k: v for k, v in reasons(tmp_path / "m.onnx", integers=True).items() if k != "p / ids"} == found | changed


def test_indices_of_a_sparse_tensor_stay(tmp_path: Path) -> None:
    """Zeros in their place would make one element of all, and no sound tensor."""
    values = numpy_helper.from_array(np.ones(300, np.float32), "s")
    indices = numpy_helper.from_array(np.arange(300, dtype=np.int64), "")
    model = onnx.ModelProto(ir_version=10)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1000]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert reasons(tmp_path / "m.onnx", integers=True, zeros=True) == {"s": "", "s / indices": "indices"}
    sparse = onnx.load(str(tmp_path / "s.onnx")).graph.sparse_initializer[0]
    assert numpy_helper.to_array(sparse.indices).tolist() == list(range(300))
    assert numpy_helper.to_array(sparse.values).tolist() == [0.0] * 300


def test_a_zeroed_model_runs_and_gives_zeros(tmp_path: Path) -> None:
    """ONNX Runtime and the checker take it for an ordinary model, and so they do the small form beside zeros."""
    make_onnx(tmp_path / "m.onnx", external="w1.bin")
    x = np.ones((2, SIZE), np.float32)
    for zeros in (True, False):
        made = strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", zeros=zeros, force=True)
        if not zeros:
            (tmp_path / "s.onnx.zeros").unlink()
            assert onnx.load(str(tmp_path / "s.onnx"), load_external_data=False).graph.initializer[0].dims
            with open(tmp_path / made.zeros_location, "wb") as file:
                file.truncate(made.zeros_size)
        onnx.checker.check_model(str(tmp_path / "s.onnx"), full_check=True)
        session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
        assert not session.run(["y"], {"x": x})[0].any()


def test_a_zeroed_copy_keeps_every_field(tmp_path: Path) -> None:
    """TensorRT 8.6 counts what it converts or loads: each tensor stays in the field in which it was."""
    forms = [
        helper.make_tensor("raw", TensorProto.FLOAT, [64], np.ones(64, np.float32).tobytes(), raw=True),
        helper.make_tensor("float", TensorProto.FLOAT, [64], [1.0] * 64),
        helper.make_tensor("half", TensorProto.FLOAT16, [64], [1.0] * 64),
        helper.make_tensor("double", TensorProto.DOUBLE, [64], [1.0] * 64),
        helper.make_tensor("byte", TensorProto.INT8, [64], [-1] * 64),
    ]
    save(tmp_path / "m.onnx", [helper.make_node("Constant", [], ["y"], value_floats=[1.0] * 64)], forms)
    made = zeroed_copy(tmp_path / "m.onnx", tmp_path / "z.onnx")
    assert len(made.stripped) == 6 and made.zeros_path is None
    proto = onnx.load(str(tmp_path / "z.onnx"))
    assert not proto.metadata_props
    for before, after in zip(forms, proto.graph.initializer, strict=True):
        assert [f.number for f, _ in before.ListFields()] == [f.number for f, _ in after.ListFields()]
        assert not numpy_helper.to_array(after).any()
    assert list(proto.graph.node[0].attribute[0].floats) == [0.0] * 64


def test_the_length_of_a_varint_tells_nothing(tmp_path: Path) -> None:
    """A zero takes one byte, whatever stood there."""
    sizes = []
    for value in (1, -1):
        save(tmp_path / "m.onnx", [], [helper.make_tensor("b", TensorProto.INT8, [64], [value] * 64)])
        sizes.append(zeroed_copy(tmp_path / "m.onnx", tmp_path / "z.onnx").size)
    assert sizes[0] == sizes[1]


def test_external_data(tmp_path: Path) -> None:
    """What shared a range shares one; overlapping ranges get their own; what stays has its values; no old name is left."""
    rng = np.random.default_rng(0)
    data = rng.integers(1, 255, 4096, np.uint8).tobytes()
    (tmp_path / "secret.bin").write_bytes(data)

    def external(name: str, dtype: int, count: int, offset: int, length: int) -> TensorProto:
        tensor = TensorProto(name=name, data_type=dtype, dims=[count], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "secret.bin"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return tensor

    tensors = [
        external("a", 1, 256, 0, 1024),
        external("tied", 1, 256, 0, 1024),
        external("overlaps", 1, 256, 512, 1024),
        external("ids", 7, 200, 0, 1600),
    ]
    save(tmp_path / "m.onnx", [], tensors)
    made = strip_onnx(tmp_path / "m.onnx", tmp_path / "z.onnx", zeros=True)
    with OnnxWeights(tmp_path / "z.onnx") as weights:
        offsets = {name: weights[name].offset for name in weights}
        assert offsets["a"] == offsets["tied"]
        ranges = sorted((offsets[name], offsets[name] + weights[name].nbytes) for name in ("a", "overlaps", "ids"))
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ranges))
        assert weights["ids"].array().tobytes() == data[:1600]
        assert not any(weights[name].array().any() for name in ("a", "overlaps"))
    assert made.zeros_path == str(tmp_path / "z.onnx.zeros")
    strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx")
    for name in ("z.onnx", "s.onnx"):
        content = (tmp_path / name).read_bytes()
        assert b"secret.bin" not in content and data[1600:1700] not in content and data[512:576] in data
    with OnnxWeights(tmp_path / "s.onnx") as weights:
        assert weights["ids"].array().tobytes() == data[:1600] and weights["ids"].file == tmp_path / "s.onnx"


def test_zeros_are_holes(tmp_path: Path) -> None:
    """A zeroed copy takes next to no disk where the file system has holes."""
    tensor = helper.make_tensor("w", TensorProto.UINT8, [8 << 20], os.urandom(8 << 20), raw=True)
    save(tmp_path / "m.onnx", [], [tensor])
    with open(tmp_path / "probe", "wb") as file:
        file.truncate(8 << 20)
    if (tmp_path / "probe").stat().st_blocks:
        pytest.skip("this file system has no holes")
    zeroed_copy(tmp_path / "m.onnx", tmp_path / "z.onnx")
    status = (tmp_path / "z.onnx").stat()
    assert status.st_size > 8 << 20 and status.st_blocks * 512 < 1 << 20


def test_a_model_of_more_than_2_gib(tmp_path: Path) -> None:
    """Protobuf itself stops at 2 GiB; the copies do not care. The file has a hole, so that this test needs no disk."""
    count = (2 << 30) + 4096
    head = pb.tensor_head("w", "uint8", (count,)) + pb.varint(9 << 3 | 2) + pb.varint(count)
    record = pb.varint(5 << 3 | 2) + pb.varint(len(head) + count) + head
    behind = pb.blob(5, pb.tensor("v", "uint8", (70,), bytes(range(1, 71))))
    with open(tmp_path / "m.onnx", "wb") as file:
        file.write(pb.varint(7 << 3 | 2) + pb.varint(len(record) + count + len(behind)) + record)
        file.seek(count, 1)
        file.write(behind)
    for made in (
        zeroed_copy(tmp_path / "m.onnx", tmp_path / "z.onnx"),
        strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx"),
    ):
        assert [tensor.nbytes for tensor in made.stripped] == [count, 70]
    assert (tmp_path / "z.onnx").stat().st_size == (tmp_path / "m.onnx").stat().st_size
    with OnnxWeights(tmp_path / "z.onnx") as weights:
        assert weights["w"].shape == (count,) and not weights["v"].array().any()
    assert (tmp_path / "s.onnx").stat().st_size < 1000


@pytest.mark.parametrize("name", ["s.onnx", "s.onnx.zeros"])
def test_a_file_that_is_there_stays(tmp_path: Path, name: str) -> None:
    """Unless it is to be replaced; the small form writes no zeros, and so finds none in its way."""
    make_onnx(tmp_path / "m.onnx", external="w1.bin")
    (tmp_path / name).write_bytes(b"mine")
    steps: list[tuple[int, int]] = []
    with pytest.raises(OutputInTheWay, match=rf"/{name} is there already\."):
        strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", zeros=True, on_progress=lambda *step: steps.append(step))
    assert steps == []  # not after gigabytes have been written
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == sorted(["m.onnx", "w1.bin", name])
    if name == "s.onnx.zeros":
        assert strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx").size
    assert (tmp_path / name).read_bytes() == b"mine"
    assert strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", zeros=True, force=True).zeros_path
    assert (tmp_path / name).read_bytes() != b"mine"


def test_a_file_that_comes_while_the_copy_is_written(tmp_path: Path) -> None:
    """It was not there to be refused, and is somebody's all the same."""
    make_onnx(tmp_path / "m.onnx")
    with pytest.raises(OutputRefused, match="meanwhile"):
        strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", on_progress=lambda *_: (tmp_path / "s.onnx").touch())
    assert (tmp_path / "s.onnx").read_bytes() == b""


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Is made, with those above it, and goes again if nothing comes of it."""
    make_onnx(tmp_path / "m.onnx")

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        strip_onnx(tmp_path / "m.onnx", tmp_path / "none/at/all/s.onnx", on_progress=stop)
    assert not (tmp_path / "none").exists()
    strip_onnx(tmp_path / "m.onnx", tmp_path / "none/at/all/s.onnx", zeros=True)
    assert (tmp_path / "none/at/all/s.onnx").exists()


def test_a_stripped_model_is_not_stripped_again(tmp_path: Path) -> None:
    """It would become a copy that nothing can restore."""
    make_onnx(tmp_path / "m.onnx")
    strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", zeros=True)
    with pytest.raises(ModelUnsupported, match="stripped copy already"):
        strip_onnx(tmp_path / "s.onnx", tmp_path / "t.onnx")
    assert not (tmp_path / "t.onnx").exists()
