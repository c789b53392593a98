"""What an answer's bytes mean: a document, a problem, or a stream of events that ends in one of both."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from refit_agent.client import messages as m
from refit_agent.client.http import Head, Lines, Malformed

T = TypeVar("T")
STREAM_TYPE = "application/x-ndjson"
_MOST_LINE_BYTES = 1 << 20
#: Beyond its own deadline the service may have waited for its turn on the GPU.
_DEADLINES = 2.0
#: The most that the service takes: a day.
_MOST_S = 86400.0


def decoded(head: Head, body: bytes, kind: type[T]) -> T:
    """The document in ``body``.

    Raises:
        RefitAgentError: it is a problem, and this is the error.
        Malformed: it is neither.
    """
    if head.status >= 300:
        problem = _decode(body, m.Problem)
        raise msgspec.structs.replace(problem, status=head.status).error()
    document: T = None if kind is type(None) else _decode(body, kind)
    return document


def within_limits(request: m.EnsureRequest) -> m.EnsureRequest:
    """The request with a deadline that JSON can hold and the service accepts."""
    return msgspec.structs.replace(request, deadline_s=min(request.deadline_s, _MOST_S))


def ensure_patience_s(request: m.EnsureRequest) -> float:
    """How long the whole answer may take."""
    return _DEADLINES * request.deadline_s + 10.0


class EnsureAnswer:
    """Reads the answer to ``ensure``: `feed` gives the steps as they come, `result` the engine at the end."""

    __slots__ = ("_head", "_last", "_lines", "_whole")

    def __init__(self) -> None:
        self._head: Head | None = None
        self._last: m.Finished | m.Failed | None = None
        self._lines = Lines(_MOST_LINE_BYTES)
        self._whole = bytearray()

    def feed(self, head: Head, piece: bytes) -> list[m.Step]:
        """Take in some of the body. Raises Malformed."""
        self._head = head
        if head.status != 200 or head.content_type != STREAM_TYPE:
            self._whole += piece
            return []
        steps: list[m.Step] = []
        for line in self._lines.feed(piece):
            if self._last is not None:
                raise Malformed("it says more than it was asked")
            event = _decode(line, m.Event)
            if isinstance(event, m.Step):
                steps.append(event)
            else:
                self._last = event
        return steps

    def result(self) -> m.EngineResult:
        """The engine.

        Raises:
            RefitAgentError: the service failed, and this is why.
            Malformed: the answer ended without saying how it ended.
        """
        if isinstance(self._last, m.Failed):
            raise self._last.error()
        if self._last is not None:
            return self._last
        if self._head is None or (self._head.status == 200 and self._head.content_type == STREAM_TYPE):
            raise Malformed("its stream ended without a result")
        return decoded(self._head, bytes(self._whole), m.EngineResult)


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Malformed(f"its answer makes no sense ({fault})") from fault
