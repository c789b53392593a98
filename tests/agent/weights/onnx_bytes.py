"""Hand-written protobuf bytes, for files that the onnx package refuses to write."""

from __future__ import annotations


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def num(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def sub(field: int, payload: bytes | str) -> bytes:
    data = payload.encode() if isinstance(payload, str) else payload
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(
    name: str = "w",
    dims: tuple[int, ...] = (2,),
    data_type: int | None = 1,
    raw: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    out = b"".join(num(1, dim) for dim in dims)
    if data_type is not None:
        out += num(2, data_type)
    out += sub(8, name)
    if raw is not None:
        out += sub(9, raw)
    return out + more


def external(name: str = "w", dims: tuple[int, ...] = (2,), data_type: int = 1, **entries: str) -> bytes:
    pairs = b"".join(sub(13, sub(1, key) + sub(2, value)) for key, value in entries.items())
    return tensor(name, dims, data_type, more=pairs + num(14, 1))


def node(op_type: str, *attributes: bytes, outputs: tuple[str, ...] = ("y",), name: str = "") -> bytes:
    out = b"".join(sub(2, output) for output in outputs)
    if name:
        out += sub(3, name)
    return out + sub(4, op_type) + b"".join(sub(5, attribute) for attribute in attributes)


def graph(*initializers: bytes, nodes: tuple[bytes, ...] = (), more: bytes = b"") -> bytes:
    return b"".join(sub(1, entry) for entry in nodes) + b"".join(sub(5, entry) for entry in initializers) + more


def model(body: bytes, more: bytes = b"") -> bytes:
    return num(1, 8) + sub(7, body) + more
