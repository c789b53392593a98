"""Read an ONNX Runtime EPContext model: one node ``com.microsoft.EPContext`` in place of a graph, with an engine.

Attributes as in ONNX Runtime's "EP Context Cache Feature Design"; ``embed_mode`` 1 is its default. The engine may be
in the file itself and have gigabytes: it is never read here, only found.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from refit_agent.authoring.errors import ImportRefused, SourceUnreadable
from refit_agent.weights.external import open_regular
from refit_agent.weights.scan import scan_model
from refit_agent.weights.wire import BYTES, VARINT, Wire

_DOMAIN, _OPERATOR = "com.microsoft", "EPContext"
#: ModelProto's graph is found by `scan_model`; the other numbers are those of onnx.proto.
_NODE, _INPUT, _OUTPUT = 1, 11, 12
_OP_TYPE, _ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_NAME, _INT, _STRING = 1, 3, 4
_MOST_TEXT_BYTES = 4096


@dataclass(slots=True)
class ContextNode:
    """The node's attributes, and the names that the graph has.

    Attributes:
        integers: by name.
        strings: where the bytes of each are in the file, by name.
        inputs, outputs: of the graph.
    """

    wire: Wire
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)
    strings: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether the engine is in the file itself. Raises ImportRefused for another ``embed_mode`` than 0 and 1."""
        mode = self.integers.get("embed_mode", 1)
        if mode not in (0, 1):
            raise self.refused(f"the node's embed_mode is {mode}, and there are 0 and 1")
        return mode == 1

    def context(self) -> tuple[int, int]:
        """Where ``ep_cache_context`` is: the engine, or the path of its file. Raises ImportRefused without one."""
        found = self.strings.get("ep_cache_context")
        if found is None or found[0] == found[1]:
            raise self.refused("its node has no engine (ep_cache_context); it may be in another model's main context")
        return found

    def text(self, name: str) -> str:
        """A string attribute, "" if there is none. Raises ImportRefused for one that is no short text."""
        start, stop = self.strings.get(name, (0, 0))
        if stop - start > _MOST_TEXT_BYTES:
            raise self.refused(f"the node's {name} has {stop - start} bytes, and should be a short text")
        return self.wire.text(start, stop)

    def refused(self, detail: str) -> ImportRefused:
        """The error about this file."""
        return ImportRefused(path=self.wire.path, detail=detail)


@contextlib.contextmanager
def open_context(path: str) -> Iterator[ContextNode]:
    """The node of the EPContext model ``path``, for as long as the block runs: it reads from the file.

    Raises:
        SourceUnreadable: the file cannot be read.
        OnnxMalformed: it is no sound ONNX file.
        ImportRefused: its graph is not one EPContext node and nothing else.
    """
    with _mapped(path) as wire:
        yield _read(wire)


def interface_names(path: str) -> tuple[list[str], list[str]]:
    """The names of a model's inputs and outputs; before IR version 4 its weights are inputs too.

    Raises:
        SourceUnreadable, OnnxMalformed: as `open_context`.
    """
    with _mapped(path) as wire:
        inputs, outputs, _ = _interface(wire)
        return inputs, outputs


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[Wire]:
    try:
        fd, info = open_regular(path)
    except (OSError, ValueError) as error:
        raise SourceUnreadable(path=path, detail=getattr(error, "strerror", None) or str(error)) from error
    if fd is None:
        raise SourceUnreadable(path=path, detail="it is not a regular file")
    try:
        if not info.st_size:
            raise ImportRefused(path=path, detail="it is empty")
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
            wire = Wire(data, path)
            try:
                yield wire
            finally:
                wire.data = b""  # the map can only be closed when nobody looks at it
    finally:
        os.close(fd)


def _read(wire: Wire) -> ContextNode:
    inputs, outputs, nodes = _interface(wire)
    node = ContextNode(wire, inputs, outputs)
    contexts = [place for place in nodes if _operator(wire, *place) == (_DOMAIN, _OPERATOR)]
    if len(contexts) != 1:
        found = (
            "no EPContext node" if not contexts else f"{len(contexts)} EPContext nodes, each with a part of the model"
        )
        raise node.refused(f"its graph has {found}, and one whole engine is needed")
    if len(nodes) > 1:
        raise node.refused(
            f"its graph has {len(nodes) - 1} nodes besides the EPContext node: its engine is a part of a model"
        )
    for number, kind, value, stop, at in wire.fields(*contexts[0]):
        if number == _ATTRIBUTE:
            wire.expect(number, kind, BYTES, at)
            _read_attribute(node, value, stop, at)
    return node


def _interface(wire: Wire) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """The graph's inputs and outputs by name, and where its nodes are."""
    inputs: list[str] = []
    outputs: list[str] = []
    nodes: list[tuple[int, int]] = []
    for number, kind, value, stop, at in wire.fields(*scan_model(wire).graph):
        if number not in (_NODE, _INPUT, _OUTPUT):
            continue
        wire.expect(number, kind, BYTES, at)
        if number == _NODE:
            nodes.append((value, stop))
        else:
            (inputs if number == _INPUT else outputs).append(_text(wire, value, stop, _NAME))
    return inputs, outputs, nodes


def _operator(wire: Wire, start: int, stop: int) -> tuple[str, str]:
    return _text(wire, start, stop, _NODE_DOMAIN), _text(wire, start, stop, _OP_TYPE)


def _read_attribute(node: ContextNode, start: int, stop: int, at: int) -> None:
    wire = node.wire
    name = _text(wire, start, stop, _NAME)
    if name in node.integers or name in node.strings:
        wire.fail(at, f"the node has the attribute {name!r} twice")
    for number, kind, value, end, place in wire.fields(start, stop):
        if number == _INT:
            wire.expect(number, kind, VARINT, place)
            node.integers[name] = value
        elif number == _STRING:
            wire.expect(number, kind, BYTES, place)
            node.strings[name] = (value, end)


def _text(wire: Wire, start: int, stop: int, number: int) -> str:
    """The string field ``number`` of a message, "" if it has none."""
    found = [(v, s) for n, k, v, s, _ in wire.fields(start, stop) if (n, k) == (number, BYTES)]
    return wire.text(*found[-1]) if found else ""
