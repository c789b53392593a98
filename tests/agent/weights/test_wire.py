from __future__ import annotations

import pytest

from refit_agent.errors import OnnxMalformed
from refit_agent.weights.wire import Wire, signed64

from .onnx_bytes import num, sub, varint


def walk(data: bytes) -> list[tuple[int, int, int, int, int]]:
    return list(Wire(data, "m.onnx").fields(0, len(data)))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_varint(value):
    data = varint(value)
    assert Wire(data, "m").varint(0, len(data)) == (value, len(data))


def test_negative_int32_takes_ten_bytes():
    data = varint(-5)
    assert len(data) == 10
    assert signed64(Wire(data, "m").varint(0, 10)[0]) == -5


def test_overlong_but_legal_tag_and_length():
    data = b"\x88\x00" + b"\x81\x00" + b"\xaa\x80\x00" + b"\x83\x00" + b"abc"
    assert [(n, k) for n, k, *_ in walk(data)] == [(1, 0), (5, 2)]


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\x08", 1),
        (b"\x08" + b"\xff" * 4, 1),
        (b"\x08" + b"\x80" * 10 + b"\x00", 1),
        (b"\x08" + b"\xff" * 9 + b"\x02", 1),
        (num(1, 1) + b"\x00\x01", 2),
        (num(1, 1) + b"\x0b\x0c", 2),
        (num(1, 1) + b"\x0c", 2),
        (b"\x0e\x01", 0),
        (b"\x0f\x01", 0),
        (b"\x0a\x05abcd", 0),
        (b"\x0a", 1),
        (b"\x0d\x00\x00\x00", 0),
        (b"\x09" + b"\x00" * 7, 0),
        (varint(1 << 35) + b"\x00", 0),
        (b"\x0a" + varint(2**64 - 1), 0),
    ],
    ids=["no varint", "cut varint", "11 bytes", "over 64 bits", "field 0", "group", "end group", "type 6", "type 7",
         "long", "no length", "cut fixed32", "cut fixed64", "field number", "huge length"],
)  # fmt: skip
def test_refused(data, offset):
    with pytest.raises(OnnxMalformed) as caught:
        walk(data)
    assert caught.value.facts["path"] == "m.onnx"
    assert caught.value.facts["offset"] == offset


def test_text_must_be_utf8():
    with pytest.raises(OnnxMalformed) as caught:
        Wire(sub(1, b"ab\xff"), "m").text(2, 5)
    assert caught.value.facts["offset"] == 4
