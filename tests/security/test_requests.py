"""What a hostile program of the same user can send to the service's socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.running import Answer, Running, read_answer

GET = "GET /v1/health HTTP/1.1"
POST = "POST /v1/bundles HTTP/1.1"


@pytest.fixture
def service(home: Path) -> Iterator[Running]:
    with Running(home).start() as running:
        yield running


def _send(service: Running, data: bytes) -> Answer:
    with service.connect() as sock:
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return Answer(0, {}, b"")
        try:
            return read_answer(sock)
        except ConnectionResetError:
            return Answer(0, {}, b"")


def _head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


BODY = b'{"path": "/nowhere"}'
SPLIT = {
    "length and chunks": _head(POST, "Host: x", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two lengths": _head(POST, "Host: x", "Content-Length: 2", f"Content-Length: {len(BODY)}") + BODY,
    "a length that is none": _head(POST, "Host: x", "Content-Length: +5") + b"{}   ",
    "another coding": _head(POST, "Host: x", "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "a chunk of letters": _head(POST, "Host: x", "Transfer-Encoding: chunked") + b"0x5\r\n{}   \r\n0\r\n\r\n",
    "a space before the colon": _head(POST, "Host: x", "Content-Length : 2") + b"{}",
    "a folded line": _head(GET, "Host: x", "X-A: 1\r\n two"),
    "a bare return": _head(GET, "Host: x\rX-B: 1"),
    "a nul": _head(GET, "Host: x", "X-A: \0"),
}


@pytest.mark.parametrize("data", SPLIT.values(), ids=SPLIT)
def test_what_two_readers_would_read_differently_is_refused(service: Running, data: bytes) -> None:
    """And what comes after it over that connection is no request: nothing is registered by it."""
    smuggled = _head("POST /v1/cache:prune HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 2") + b"{}"
    answer = _send(service, data + smuggled)
    assert answer.status in (0, 400, 415, 422, 501), answer
    assert b'"removed"' not in answer.body
    assert answer.body.count(b'"request_id"') <= 1
    assert service.ask("GET", "/v1/health").status == 200


def test_a_sound_request_is_followed_by_the_next(service: Running) -> None:
    """So that the test above would see a second answer, if there were one."""
    second = _head("POST /v1/cache:prune HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 2") + b"{}"
    assert b'"removed"' in _send(service, _head(GET, "Host: x") + second).body


LARGE = {
    "a long address": _head(f"GET /{'x' * 70_000} HTTP/1.1", "Host: x"),
    "a long header": _head(GET, "Host: x", f"X-A: {'x' * 70_000}"),
    "a long name": _head(GET, "Host: x", f"{'X' * 70_000}: a"),
    "a header without an end": _head(GET, "Host: x")[:-2] + b"X-A: " + b"x" * 2_000_000,
    "many headers": _head(GET, "Host: x", *(f"X-{n}: {n}" for n in range(100_000))),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_heads_without_bounds_are_refused(service: Running, data: bytes) -> None:
    """They are not kept in memory, and the service goes on."""
    assert service.process is not None
    before = psutil.Process(service.process.pid).memory_info().rss
    answer = _send(service, data)
    assert answer.status in (0, 400, 414, 431)
    assert service.ask("GET", "/v1/health").status == 200
    assert psutil.Process(service.process.pid).memory_info().rss < before + (16 << 20)


@pytest.mark.parametrize("path", ["/v1/bundles", "/v1/engines:ensure", "/v1/cache:verify"])
def test_nesting_without_bounds_is_a_mistake_like_any_other(service: Running, path: str) -> None:
    """A parser that recurses has only so much stack."""
    for deep in (b"[" * 50_000, b'{"path":' * 10_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000):
        head = _head(f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(deep)}")
        answer = _send(service, head + deep)
        # The last is sound JSON with a field that nobody knows; a newer Python has the stack for it.
        if answer.status != 200 or not deep.endswith(b"}"):
            assert answer.status in (400, 422), answer
            assert json.loads(answer.body)["code"]
    assert service.ask("GET", "/v1/health").status == 200
