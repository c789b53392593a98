"""Changes to bytes that keep their structure: without them nearly every try ends at the first length or brace."""

from __future__ import annotations

import json
import random
from typing import Any

_NUMBERS = (0, 1, 2, 7, 8, 9, 13, 14, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    "a",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "C:",
    "nul",
    "\n",
    "\0",
    "é",
    "9" * 30,
    "1.2",
    "0" * 64,
    "x" * 300,
)
_DEEPEST = 60


# ---------------------------------------------------------------- protobuf

#: (number, wire type, value): an integer, the bytes of a fixed field, or for a length-delimited one bytes or fields.
_Field = list[Any]


def protobuf(data: bytes, rng: random.Random) -> bytes:
    """The message with one to four changes to its fields, every length brought up to date; other bytes as they are."""
    fields = _parse(data, 0)
    if not fields:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_field(fields, rng)
    return _encode(fields, rng, 0.2 if rng.random() < 0.2 else 0.0)


def _parse(data: bytes, depth: int) -> list[_Field] | None:
    """The fields if the bytes are a message from end to end."""
    fields: list[_Field] = []
    pos = 0
    while pos < len(data):
        tag, pos = _varint(data, pos)
        number, kind = tag >> 3, tag & 7
        if pos < 0 or number == 0:
            return None
        if kind == 0:
            value, pos = _varint(data, pos)
            if pos < 0:
                return None
            fields.append([number, kind, value])
            continue
        size = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            size, pos = _varint(data, pos)
        if size < 0 or pos < 0 or pos + size > len(data):
            return None
        part = data[pos : pos + size]
        pos += size
        inner = _parse(part, depth + 1) if kind == 2 and len(part) > 1 and depth < _DEEPEST else None
        fields.append([number, kind, part if inner is None else inner])
    return fields


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """Value and the offset behind it, which is -1 if there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if pos >= len(data):
            return 0, -1
        value |= (data[pos] & 0x7F) << shift
        pos += 1
        if data[pos - 1] < 0x80:
            return value, pos
    return 0, -1


def _write_varint(value: int, padded: bool = False) -> bytes:
    """As protobuf writes it, or in a byte more than it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    if padded and len(out) < 9:
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def _encode(fields: list[_Field], rng: random.Random, padding: float) -> bytes:
    """The message; ``padding`` is the share of tags, lengths and numbers that are longer than they need to be."""
    out = bytearray()
    for number, kind, value in fields:
        out += _write_varint(number << 3 | kind, rng.random() < padding)
        if kind == 0:
            out += _write_varint(value, rng.random() < padding)
            continue
        part = _encode(value, rng, padding) if isinstance(value, list) else value
        out += (_write_varint(len(part), rng.random() < padding) if kind == 2 else b"") + part
    return bytes(out)


def _change_field(fields: list[_Field], rng: random.Random) -> None:
    at = fields
    # Down at random; a message is changed itself about as often as one that lies in it.
    while True:
        inner = [field[2] for field in at if isinstance(field[2], list) and field[2]]
        if not inner or rng.random() < 0.25:
            break
        at = rng.choice(inner)
    place = rng.randrange(len(at))
    field = at[place]
    action = rng.randrange(8)
    if action == 0 and len(at) > 1:
        del at[place]
    elif action == 1:
        at.insert(rng.randrange(len(at) + 1), list(field))
    elif action == 2:
        at[place], at[0] = at[0], at[place]
    elif action == 3:
        field[0] = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 20, 21, 22, 23, 25))
    elif action == 4:
        at.insert(place, [rng.randrange(1, 26), 0, rng.choice(_NUMBERS)])
    elif field[1] == 0:
        field[2] = rng.choice(_NUMBERS) if rng.random() < 0.5 else max(0, field[2] + rng.choice((-1, 1)))
    elif isinstance(field[2], bytes):
        field[2] = _change_bytes(field[2], rng) if field[1] == 2 else rng.randbytes(len(field[2]))


def _change_bytes(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    action = rng.randrange(5)
    if action == 0:
        return data[:place]
    if action == 1:
        return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
    if action == 2:
        return rng.choice(_TEXTS).encode()
    if action == 3:
        return b"".join(_write_varint(rng.choice(_NUMBERS) & (2**64 - 1)) for _ in range(rng.randrange(1, 5)))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


# ---------------------------------------------------------------- JSON


def json_document(data: bytes, rng: random.Random) -> bytes:
    """The document with one to four changes to its values; what is no JSON, as it is."""
    try:
        holder = [json.loads(data)]
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_value(holder, rng)
    try:
        return json.dumps(holder[0], ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return data


def _change_value(holder: list[Any], rng: random.Random) -> None:
    places: list[tuple[Any, Any]] = []
    todo: list[Any] = [holder]
    while todo:
        at = todo.pop()
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            places.append((at, key))
            if isinstance(at[key], (dict, list)):
                todo.append(at[key])
    at, key = rng.choice(places)
    action = rng.randrange(8)
    if action == 0 and at is not holder:
        del at[key]
    elif action == 1:
        other, name = rng.choice(places)
        # By way of JSON: a value that contains itself has no end.
        at[key] = json.loads(json.dumps(other[name]))
    elif action == 2 and isinstance(at, list) and at is not holder:
        at.append(json.loads(json.dumps(at[key])))
    elif action == 3 and isinstance(at, dict):
        at[rng.choice(_TEXTS)] = at[key]
    elif action == 4:
        at[key] = rng.choice((None, True, [], {}, 0.5, -1, 1e300, [[]], [{}]))
    elif action == 5 and isinstance(at[key], str):
        text = at[key]
        place = rng.randrange(len(text) + 1)
        more = rng.choice((*_TEXTS, "\ud800", "\n", ":", "%", "@", "#", "\u0661"))
        at[key] = rng.choice((text[:place] + more + text[place:], text + more, text[:place] + text[place + 1 :]))
    elif isinstance(at[key], str):
        at[key] = rng.choice(_TEXTS)
    else:
        at[key] = rng.choice(_NUMBERS)
