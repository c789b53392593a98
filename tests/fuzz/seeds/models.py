"""Files of weights: ONNX models in every encoding, places of external data, safetensors files."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refit_agent.weights import wire_writer as pb
from refit_agent.weights.dtypes import FIXED_ENTRY_BYTES, STRING, TYPES, DataType
from safetensors_bytes import entry, of_arrays, packed
from wild_onnx import Maker

from ..harness.onnx_walker import EXTERNAL_BYTES

_DEEP = 24


def onnx_files() -> Mapping[str, bytes]:
    """Models: by type and encoding, by place of the tensor, at random, and some that must be refused."""
    found = {f"type-{dtype.name}": _one_type(dtype) for dtype in TYPES.values()}
    found |= _places() | _hostile()
    for seed in range(24):
        maker = Maker(random.Random(seed), overlong=seed % 3 == 0)
        wild = maker.model()
        fits = all(len(data) <= EXTERNAL_BYTES for data in wild.files.values())
        if fits and len(wild.model) <= 3000:
            found[f"wild-{seed}"] = wild.model
    return found


def _one_type(dtype: DataType) -> bytes:
    """One tensor of the type in each encoding that it has."""
    rng = random.Random(dtype.code)
    raw = bytes(rng.randrange(2) for _ in range(3)) if dtype.name == "bool" else rng.randbytes(dtype.byte_count(3))
    head = pb.integer(1, 3) + pb.integer(2, dtype.code)
    entries = _entries(dtype, raw)
    fixed = FIXED_ENTRY_BYTES.get(dtype.field)
    tag = pb.varint(dtype.field << 3 | (2 if dtype is STRING else {4: 5, 8: 1, None: 0}[fixed]))
    forms = {"unpacked": b"".join(tag + part for part in entries)}
    if dtype is not STRING:
        forms["packed"] = pb.blob(dtype.field, b"".join(entries))
        forms["chunks"] = pb.blob(dtype.field, entries[0]) + pb.blob(dtype.field, b"".join(entries[1:]))
        forms["raw"] = pb.blob(9, raw)
        place = (("location", "w.bin"), ("offset", "16"), ("length", str(len(raw))))
        forms["external"] = b"".join(pb.blob(13, pb.text(1, k) + pb.text(2, v)) for k, v in place) + pb.integer(14, 1)
    tensors = [pb.blob(5, head + pb.text(8, name) + form) for name, form in forms.items()]
    tensors.append(pb.blob(5, pb.integer(1, 0) + pb.integer(2, dtype.code) + pb.text(8, "empty")))
    return pb.integer(1, 8) + pb.blob(7, b"".join(tensors))


def _entries(dtype: DataType, raw: bytes) -> list[bytes]:
    if dtype is STRING:
        return [pb.varint(len(text)) + text for text in (b"a", b"", b"\xff\0")]
    fixed = FIXED_ENTRY_BYTES.get(dtype.field)
    if fixed:
        return [raw[i : i + fixed] for i in range(0, len(raw), fixed)]
    if dtype.bits == 6:
        return [pb.varint(value) for value in (1, 63, 32)]
    width = max(dtype.bits, 8) // 8
    values = [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]
    # Negative ones as protobuf writes them: in ten bytes.
    signed = dtype.name in ("int8", "int16", "int32")
    return [pb.varint(v + (1 << 64) - (1 << dtype.bits) if signed and v >> (dtype.bits - 1) else v) for v in values]


def _tensor(name: str, *values: float) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.float32), name)


def _graph(name: str, nodes: list[onnx.NodeProto], tensors: list[TensorProto]) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, name, [], [out], tensors)


def _model(graph: onnx.GraphProto, **more: object) -> bytes:
    return bytes(helper.make_model(graph, ir_version=9, **more).SerializeToString())


def _places() -> dict[str, bytes]:
    sparse = helper.make_sparse_tensor(_tensor("v", 5), numpy_helper.from_array(np.array([2], np.int64)), [4])
    constants = {
        "value": _tensor("inner", 1.5),
        "value_float": 2.5,
        "value_floats": [1.0, -2.0],
        "value_int": -7,
        "value_ints": [3, -4, 2**40],
        "value_string": "text",
        "value_strings": ["a", "bcd"],
        "sparse_value": sparse,
    }
    nodes = [helper.make_node("Constant", [], [kind], **{kind: value}) for kind, value in constants.items()]
    then = _graph("then", [helper.make_node("Constant", [], ["t"], value=_tensor("x", 3))], [_tensor("w", 2)])
    loop = helper.make_node("Loop", ["n", "c"], [], name="lp", body=_graph("deep", [], [_tensor("w", 5)]))
    branch = helper.make_node("If", ["c"], ["o"], name="b", then_branch=then, else_branch=_graph("e", [loop], [_tensor("w", 4)]))  # fmt: skip
    norm = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn", epsilon=0.5)
    custom = helper.make_node("Custom", ["x"], ["z"], domain="org.example", table=_tensor("", 1), graphs=[then], tables=[_tensor("", 2)])  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    by_call = helper.make_node("Constant", [], ["given"])
    by_call.attribute.append(onnx.AttributeProto(name="value", ref_attr_name="v", type=4))
    functions = [
        helper.make_function("my", "F", ["x"], ["y"], [nodes[0], branch, by_call], opsets, ["v"]),
        helper.make_function("my", "G", ["x"], ["y"], [norm], opsets, [], [helper.make_attribute("alpha", 0.5)]),
    ]
    with_sparse = _graph("g", [], [_tensor("a", 1)])
    with_sparse.sparse_initializer.append(sparse)
    deep = _graph("g", [], [_tensor("w", 1)])
    for _ in range(_DEEP - 1):
        deep = _graph("g", [helper.make_node("If", ["c"], [], then_branch=deep)], [])
    too_deep = _graph("g", [helper.make_node("If", ["c"], [], then_branch=deep)], [])
    top = [_tensor(name, i) for i, name in enumerate("sbmv")]
    twice = pb.blob(5, pb.tensor("w", "float32", (1,), b"\0\0\0\0")) * 2
    return {
        "constants": _model(_graph("g", nodes, [])),
        "nested": _model(_graph("g", [branch, custom], [_tensor("w", 1)])),
        "functions": _model(_graph("g", [norm], top), functions=functions),
        "sparse": _model(with_sparse),
        "deep": _model(deep),
        "too-deep": _model(too_deep),
        "name-twice": pb.integer(1, 8) + pb.blob(7, twice),
        "empty-graph": pb.blob(7, b""),
    }


def _hostile() -> dict[str, bytes]:
    """What must be refused, and a tensor that is hidden from who looks for it too simply."""

    def one(dims: tuple[int, ...], raw: bytes, more: bytes = b"") -> bytes:
        head = b"".join(pb.integer(1, dim) for dim in dims) + pb.integer(2, 1) + pb.text(8, "w")
        return pb.integer(1, 8) + pb.blob(7, pb.blob(5, head + pb.blob(9, raw) + more))

    # The tag of data_type in two bytes where one would do.
    hidden = pb.integer(1, 1) + b"\x90\x00\x01" + pb.text(8, "w") + pb.blob(9, b"\0\0\x80?")
    branch = pb.text(4, "If") + pb.blob(5, pb.text(1, "b") + pb.blob(6, pb.blob(5, hidden)))
    return {
        "negative": one((-1,), b""),
        "negatives": one((-1, -1), bytes(4)),
        "overflow": one((1 << 62, 1 << 62), b""),
        "overflow-beside-0": one((1 << 62, 1 << 62, 0), b""),
        "many-dims": one((1,) * 33, bytes(4)),
        "short": one((2,), bytes(7)),
        "two-payloads": one((1,), bytes(4), pb.blob(4, bytes(4))),
        "length-lies": one((1,), bytes(4))[:-2],
        "padded-tag": pb.integer(1, 8) + pb.blob(7, pb.blob(1, branch)),
    }


def external_places() -> Mapping[str, bytes]:
    """Locations with offset and length, inside the folder and out of it."""
    lines = {
        "inside": "4\nlocation=w.bin\noffset=16\nlength=4",
        "sub": "4\nlocation=sub/v.bin\nchecksum=0",
        "link-inside": "1\nlocation=link",
        "link-outside": "1\nlocation=out",
        "link-up": "1\nlocation=up/secret",
        "dots": "1\nlocation=../secret",
        "dots-inside": "1\nlocation=sub/../w.bin",
        "absolute": "1\nlocation=/etc/passwd",
        "fifo": "1\nlocation=fifo",
        "folder": "1\nlocation=sub",
        "loop": "1\nlocation=loop",
        "nothing": "1\nlocation=",
        "nul": "1\nlocation=w.bin\0",
        "too-long": f"1\nlocation={'a/' * 200}{'b' * 300}",
        "beyond": "4\nlocation=w.bin\noffset=253",
        "huge-offset": f"1\nlocation=w.bin\noffset={2**63 - 1}",
        "negative": "1\nlocation=w.bin\noffset=-1",
        "model": "4\nlocation=m.onnx",
    }
    return {label: text.encode() for label, text in lines.items()}


def safetensors_files() -> Mapping[str, bytes]:
    """Small files of every type, and the kinds of lies that a header can tell."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, np.int64),
        "c": np.zeros(0, np.float16),
    }
    types = ("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3")  # fmt: skip
    bits = {"BOOL": 8, "BF16": 16, "F4": 4, "F6_E2M3": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
    every: dict[str, object] = {}
    at = 0
    for code in types:
        size = bits.get(code) or int(code[1:])
        every[code] = entry(code, [8], at, at + size)
        at += size
    pair = {"a": entry("U8", [2], 0, 2)}
    return {
        "arrays": of_arrays(arrays),
        "every-type": packed(every, bytes(at)),
        "metadata": packed({"__metadata__": {"format": "pt"}, **pair}, b"12"),
        "metadata-null": packed({"__metadata__": None}),
        "zero-beside-huge": packed({"a": entry("U8", [0, 1 << 40, 1 << 40], 0, 0)}),
        "many-dims": packed({"a": entry("U8", [1] * 33, 0, 1)}, b"1"),
        "empty": packed({}),
        "spaces": packed(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   ', b"12"),
        "escapes": packed(b'{"\\u0061\\n":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"12"),
        "twice": packed(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}', b"12"),
        "overlap": packed({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"123"),
        "gap": packed({"a": entry("U8", [2], 1, 3)}, b"123"),
        "long": packed(pair, b"12", length=1 << 40),
        "huge": packed({"a": entry("U8", [1 << 40, 1 << 40], 0, 2)}, b"12"),
        "unknown-field": packed({"a": entry("U8", [2], 0, 2, strides=[1])}, b"12"),
    }  # fmt: skip
