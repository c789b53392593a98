"""The client's reader of answers: strict, the same in whatever pieces they arrive, and never more than was sent.

The first byte says what was asked (an engine, or one of the other calls) and how the rest is cut into pieces.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from refit_agent.client import calls
from refit_agent.client.answers import EnsureAnswer, decoded
from refit_agent.client.http import UNIX, Answer, Malformed
from refit_agent.errors import RefitAgentError

from .. import mutators

_KINDS = [
    call.kind
    for call in (
        calls.renew("l", 1),
        calls.release("l"),
        calls.status(),
        calls.bundles(),
        calls.add_bundle("/b"),
        calls.gpus(),
        calls.page(),
        calls.cache(),
    )
]


def check(data: bytes) -> bool:
    """Read ``data`` as an answer, at once and in pieces."""
    if not data:
        return False
    how, answer = data[0], data[1:]
    at_once = _read(how, [answer])
    in_pieces = _read(how, _pieces(answer, 1 + how // 8))
    assert msgspec.json.encode(at_once) == msgspec.json.encode(in_pieces), f"{at_once} at once, {in_pieces} in pieces"
    return at_once[0] == "good"


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another body with its length, or other bytes."""
    head, between, body = data.partition(b"\r\n\r\n")
    if not between or rng.random() < 0.2:
        return data
    lines = body.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = mutators.json_document(lines[place], rng)
    new = b"\n".join(lines)
    return head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(new)) + between + new


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def _read(how: int, pieces: Any) -> tuple[str, Any]:
    """What the caller gets in the end: ("good", a document), ("error", its words) or ("malformed", "")."""
    answer, engine, body = Answer(), EnsureAnswer(), bytearray()
    steps = []
    try:
        for piece in pieces:
            answer.feed(piece)
            taken = answer.take()
            body += taken
            if answer.head is not None:
                UNIX.check(answer.head)
                if how % 2:
                    steps += engine.feed(answer.head, taken)
            assert answer.done or not answer.reusable
        if not answer.done:
            answer.feed(b"")
            raise AssertionError("the end of the stream was no end")
        assert answer.head is not None
        if how % 2:
            return "good", (steps, engine.result())
        return "good", decoded(answer.head, bytes(body), _KINDS[how // 2 % len(_KINDS)])
    except Malformed as error:
        assert str(error)
        return "malformed", ""
    except RefitAgentError as error:
        assert str(error) and isinstance(error.hint, str)
        return "error", (str(error), error.hint)
