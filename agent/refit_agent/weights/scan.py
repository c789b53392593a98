"""The fast walk that finds every tensor of a model without reading nodes or payloads.

A model of hundreds of megabytes has a few thousand records; this walk hops from one to the next.
Initializers give their names only. Nodes are skipped by length, except those that could hold a
tensor; the rest of the package reads these in detail.

Field numbers: onnx.proto (ModelProto, GraphProto, TensorProto).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from refit_agent.weights.wire import BYTES, VARINT, Wire

# Most dimensions that a tensor may have: what numpy 1.x can hold; TensorRT takes 8.
MAX_RANK = 32

# Start of a TensorProto as every known writer orders it: dims, data_type, name. Other orders take
# the general path. The rank is bounded, as an unbounded repeat keeps state for each repetition.
_HEADER = re.compile(rb"(?:\x08[\x80-\xff]{0,9}[\x00-\x7f]){0,%d}\x10[\x00-\x7f]\x42[\x00-\x7f]" % MAX_RANK, re.DOTALL)

# A node that holds a tensor anywhere inside it holds one of these byte strings:
# - a TensorProto must name its element type: tag 2 (varint), which is 0x10, or 0x90 and padding in an
#   overlong encoding, then a code below 32 or, overlong, a byte with the high bit set;
# - a Constant node without a TensorProto (value_float and the like) spells its operator's name.
# Neither depends on field order, on optional fields or on how deep the tensor lies. What matches by
# chance is only read for nothing.
_HOLDS_TENSOR = re.compile(rb"\x10[^\x20-\x7f]|\x90[\x00\x80]|Constant", re.DOTALL)


@dataclass(slots=True)
class Layout:
    """The byte ranges of a ModelProto's parts."""

    ir_version: int
    graph: tuple[int, int]
    opsets: list[tuple[int, int]]
    functions: list[tuple[int, int]]


@dataclass(slots=True)
class Outline:
    """The main graph's tensors, and the nodes that could hold more.

    Attributes:
        names: initializer name -> offset of its record (the tag), in file order.
        sparse: ranges of the SparseTensorProto initializers.
        nodes: (index in the graph, start, stop) of each node that has to be read.
    """

    names: dict[str, int]
    sparse: list[tuple[int, int]]
    nodes: list[tuple[int, int, int]]


def scan_model(wire: Wire) -> Layout:
    """The parts of the model, which must have exactly one graph."""
    graph: tuple[int, int] | None = None
    ir_version: int | None = None
    opsets: list[tuple[int, int]] = []
    functions: list[tuple[int, int]] = []
    for number, kind, value, stop, at in wire.fields(0, wire.size):
        if number == 7:
            wire.expect(number, kind, BYTES, at)
            if graph is not None:
                wire.fail(at, "the model has a second graph")
            graph = (value, stop)
        elif number == 1:
            wire.expect(number, kind, VARINT, at)
            if ir_version is not None:
                wire.fail(at, "the model has a second ir_version")
            ir_version = value
        elif number == 8:
            wire.expect(number, kind, BYTES, at)
            opsets.append((value, stop))
        elif number == 25:
            wire.expect(number, kind, BYTES, at)
            functions.append((value, stop))
    if graph is None:
        wire.fail(wire.size, "the file ends and has no graph")
    return Layout(ir_version or 0, graph, opsets, functions)


def may_hold_tensor(wire: Wire, start: int, stop: int) -> bool:
    """Whether a tensor can lie in the range; False is certain, True is not."""
    return _HOLDS_TENSOR.search(wire.data, start, stop) is not None


def scan_graph(wire: Wire, start: int, stop: int) -> Outline:
    """The outline of the main graph in ``[start, stop)``.

    Raises:
        OnnxMalformed: records that overlap or run out of the graph, names that are missing, twice
            there or not UTF-8. What lies inside tensors and skipped nodes is not looked at.
    """
    found = Outline({}, [], [])
    data = wire.data
    pos = start
    node_count = 0
    while pos < stop:
        tag = data[pos]
        if tag == 0x2A:
            pos = _scan_initializers(wire, pos, stop, found.names)
        elif tag == 0x0A:
            pos, node_count = _scan_nodes(wire, pos, stop, node_count, found.nodes)
        else:
            number, kind, value, end, at = next(wire.fields(pos, stop))
            if number in (1, 5, 15):
                wire.expect(number, kind, BYTES, at)
            if number == 1:
                found.nodes.append((node_count, value, end))
                node_count += 1
            elif number == 5:
                _add_name(wire, found.names, tensor_name(wire, value, end), at)
            elif number == 15:
                found.sparse.append((value, end))
            pos = end
    return found


