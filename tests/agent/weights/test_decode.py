"""Every data type in every encoding, against the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from refit_agent.errors import OnnxMalformed
from refit_agent.weights import OnnxWeights
from refit_agent.weights.dtypes import FIXED_ENTRY_BYTES, TYPES

from .onnx_bytes import graph, model, num, sub, tensor, varint

CODES = [code for code in TYPES if code != 8]
SHAPES = [(), (0,), (1,), (3,), (2, 3), (5, 1, 3), (4, 0, 2)]


def payload(code: int, shape: tuple[int, ...], seed: int) -> bytes:
    """Random bytes that are a legal raw_data."""
    count = int(np.prod(shape, dtype=np.int64))
    dtype = TYPES[code]
    data = np.random.default_rng(seed).integers(0, 256, dtype.byte_count(count), dtype=np.uint8)
    if dtype.name == "bool":
        data &= 1
    if dtype.field in FIXED_ENTRY_BYTES:  # no NaN: its way through Python floats changes a signaling one in the oracle
        size = FIXED_ENTRY_BYTES[dtype.field]
        data[size - 1 :: size] &= 0xBF
    used = count * dtype.bits % 8
    if used:  # bits behind the last element are zero
        data[-1] &= (1 << used) - 1
    return data.tobytes()


def entries(code: int, raw: bytes, count: int) -> list[int | bytes]:
    """What the typed field holds for ``raw``: integers, or the bytes of fixed-size entries."""
    dtype = TYPES[code]
    if dtype.field in FIXED_ENTRY_BYTES:
        size = FIXED_ENTRY_BYTES[dtype.field]
        return [raw[i : i + size] for i in range(0, len(raw), size)]
    if dtype.bits == 6:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: count * 6].reshape(count, 6)
        return [int(v) for v in np.packbits(bits, axis=1, bitorder="little").ravel()]
    if dtype.name in ("int8", "int16", "int32", "int64", "uint64", "uint32"):
        return [int(v) for v in np.frombuffer(raw, dtype.storage)]
    return [int(v) for v in np.frombuffer(raw, f"<u{max(dtype.bits, 8) // 8}")]


def encoded(code: int, shape: tuple[int, ...], raw: bytes, form: str) -> bytes:
    dtype = TYPES[code]
    if form == "raw":
        return tensor("w", shape, code, raw)
    values = entries(code, raw, int(np.prod(shape, dtype=np.int64)))
    fixed = FIXED_ENTRY_BYTES.get(dtype.field)
    blobs = [v if isinstance(v, bytes) else varint(v) for v in values]
    if form == "unpacked":
        tag = varint(dtype.field << 3 | {4: 5, 8: 1, None: 0}[fixed])
        return tensor("w", shape, code, more=b"".join(tag + blob for blob in blobs))
    if form == "packed":
        return tensor("w", shape, code, more=sub(dtype.field, b"".join(blobs)))
    half = len(blobs) // 2
    return tensor(
        "w", shape, code, more=sub(dtype.field, b"".join(blobs[:half])) + sub(dtype.field, b"".join(blobs[half:]))
    )


def oracle(proto: onnx.TensorProto, code: int, base: str = "") -> bytes:
    """The bytes of the tensor as ONNX stores them in raw_data, by way of onnx's own decoder."""
    array = numpy_helper.to_array(proto, base)
    dtype = TYPES[code]
    if dtype.bits >= 8:
        return array.tobytes()
    values = array.view(np.uint8).ravel() & ((1 << dtype.bits) - 1)
    bits = np.unpackbits(values[:, None], axis=1, count=dtype.bits, bitorder="little")
    return np.packbits(bits.ravel(), bitorder="little").tobytes()


def check(path, proto: onnx.TensorProto, code: int, shape: tuple[int, ...], form: str) -> None:
    dtype = TYPES[code]
    with OnnxWeights(path) as weights:
        ref = weights["w"]
        array = ref.array()
        want = oracle(proto, code, str(path.parent))
        assert array.tobytes() == want
        assert ref.nbytes == len(want) == array.nbytes
        assert (ref.dtype, ref.shape, ref.count) == (dtype.name, shape, int(np.prod(shape, dtype=np.int64)))
        assert array.shape == (shape if dtype.bits >= 8 else (len(want),))
        assert array.dtype == np.dtype(dtype.storage)
        assert not array.flags.writeable
        one_chunk = form == "packed" or (form == "chunks" and dtype.entry_count(ref.count) == 1)
        contiguous = form in ("raw", "external") or (one_chunk and dtype.field in FIXED_ENTRY_BYTES)
        assert ref.is_view == (contiguous and ref.nbytes > 0)
        if ref.is_view:
            assert ref.file.read_bytes()[ref.offset : ref.offset + ref.nbytes] == want
            assert array.ctypes.data == ref.array().ctypes.data


