"""The reader of safetensors files: held against the safetensors package, and against files made to break it."""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from refit_agent.errors import BundleFileMissing, SafetensorsMalformed
from refit_agent.weights import safetensors as reader
from refit_agent.weights.dtypes import TYPES
from refit_agent.weights.safetensors import SafetensorsWeights
from safetensors_bytes import entry, of_arrays, packed

BITS = {t.name: t.bits for t in TYPES.values()}
#: Every type that the package knows, with its bits and our name.
TYPE_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
    "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64",
    "F64": "float64", "C64": "complex64", "F8_E4M3": "float8e4m3fn", "F8_E4M3FNUZ": "float8e4m3fnuz",
    "F8_E5M2": "float8e5m2", "F8_E5M2FNUZ": "float8e5m2fnuz", "F8_E8M0": "float8e8m0", "F6_E2M3": "float6e2m3",
    "F6_E3M2": "float6e3m2", "F4": "float4e2m1",
}  # fmt: skip


def opened(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes, int]]:
    """Type, shape, bytes and offset of every tensor in a file of this content."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        with SafetensorsWeights(file.name) as weights:
            return {n: (r.dtype, r.shape, r.array().tobytes(), r.offset) for n, r in weights.items()}


def by_package(data: bytes) -> dict[str, tuple[list[int], bytes]]:
    return {name: (spec["shape"], bytes(spec["data"])) for name, spec in safetensors.deserialize(data)}


# ---------------------------------------------------------------- what the package writes

NAMES = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda n: n != "__metadata__")
ARRAYS = st.builds(
    lambda dtype, shape: np.arange(int(np.prod(shape)), dtype=np.int64).astype(dtype).reshape(shape),
    st.sampled_from(["<f4", "<f2", "<f8", "<i8", "<i4", "|i1", "|u1", "|b1", "<u4", "<u8"]),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
)


#: Not empty: of that the package (0.8) makes what it cannot read itself.
METADATA = st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1)


@given(st.dictionaries(NAMES, ARRAYS, max_size=5), METADATA)
def test_what_the_package_writes_is_read_as_it_is(arrays: dict[str, Any], metadata: dict[str, str] | None) -> None:
    """Names, shapes, bytes, and offsets in ascending order."""
    data = safetensors.numpy.save(arrays, metadata)
    found = opened(data)
    assert {n: (list(shape), raw) for n, (_, shape, raw, _) in found.items()} == by_package(data)
    for name, array in arrays.items():
        dtype, _, raw, offset = found[name]
        assert BITS[dtype] == array.dtype.itemsize * 8
        assert data[offset : offset + len(raw)] == array.tobytes() == raw
    assert [offset for *_, offset in found.values()] == sorted(offset for *_, offset in found.values())


@pytest.mark.parametrize("code", TYPE_NAMES)
def test_every_type_of_the_package_has_its_name_and_size(code: str) -> None:
    """Types below one byte come as packed bytes, others in their shape."""
    name = TYPE_NAMES[code]
    nbytes = BITS[name]
    payload = bytes(range(nbytes)) if code != "BOOL" else b"\1" * nbytes
    data = packed({"a": entry(code, [2, 4], 0, nbytes)}, payload)
    assert by_package(data)["a"][1] == payload
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        with SafetensorsWeights(file.name) as weights:
            ref = weights["a"]
            array = ref.array()
            assert (ref.dtype, ref.shape, ref.count, ref.nbytes, ref.is_view) == (name, (2, 4), 8, nbytes, True)
            assert array.tobytes() == payload
            assert array.shape == ((2, 4) if BITS[name] >= 8 else (nbytes,))
            del array


# ---------------------------------------------------------------- whatever a header says

NUMBER = st.integers(-1, 9) | st.sampled_from([1 << 40, (1 << 63) - 1, 1 << 63, 1.0, True, None])
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "I8", "F16", "F32", "F4", "U9"]),
        "shape": st.lists(NUMBER, max_size=3),
        "data_offsets": st.tuples(NUMBER, NUMBER) | st.lists(NUMBER, max_size=3),
    },
    optional={"more": st.just(1)},
)
SOUND = st.integers(0, 4).flatmap(lambda n: st.just(entry("U8", [n], 0, n)))


@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), TENSOR | SOUND | st.just({"k": "v"}), max_size=3),
    st.binary(max_size=8),
    st.none() | st.integers(0, 200),
    st.sampled_from([b"", b" ", b"\n", b"x"]),
)
@example({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 2, 4)}, b"1234", None, b"  ")
@example({"a": entry("U8", [0], 0, 0), "b": entry("U8", [2], 0, 2)}, b"12", None, b"")
def test_what_is_accepted_the_package_reads_the_same(
    header: dict[str, Any], payload: bytes, length: int | None, tail: bytes
) -> None:
    """No header makes this reader see other bytes than everybody else does."""
    data = packed(json.dumps(header).encode() + tail, payload, length=length)
    try:
        found = opened(data)
    except SafetensorsMalformed:
        return
    assert {n: (list(shape), raw) for n, (_, shape, raw, _) in found.items()} == by_package(data)


@given(st.binary(max_size=40))
@example(b"")
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_arbitrary_bytes_are_a_sound_file_or_a_clear_error(data: bytes) -> None:
    """Never anything else."""
    try:
        opened(data)
    except SafetensorsMalformed as error:
        assert "<" not in str(error).replace("<class", "")
        assert error.hint


GOOD = {"a": entry("U8", [2], 0, 2)}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 bytes"),
    "cut length": (b"\1\0\0", "it has 3 bytes"),
    "no header": (packed(b""), "begins with b''"),
    "cut header": (packed(GOOD)[:-9], "gives its header"),
    "endless header": (packed(b"{}", length=1 << 62), "no more than 100000000 are allowed"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}", "no more than 100000000 are allowed"),
    "header over the payload's end": (packed(b"{}", length=3), "gives its header 3 bytes and has 10 in all"),
    "no object": (packed(b"[]"), "begins with b'['"),
    "leading space": (packed(b" {}"), "begins with b' '"),
    "no JSON": (packed(b"{,}"), "malformed"),
    "trailing text": (packed(b"{} {}"), "trailing"),
    "no UTF-8": (packed(b'{"\xff": 1}'), "cannot be read"),
    "deep": (packed(b'{"a":' + b"[" * 100_000), "cannot be read"),
    "deep metadata": (packed(b'{"__metadata__":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}"), "cannot be read"),
    "a name twice": (packed(b'{"a":' + b'{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":' + b'{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}', b"12"), "'a' twice"),
    "metadata twice": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' twice"),
    "a metadata key twice": (packed(b'{"__metadata__":{"k":"1","k":"2"}}'), "'k' twice"),
    "a field twice": (packed(b'{"a":{"dtype":"U8","shape":[2],"shape":[1,2],"data_offsets":[0,2]}}', b"12"), "'shape' twice"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "Expected `str`"),
    "metadata as null": (packed({"__metadata__": None}), "Expected `object`"),
    "unknown field": (packed({"a": entry("U8", [2], 0, 2, strides=[1])}, b"12"), "unknown field `strides`"),
    "missing field": (packed({"a": {"dtype": "U8", "shape": []}}, b"1"), "data_offsets"),
    "unknown type": (packed({"a": entry("F128", [2], 0, 2)}, b"12"), "unknown type 'F128'"),
    "type as number": (packed({"a": entry(3, [2], 0, 2)}, b"12"), "Expected `str`"),  # type: ignore[arg-type]
    "negative dimension": (packed({"a": entry("U8", [-2, -1], 0, 2)}, b"12"), ">= 0"),
    "fractional dimension": (packed({"a": entry("U8", [2.0], 0, 2)}, b"12"), "Expected `int`"),  # type: ignore[list-item]
    "dimension of 2**64": (packed({"a": entry("U8", [1 << 64], 0, 2)}, b"12"), "cannot be read"),
    "shape beyond memory": (packed({"a": entry("U8", [1 << 40, 1 << 40], 0, 2)}, b"12"), "more than 2**63 bytes"),
    "shape beyond memory beside a 0": (packed({"a": entry("U8", [1 << 40, 1 << 40, 0], 0, 0)}), "more than 2**63 bytes"),
    "33 dimensions": (packed({"a": entry("U8", [1] * 33, 0, 1)}, b"1"), "length <= 32"),
    "one offset": (packed({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0]}}, b"12"), "length"),
    "negative offset": (packed({"a": entry("U8", [2], -1, 1)}, b"12"), ">= 0"),
    "end before begin": (packed({"a": entry("U8", [2], 2, 0)}, b"12"), "offsets are 2 to 0"),
    "smaller than its shape": (packed({"a": entry("F32", [2], 0, 2)}, b"12"), "has 8 bytes, and its offsets are 0 to 2"),
    "larger than its shape": (packed({"a": entry("U8", [1], 0, 2)}, b"12"), "has 1 bytes, and its offsets are 0 to 2"),
    "half a byte": (packed({"a": entry("F4", [3], 0, 2)}, b"12"), "no whole bytes"),
    "outside the file": (packed({"a": entry("U8", [4], 0, 4)}, b"12"), "take 4 bytes, and 2 follow the header"),
    "far outside the file": (packed({"a": entry("U8", [1 << 62], 0, 1 << 62)}, b"12"), "and 2 follow"),
    "a gap in front": (packed({"a": entry("U8", [1], 1, 2)}, b"12"), "begins at 1, and what comes before it ends at 0"),
    "a gap between": (packed({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"), "'b' begins at 2"),
    "a gap behind": (packed(GOOD, b"123"), "take 2 bytes, and 3 follow the header"),
    "overlap": (packed({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"123"), "'b' begins at 1"),
    "the same bytes": (packed({"a": entry("U8", [2], 0, 2), "b": entry("I8", [2], 0, 2)}, b"12"), "'b' begins at 0"),
    "bytes without a tensor": (packed(b"{}", b"1"), "take 0 bytes, and 1 follow"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_refused_in_words(tmp_path: Path, case: str) -> None:
    """By name of the file, and what is wrong; nothing stays open."""
    data, says = HOSTILE[case]
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorsMalformed) as info:
        SafetensorsWeights(path)
    assert says in str(info.value)
    assert str(info.value).startswith(f"{path} is not a sound safetensors file: ")


def test_a_large_header_that_lies_about_itself_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is asked before a byte of it is."""
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 10)
    path = tmp_path / "w"
    path.write_bytes(packed(GOOD, b"12"))
    with pytest.raises(SafetensorsMalformed, match="no more than 10"):
        SafetensorsWeights(path)