def _scan_initializers(wire: Wire, pos: int, stop: int, names: dict[str, int]) -> int:
    """Add the run of initializers at ``pos``; the offset behind it."""
    data = wire.data
    header = _HEADER.match
    try:
        while pos < stop and data[pos] == 0x2A:
            at = pos
            # the length varint, inline: a call for each would double the time of the walk
            size = data[at + 1]
            begin = at + 2
            if size > 0x7F:
                byte = data[begin]
                begin += 1
                size = size & 0x7F | byte << 7
                if byte > 0x7F:
                    byte = data[begin]
                    begin += 1
                    size = size & 0x3FFF | byte << 14
                    if byte > 0x7F:
                        byte = data[begin]
                        begin += 1
                        size = size & 0x1FFFFF | byte << 21
                        if byte > 0x7F:
                            size, begin = wire.varint(at + 1, stop)
            pos = begin + size
            if pos > stop:
                wire.fail(at, f"an initializer claims {size} bytes where {max(stop - begin, 0)} are left")
            hit = header(data, begin, pos)
            if hit is not None:
                text = hit.end()
                end = text + data[text - 1]
                if end <= pos:
                    name = data[text:end].decode()
                else:
                    wire.fail(text, "the name of a tensor is cut off")
            else:
                name = tensor_name(wire, begin, pos)
            if name in names or not name:
                _add_name(wire, names, name, at)
            names[name] = at
    except IndexError:
        wire.fail(at, "an initializer is cut off")
    except UnicodeDecodeError as error:
        wire.fail(text + error.start, "a string is not valid UTF-8")
    return pos


def _add_name(wire: Wire, names: dict[str, int], name: str, at: int) -> None:
    if not name:
        wire.fail(at, "an initializer has no name")
    if name in names:
        wire.fail(at, f"the initializer {name!r} is there twice")
    names[name] = at


def tensor_name(wire: Wire, start: int, stop: int) -> str:
    """The name of the TensorProto in the range, or ""."""
    name = ""
    for number, kind, value, end, at in wire.fields(start, stop):
        if number == 8:
            wire.expect(number, kind, BYTES, at)
            if name:
                wire.fail(at, "a tensor has two names")
            name = wire.text(value, end)
    return name


def _scan_nodes(wire: Wire, pos: int, stop: int, index: int, nodes: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Hop over the run of nodes at ``pos`` and note those that may hold a tensor.

    Returns the offset behind the run, and the index of the next node.
    """
    data = wire.data
    first, first_index = pos, index
    try:
        while pos < stop and data[pos] == 0x0A:
            size = data[pos + 1]
            if size < 0x80:
                pos += 2 + size
            else:
                byte = data[pos + 2]
                if byte < 0x80:
                    pos += 3 + (size & 0x7F | byte << 7)
                else:
                    size, begin = wire.varint(pos + 1, stop)
                    pos = begin + size
            index += 1
    except IndexError:
        wire.fail(pos, "a node is cut off")
    if pos > stop:
        wire.fail(stop, "a node runs out of its graph")

    # Search from hit to hit, skipping the rest of a node once it is known to matter: such a node may
    # hold a payload of many megabytes, which must not be read here.
    search = _HOLDS_TENSOR.search
    hit = search(data, first, pos)
    at, at_index = first, first_index
    while hit is not None:
        place = hit.start()
        while True:
            size, begin = wire.varint(at + 1, pos)
            at = begin + size
            at_index += 1
            if at > place:
                break
        nodes.append((at_index - 1, begin, at))
        hit = search(data, at, pos)
    return pos, index
