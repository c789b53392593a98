"""Protobuf wire format over a buffer, with every read checked against a limit.

Source: the "Encoding" page of the protobuf documentation. Groups (wire types 3 and 4) never occur
in onnx.proto and are refused, as are the unassigned types 6 and 7 and field number 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn, Union

from refit_agent.errors import OnnxMalformed

if TYPE_CHECKING:
    import mmap

Buffer = Union["mmap.mmap", bytes]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIRE_NAMES = {VARINT: "varint", FIXED64: "64-bit", BYTES: "length-delimited", FIXED32: "32-bit"}


class Wire:
    """A protobuf file in memory.

    The buffer belongs to the caller. Reads only, so any number of threads may use one object.
    Every method raises OnnxMalformed with the byte offset when the bytes do not make sense.
    """

    __slots__ = ("data", "path", "size")

    def __init__(self, data: Buffer, path: str | os.PathLike[str]) -> None:
        self.data = data
        self.path = os.fspath(path)
        self.size = len(data)

    def fail(self, offset: int, detail: str) -> NoReturn:
        """Raise OnnxMalformed for this file."""
        raise OnnxMalformed(path=self.path, offset=offset, detail=detail)

    def varint(self, pos: int, end: int) -> tuple[int, int]:
        """The unsigned value (below 2**64) that starts at ``pos``, and the offset behind it."""
        data = self.data
        value = shift = 0
        start = pos
        while pos < end:
            byte = data[pos]
            pos += 1
            if byte < 0x80:
                if shift == 63 and byte > 1:
                    self.fail(start, "a varint does not fit into 64 bits")
                return value | byte << shift, pos
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                self.fail(start, "a varint is longer than 10 bytes")
        return self.fail(start, "a varint is cut off")

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """The fields of the message in ``[start, end)``, in file order.

        Each is ``(number, wire type, value, stop, at)``: for a varint, ``value`` is the unsigned
        64-bit value; for every other type it is the offset of the payload. ``stop`` is the offset
        behind the payload, ``at`` that of the tag.
        """
        data = self.data
        pos = start
        while pos < end:
            at = pos
            tag = data[pos]
            pos += 1
            if tag > 0x7F:
                tag, pos = self.varint(at, end)
                if tag > 0xFFFFFFFF:
                    self.fail(at, "a field number is out of range")
            number = tag >> 3
            kind = tag & 7
            if number == 0:
                self.fail(at, "a field has the number 0")
            if kind == BYTES:
                if pos < end and data[pos] < 0x80:
                    size = data[pos]
                    pos += 1
                else:
                    size, pos = self.varint(pos, end)
                stop = pos + size
                if stop > end:
                    self.fail(at, f"field {number} claims {size} bytes where {end - pos} are left")
                yield number, kind, pos, stop, at
                pos = stop
            elif kind == VARINT:
                payload = pos
                value, pos = self.varint(payload, end)
                yield number, kind, value, pos, at
            elif kind in (FIXED32, FIXED64):
                stop = pos + (4 if kind == FIXED32 else 8)
                if stop > end:
                    self.fail(at, f"field {number} is cut off")
                yield number, kind, pos, stop, at
                pos = stop
            else:
                self.fail(at, f"field {number} has the wire type {kind}, which ONNX files do not use")

    def expect(self, number: int, kind: int, wanted: int, at: int) -> None:
        """Refuse a known field that comes in another wire type.

        Protobuf would take it for an unknown field and drop it: a tensor without its data.
        """
        if kind != wanted:
            self.fail(at, f"field {number} has the wire type {kind} in place of {wanted} ({WIRE_NAMES[wanted]})")

    def text(self, start: int, stop: int) -> str:
        """The UTF-8 string in ``[start, stop)``."""
        try:
            return self.data[start:stop].decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(start + error.start, "a string is not valid UTF-8")

    def signed_varints(self, kind: int, value: int, stop: int, at: int) -> Iterator[int]:
        """The int64 values of one occurrence of a repeated varint field, packed or not."""
        if kind == VARINT:
            yield signed64(value)
        elif kind == BYTES:
            pos = value
            while pos < stop:
                entry, pos = self.varint(pos, stop)
                yield signed64(entry)
        else:
            self.fail(at, "a list of integers has a wrong wire type")


def signed64(value: int) -> int:
    """The int64 that protobuf stores as the unsigned ``value``."""
    return value - (1 << 64) if value >> 63 else value