# ---------------------------------------------------------------- as a mapping


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two files, with the tensors a and b, and c."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(of_arrays({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}))
    other.write_bytes(of_arrays({"c": np.arange(4, dtype=np.float16)}))
    return one, other


def test_tensors_of_several_files_are_views_of_them(pair: tuple[Path, Path]) -> None:
    """Not copied, not writable, good after the files are closed."""
    with SafetensorsWeights(*pair) as weights:
        assert list(weights) == ["a", "b", "c"]
        assert (len(weights), "c" in weights, "d" in weights) == (3, True, False)
        assert [weights[name].file for name in weights] == [pair[0], pair[0], pair[1]]
        ref = weights["b"]
        assert (ref.name, ref.key, ref.shape, ref.count, ref.nbytes) == ("b", "b", (), 1, 8)
        array = weights["a"].array()
        assert not array.flags.owndata
        assert not array.flags.writeable
        with pair[0].open("r+b") as file:
            file.seek(ref.offset)
            file.write(np.int64(8).tobytes())
        assert ref.array() == 8, "it shows the file as it is now"
        assert pair[0].name in repr(weights)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="closed"):
        ref.array()
    weights.close()


def test_the_order_is_that_of_the_payloads_whatever_the_header_s(tmp_path: Path) -> None:
    """Read front to back, the disk is read once; names without bytes go before what begins there."""
    header = {"c": entry("U8", [1], 2, 3), "b": entry("U8", [2], 0, 2), "a": entry("U8", [0], 0, 0)}
    path = tmp_path / "w"
    path.write_bytes(packed(header, b"xyz"))
    with SafetensorsWeights(path) as weights:
        assert [(name, ref.array().tobytes()) for name, ref in weights.items()] == [
            ("a", b""),
            ("b", b"xy"),
            ("c", b"z"),
        ]


