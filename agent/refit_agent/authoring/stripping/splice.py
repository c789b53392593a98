"""Copies of a protobuf file with some fields replaced, put together from ranges of files and written as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias

from refit_agent.authoring.stripping.input_files import InputFiles
from refit_agent.authoring.stripping.tensors import Frame
from refit_agent.weights.wire import Wire
from refit_agent.weights.wire_writer import varint

_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)


class Copy(NamedTuple):
    """The bytes ``[start, stop)`` of a file."""

    path: str
    start: int
    stop: int


class Fill(NamedTuple):
    """``pattern``, ``times`` over. Zero bytes are not written: they become a hole where the disk has such."""

    pattern: bytes
    times: int


Piece: TypeAlias = bytes | Copy | Fill


class Change(NamedTuple):
    """What stands in place of the bytes ``[at, stop)``, which lie in the messages ``frames``."""

    frames: tuple[Frame, ...]
    at: int
    stop: int
    pieces: Sequence[Piece]


class Digest(Protocol):
    """What hashlib's objects can do."""

    def update(self, data: bytes | memoryview, /) -> None: ...


def total_size(pieces: Iterable[Piece]) -> int:
    """Bytes of all pieces together."""
    size = 0
    for piece in pieces:
        if isinstance(piece, Copy):
            size += piece.stop - piece.start
        else:
            size += len(piece.pattern) * piece.times if isinstance(piece, Fill) else len(piece)
    return size


def tag_bytes(wire: Wire, at: int) -> bytes:
    """The tag at ``at``, as the file spells it."""
    return bytes(wire.data[at : wire.varint(at, wire.size)[1]])


def splice(wire: Wire, changes: Sequence[Change]) -> list[Piece]:
    """The file with the changes made, which are in file order; the lengths of the messages around them follow."""
    return _splice(wire, 0, wire.size, changes, 0)


def _splice(wire: Wire, start: int, stop: int, changes: Sequence[Change], depth: int) -> list[Piece]:
    out: list[Piece] = []
    index = 0
    while index < len(changes):
        change = changes[index]
        if len(change.frames) == depth:
            copy_range(out, wire.path, start, change.at)
            out.extend(change.pieces)
            start = change.stop
            index += 1
            continue
        frame = change.frames[depth]
        end = index + 1
        while end < len(changes) and len(changes[end].frames) > depth and changes[end].frames[depth] == frame:
            end += 1
        at, inner_start, inner_stop = frame
        inner = _splice(wire, inner_start, inner_stop, changes[index:end], depth + 1)
        copy_range(out, wire.path, start, at)
        out.append(tag_bytes(wire, at) + varint(total_size(inner)))
        out.extend(inner)
        start = inner_stop
        index = end
    copy_range(out, wire.path, start, stop)
    return out


def copy_range(out: list[Piece], path: str, start: int, stop: int) -> None:
    """Append a range of a file, joined to the piece before where it goes on there."""
    if start == stop:
        return
    last = out[-1] if out else b""
    if isinstance(last, Copy) and last.path == path and last.stop == start:
        out[-1] = Copy(path, last.start, stop)
    else:
        out.append(Copy(path, start, stop))


def write_pieces(
    out: BinaryIO,
    pieces: Iterable[Piece],
    inputs: InputFiles,
    digest: Digest | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the pieces to a new, empty file, in chunks of a megabyte.

    ``digest`` gets every byte, zeros included; ``on_bytes`` the number of bytes since its last call.

    Raises:
        ModelUnsupported: a file that is copied from cannot be read, or has become shorter.
        OSError: ``out`` cannot be written.
    """
    size = 0
    buffer = bytearray(_CHUNK_BYTES)
    for piece in pieces:
        if isinstance(piece, Copy):
            for chunk in inputs.chunks(piece.path, piece.start, piece.stop, buffer):
                out.write(chunk)
                if digest is not None:
                    digest.update(chunk)
                on_bytes(len(chunk))
        elif isinstance(piece, Fill):
            _write_fill(out, piece, digest, on_bytes)
        else:
            out.write(piece)
            if digest is not None:
                digest.update(piece)
            on_bytes(len(piece))
        size += total_size([piece])
    out.truncate(size)  # a hole at the end is one only then


def _write_fill(out: BinaryIO, fill: Fill, digest: Digest | None, on_bytes: Callable[[int], None]) -> None:
    if fill.pattern == b"\0":
        out.seek(fill.times, 1)
        left = fill.times
        while left:
            count = min(left, _CHUNK_BYTES)
            if digest is not None:
                digest.update(memoryview(_ZEROS)[:count])
            on_bytes(count)
            left -= count
        return
    most = max(1, _CHUNK_BYTES // len(fill.pattern))
    left = fill.times
    while left:
        chunk = fill.pattern * min(left, most)
        out.write(chunk)
        if digest is not None:
            digest.update(chunk)
        on_bytes(len(chunk))
        left -= min(left, most)