@pytest.mark.parametrize("form", ["raw", "packed", "unpacked", "chunks"])
@pytest.mark.parametrize("code", CODES, ids=lambda c: TYPES[c].name)
def test_every_type_in_every_encoding(tmp_path, code, form):
    path = tmp_path / "m.onnx"
    for seed, shape in enumerate(SHAPES):
        data = encoded(code, shape, payload(code, shape, seed), form)
        path.write_bytes(model(graph(data)))
        check(path, onnx.TensorProto.FromString(data), code, shape, form)


@pytest.mark.parametrize("code", CODES, ids=lambda c: TYPES[c].name)
def test_every_type_external(tmp_path, code):
    for seed, shape in enumerate(SHAPES):
        raw = payload(code, shape, seed)
        (tmp_path / "d.bin").write_bytes(b"#" * 7 + raw + b"#")
        proto = TensorProto(dims=shape, data_type=code, name="w", data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "d.bin", "offset": "7", "length": str(len(raw)), "checksum": "x"}.items():
            proto.external_data.add(key=key, value=value)
        path = tmp_path / "m.onnx"
        path.write_bytes(model(graph(proto.SerializeToString())))
        check(path, proto, code, shape, "external")


_tensors = st.tuples(
    st.sampled_from(CODES),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.sampled_from(["raw", "packed", "unpacked", "chunks"]),
    st.integers(0, 2**32),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=st.lists(_tensors, max_size=6), as_constant=st.booleans())
def test_generated_models_read_as_onnx_reads_them(tmp_path, specs, as_constant):
    protos = []
    for index, (code, shape, form, seed) in enumerate(specs):
        proto = onnx.TensorProto.FromString(encoded(code, shape, payload(code, shape, seed), form))
        proto.name = f"t{index}"
        protos.append(proto)
    nodes = [helper.make_node("Constant", [], [p.name], value=p) for p in protos if as_constant]
    made = helper.make_graph(nodes, "g", [], [], [] if as_constant else protos)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(made).SerializeToString())
    loaded = onnx.load(path).graph
    wanted = (
        {n.output[0]: n.attribute[0].t for n in loaded.node} if as_constant else {t.name: t for t in loaded.initializer}
    )
    with OnnxWeights(path) as weights:
        assert list(weights) == list(wanted)
        for name, proto in wanted.items():
            assert weights[name].array().tobytes() == oracle(proto, proto.data_type)
            assert weights[name].shape == tuple(proto.dims)


def test_long_varints_across_windows(tmp_path):
    values = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 40_000) >> np.arange(40_000) % 64
    data = helper.make_tensor("w", TensorProto.INT64, values.shape, values)
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph(data.SerializeToString())))
    with OnnxWeights(path) as weights:
        assert not weights["w"].is_view
        np.testing.assert_array_equal(weights["w"].array(), values)


@pytest.mark.parametrize(
    ("code", "dims", "more"),
    [
        (7, (3,), sub(7, b"\x01\x82\x00")),
        (7, (1,), sub(7, b"\x01\x82")),
        (7, (2,), sub(7, b"\x01\x82")),
        (7, (2,), sub(7, b"\x01" + b"\x80" * 10 + b"\x00")),
        (7, (1,), sub(7, b"\xff" * 9 + b"\x02")),
        (9, (2,), sub(5, b"\x01\x02")),
        (9, (1,), num(5, 2)),
        (27, (1,), sub(5, b"\x40")),
    ],
    ids=["too few", "cut", "cut 2", "overlong", "over 64 bits", "bool 2", "unpacked bool 2", "6 bits"],
)
def test_bad_entries(tmp_path, code, dims, more):
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph(tensor("w", dims, code, more=more))))
    with OnnxWeights(path) as weights, pytest.raises(OnnxMalformed) as caught:
        weights["w"].array()
    assert caught.value.facts["path"] == str(path)
    assert 0 < caught.value.facts["offset"] < path.stat().st_size
