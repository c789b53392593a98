"""The reader of answers: whole or in crumbs it says the same, and what is not sound is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.client.calls import explain, quoted, release
from refit_agent.client.http import MOST_HEAD_BYTES, Answer, Head, Lines, Malformed, request_bytes, require_protocol

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n"
COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def read(data: bytes, cuts: list[int] | None = None) -> tuple[Head | None, bytes, Answer]:
    answer, body = Answer(), b""
    edges = [0, *sorted(set(cuts or [])), len(data)]
    for begin, end in itertools.pairwise(edges):
        if begin < end:
            answer.feed(data[begin:end])
            body += answer.take()
    return answer.head, body, answer


@given(st.binary(max_size=300), st.lists(st.integers(1, 300)), st.lists(st.integers(1, 500)))
def test_a_chunked_body_arrives_whole_however_it_is_cut(body: bytes, sizes: list[int], cuts: list[int]) -> None:
    """The chunks of the service and the pieces of the network have nothing to do with one another."""
    data, at = CHUNKED, 0
    for size in [*sizes, len(body)]:
        part = body[at : at + size]
        at += size
        if part:
            data += b"%X;ext=1\r\n%s\r\n" % (len(part), part)
    data += b"0\r\n\r\n"
    head, got, answer = read(data, [c for c in cuts if c < len(data)])
    assert (head, got, answer.done, answer.reusable) == (Head(200, {"transfer-encoding": "chunked", "a": "b"}), body, True, True)  # fmt: skip


@given(st.binary(max_size=300), st.lists(st.integers(1, 400)))
def test_a_counted_body_arrives_whole_however_it_is_cut(body: bytes, cuts: list[int]) -> None:
    """As with Content-Length."""
    data = COUNTED % len(body) + body
    _, got, answer = read(data, [c for c in cuts if c < len(data)])
    assert (got, answer.done) == (body, True)


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_an_answer_or_malformed(data: bytes) -> None:
    """No other exception, also behind a sound beginning."""
    for begin in (b"", b"HTTP/1.1 200 OK\r\n", CHUNKED, COUNTED % 5):
        try:
            read(begin + data)
        except Malformed as fault:
            assert str(fault)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "status 100"),
        (b"HTTP/1.1 999 ?\r\nContent-Length: 0\r\n\r\n", "status 999"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not given"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not given"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "not given"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n", "not given"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "not given"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "twice"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "two ways"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "two ways"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n", "no sense"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no sense"),
        (b"HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n", "no sense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "longer than announced"),
        (b"HTTP/1.1 204 No\r\n\r\nab", "longer than announced"),
        (CHUNKED + b"-1\r\n", "no size"),
        (CHUNKED + b"fffffffff\r\n", "no size"),
        (CHUNKED + b"\r\n", "no size"),
        (CHUNKED + b"0_1\r\n", "no size"),
        (CHUNKED + b"1" * 200, "no size"),
        (CHUNKED + b"2\r\nabc\r\n", "does not end"),
        (CHUNKED + b"0\r\nX: y\r\n\r\n", "trailers"),
        (CHUNKED + b"0\r\n\r\nHTTP/1.1", "more than it was asked"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 65 + b"Content-Length: 0\r\n\r\n", "more than 64 headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * MOST_HEAD_BYTES, "head is larger"),
    ],
)
def test_what_no_sound_service_sends_is_refused(data: bytes, why: str) -> None:
    """Nothing is guessed: two readings of one answer are how requests are smuggled."""
    with pytest.raises(Malformed, match=why):
        read(data)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 2", CHUNKED, CHUNKED + b"5\r\nab", COUNTED % 5 + b"ab"])
def test_an_end_in_the_middle_is_noticed(data: bytes) -> None:
    """Half an answer is none."""
    _, _, answer = read(data)
    with pytest.raises(Malformed, match="hung up"):
        answer.feed(b"")


def test_a_connection_that_the_service_closes_is_not_used_again() -> None:
    """It says so in a header."""
    _, _, answer = read(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n")
    assert answer.done
    assert not answer.reusable
    assert read(b"HTTP/1.1 204 No Content\r\nA: 1\r\n\r\n")[2].reusable


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b)), st.lists(st.integers(0, 200)))
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    """An event may come in two pieces, and two events in one."""
    data = b"".join(line + b"\n" for line in lines)
    edges = [0, *sorted({c for c in cuts if c < len(data)}), len(data)]
    reader, got = Lines(20), []
    for begin, end in itertools.pairwise(edges):
        got += reader.feed(data[begin:end])
    assert got == lines


@pytest.mark.parametrize("data", [b"x" * 21, b"x" * 21 + b"\n", b"a\n" + b"x" * 21])
def test_a_line_without_an_end_is_refused(data: bytes) -> None:
    """It would fill the memory."""
    with pytest.raises(Malformed, match="longer than 20"):
        Lines(20).feed(data)


@pytest.mark.parametrize("said", ["", "2", "1.0", "1\n", "x" * 1000])
def test_another_protocol_is_refused(said: str) -> None:
    """In words that fit on a line."""
    with pytest.raises(Malformed, match="this client speaks 1") as caught:
        require_protocol(Head(200, {"refit-agent-protocol": said} if said else {}))
    assert len(str(caught.value)) < 100


def test_what_is_put_into_an_address_cannot_change_it() -> None:
    """A bundle's path may hold anything."""
    assert explain("/a b&model=x?#\r\n/ü", None, "p/1", None).target == "/v1/explain?bundle=%2Fa%20b%26model%3Dx%3F%23%0D%0A%2F%C3%BC&profile=p%2F1"  # fmt: skip
    assert release("../status").target == "/v1/leases/..%2Fstatus"
    assert quoted("\udcff") == "%FF"
    with pytest.raises(ValueError, match="no request target"):
        request_bytes("GET", "/v1/x y", None)
