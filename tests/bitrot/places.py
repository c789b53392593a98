"""Where to flip a bit: every structural byte of a file, and a sample of what lies between."""

from __future__ import annotations

import random
from collections.abc import Iterator

PAGE = 4096


def sample(size: int, seed: int, count: int = 40) -> set[int]:
    """The first and the last bytes, both sides of every page boundary, and ``count`` offsets by chance."""
    ends = {0, 1, size - 2, size - 1}
    pages = {at for edge in range(PAGE, size, PAGE) for at in (edge - 1, edge)}
    return {at for at in ends | pages if 0 <= at < size} | set(random.Random(seed).choices(range(size), k=count))


def protobuf(data: bytes) -> set[int]:
    """Every byte of a tag, of a length and of a number, and the first and last of each string, however deep."""
    return set(_message(data, 0, len(data), 0))


def _message(data: bytes, at: int, end: int, depth: int) -> Iterator[int]:
    while at < end:
        tag, begin = _varint(data, at)
        yield from range(at, begin)
        kind = tag & 7
        if kind == 2:
            length, begin2 = _varint(data, begin)
            yield from range(begin, begin2)
            at = begin2 + length
            if length:
                yield from (begin2, at - 1)
            if depth < 6 and _is_message(data, begin2, at):
                yield from _message(data, begin2, at, depth + 1)
        else:
            at = _varint(data, begin)[1] if kind == 0 else begin + (8 if kind == 1 else 4)
            yield from range(begin, at)


def _is_message(data: bytes, at: int, end: int) -> bool:
    """Whether it reads as one; a string that does by chance only adds offsets."""
    try:
        while at < end:
            tag, at = _varint(data, at)
            if tag >> 3 == 0 or tag & 7 not in (0, 1, 2, 5):
                return False
            if tag & 7 == 2:
                length, at = _varint(data, at)
                at += length
            else:
                at = _varint(data, at)[1] if tag & 7 == 0 else at + (8 if tag & 7 == 1 else 4)
    except IndexError:
        return False
    return at == end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
