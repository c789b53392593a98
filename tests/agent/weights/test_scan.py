from __future__ import annotations

import pytest

from refit_agent.weights.scan import may_hold_tensor, scan_graph, scan_model
from refit_agent.weights.wire import Wire

from .onnx_bytes import graph, model, node, num, sub, tensor

# around every change in the number of bytes that a length takes, and with each bit set once
SIZES = [
    *(1 << bit for bit in range(5, 24)),
    126,
    127,
    129,
    16383,
    16385,
    2097151,
    2097153,
    12345,
    7654321,
    0xFFF0,
    0x1FFF00,
    0x7FFF00,
]


def test_initializers_of_every_length_of_length():
    body = graph(*(tensor(f"t{size}", (size,), 2, bytes(size)) for size in SIZES))
    for size in range(30, 300):
        body += sub(5, tensor(f"s{size}", (size,), 2, bytes(size)))
    wire = Wire(body, "m")
    found = scan_graph(wire, 0, len(body))
    assert list(found.names) == [*(f"t{size}" for size in SIZES), *(f"s{size}" for size in range(30, 300))]
    for name, at in found.names.items():
        number, _, start, stop, place = next(wire.fields(at, len(body)))
        assert (number, place) == (5, at) and body[start:stop] == tensor(
            name, (int(name[1:]),), 2, bytes(int(name[1:]))
        )


def test_nodes_of_every_length_are_hopped_over():
    padding = [node("Relu" + "u" * size) for size in SIZES if size < 1 << 22]
    holder = node("Constant", sub(1, "value_int") + num(3, 1))
    body = graph(tensor("w", (), 2, b"\0"), nodes=(*padding, holder, *padding, holder))
    found = scan_graph(Wire(body, "m"), 0, len(body))
    assert list(found.names) == ["w"]
    # others may be there by chance
    assert {(len(padding), holder), (2 * len(padding) + 1, holder)} <= {(i, body[a:b]) for i, a, b in found.nodes}


@pytest.mark.parametrize("count", [0, 1, 4, 32])
def test_the_general_path_gives_the_same_names(count):
    usual = tensor("näme", (1,) * count, 2, b"\0")
    other = sub(9, b"\0") + sub(8, "ñ") + num(2, 2) + num(1, 1) * count
    packed = sub(1, b"\x01" * count) + num(2, 2) + sub(8, "x" * 200) + sub(9, b"\0")
    body = graph(usual, other, packed)
    assert list(scan_graph(Wire(body, "m"), 0, len(body)).names) == ["näme", "ñ", "x" * 200]


def test_order_of_fields_in_the_graph_does_not_matter():
    holder = node("Constant", sub(1, "value_int") + num(3, 1))
    body = sub(5, tensor("a", (), 2, b"\0")) + sub(1, holder) + sub(2, "name") + sub(5, tensor("b", (), 2, b"\0"))
    body += sub(1, node("Relu")) + sub(15, b"") + sub(1, holder)
    found = scan_graph(Wire(body, "m"), 0, len(body))
    assert list(found.names) == ["a", "b"] and [i for i, *_ in found.nodes] == [0, 2] and len(found.sparse) == 1


@pytest.mark.parametrize("tag", [b"\x10", b"\x90\x00", b"\x90\x80\x00", b"\x90\x80\x80\x80\x00"])
@pytest.mark.parametrize("tail", [b"", b"\x80\x00", b"\x80\x80\x80\x80\x80\x80\x80\x80\x00"])
def test_every_spelling_of_every_data_type_is_a_marker(tag, tail):
    for code in range(32):
        value = bytes([code | (0x80 if tail else 0)]) + tail[: max(len(tail), 0)]
        data = b"aaaa" + tag + value + b"aaaa"
        assert may_hold_tensor(Wire(data, "m"), 0, len(data))
    assert not may_hold_tensor(Wire(b"plain node", "m"), 0, 10)
    assert may_hold_tensor(Wire(b"a Constant b", "m"), 0, 12)
    assert not may_hold_tensor(Wire(b"a Constant b", "m"), 0, 9)


def test_model_layout():
    data = model(graph(), sub(8, sub(1, "") + num(2, 20)) + sub(25, sub(1, "F")) + sub(20, sub(1, graph())))
    layout = scan_model(Wire(data, "m"))
    assert (layout.ir_version, len(layout.opsets), len(layout.functions)) == (8, 1, 1)
    assert layout.graph == (4, 4)