def test_a_name_in_two_files_is_refused(pair: tuple[Path, Path]) -> None:
    """Which of the two is meant would be chance."""
    with pytest.raises(SafetensorsMalformed, match=r"other is not a sound .* tensor 'c', and so has .*third"):
        third = pair[0].with_name("third")
        third.write_bytes(pair[1].read_bytes())
        SafetensorsWeights(third, pair[1])


@pytest.mark.parametrize("what", ["missing", "folder", "fifo", "nul"])
def test_what_cannot_be_opened_is_told(tmp_path: Path, what: str) -> None:
    """And nobody waits for a pipe that nobody writes to."""
    path = tmp_path / "w"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with pytest.raises(BundleFileMissing, match="w"):
        SafetensorsWeights(f"{path}\0" if what == "nul" else path)


def test_opening_reads_the_header_alone(tmp_path: Path) -> None:
    """Sixteen gigabytes that are not there take no time to read and no memory."""
    size = 16 << 30
    path = tmp_path / "w"
    with path.open("wb") as file:
        file.write(packed({"a": entry("F16", [size // 2], 0, size)}))
        try:
            file.truncate(file.tell() + size)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    tracemalloc.start()
    try:
        with SafetensorsWeights(path) as weights:
            array = weights["a"].array()
            assert (array.shape, array[-1]) == ((size // 2,), 0)
            del array
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
