"""Ed25519 by its definition (RFC 8032), slowly: to make signatures that no library makes, and to judge them.

`holds` asks for nothing but the equation: no canonical encodings, no order of points, no bound of S. What it takes
and a library refuses is refused by a rule of that library's.
"""

from __future__ import annotations

import hashlib

P = 2**255 - 19
#: The order of the group that the base point generates.
L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, P - 2, P) % P
_ROOT = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """The sum of two points."""
    (x1, y1), (x2, y2) = a, b
    t = _D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, P - 2, P) % P,
    )


def times(n: int, point: Point) -> Point:
    """The point ``n`` times."""
    total: Point = (0, 1)
    while n:
        if n & 1:
            total = add(total, point)
        point, n = add(point, point), n >> 1
    return total


def encode(point: Point) -> bytes:
    """Its 32 bytes: y, and the lowest bit of x."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    """The point of 32 bytes, y not below P allowed; None if there is none."""
    number = int.from_bytes(data, "little")
    y, odd = number % 2**255 % P, number >> 255
    square = (y * y - 1) * pow(_D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT % P
    if (x * x - square) % P:
        return None
    return (x if x & 1 == odd else -x % P, y)


def _base() -> Point:
    point = decode((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    assert point is not None
    return point


BASE = _base()


def challenge(commitment: bytes, key: bytes, message: bytes, prefix: bytes = b"") -> int:
    """The hash that ties a signature to its message; ``prefix`` is that of Ed25519ctx and Ed25519ph."""
    return int.from_bytes(hashlib.sha512(prefix + commitment + key + message).digest(), "little") % L


def sign(secret: int, message: bytes, prefix: bytes = b"") -> tuple[bytes, bytes]:
    """The public key of the scalar ``secret``, and a signature of the message."""
    key = encode(times(secret, BASE))
    nonce = int.from_bytes(hashlib.sha512(b"nonce" + message).digest(), "little") % L
    commitment = encode(times(nonce, BASE))
    answer = (nonce + challenge(commitment, key, message, prefix) * secret) % L
    return key, commitment + answer.to_bytes(32, "little")


def holds(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether S times the base point is R plus the challenge times the key."""
    commitment, public = decode(signature[:32]), decode(key)
    if commitment is None or public is None:
        return False
    hashed = challenge(signature[:32], key, message)
    return times(int.from_bytes(signature[32:], "little"), BASE) == add(commitment, times(hashed, public))


def small_points() -> list[Point]:
    """The eight points whose order divides eight."""
    y = 2
    while True:
        point = decode(y.to_bytes(32, "little"))
        if point is not None:
            torsion = times(L, point)
            if times(4, torsion) != (0, 1):
                return [times(n, torsion) for n in range(8)]
        y += 1


def encodings(point: Point) -> list[bytes]:
    """All 32 bytes that a careless decoder takes for the point: y not below P, and a sign for an x of zero."""
    found = [encode(point)]
    if point[1] + P < 2**255:
        found.append((point[1] + P | (point[0] & 1) << 255).to_bytes(32, "little"))
    if point[0] == 0:
        found += [data[:31] + bytes([data[31] | 0x80]) for data in found]
    return found
