"""HTTP/1.1 answers, read strictly and without input or output: bytes are fed in, head and body come out.

Both clients stand on it. What a sound service never sends (a body without a length, a folded header,
a chunk that does not end where it says) is refused, not guessed at.
"""

from __future__ import annotations

from typing import NamedTuple

from refit_agent.client.messages import PROTOCOL

MOST_HEAD_BYTES = 32 << 10
MOST_HEADERS = 64
MOST_CHUNK_LINE_BYTES = 128
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Malformed(Exception):  # noqa: N818 - the name says the situation
    """The peer does not speak this protocol; the message says how, as a clause."""


class Replaced(Malformed):
    """Another service than the one that was meant listens there by now, and where is known: it may be asked once."""


class Head(NamedTuple):
    """What stands before the body. Header names are in lower case."""

    status: int
    headers: dict[str, str]

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Whom:
    """Which service is asked, as requests say it and answers show it. This one is behind a Unix socket, where the
    kernel has said whose it is."""

    __slots__ = ()

    @property
    def header_lines(self) -> str:
        """The lines of a request's head that are for this service."""
        return "Host: refit-agent\r\n"

    def check(self, head: Head) -> None:
        """Raise Malformed unless the answer is this service's, in our version of the protocol."""
        require_protocol(head)


UNIX = Whom()


def request_bytes(method: str, target: str, body: bytes | None, whom: Whom = UNIX) -> bytes:
    """One request, complete. ``target`` must be percent-encoded already."""
    if not target.startswith("/") or not target.isascii() or any(c <= " " or c == "\x7f" for c in target):
        raise ValueError(f"no request target: {target!r}")
    head = f"{method} {target} HTTP/1.1\r\n{whom.header_lines}Accept: application/json, application/x-ndjson\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode("ascii") + b"\r\n" + (body or b"")


class Answer:
    """Reads one answer. Feed it what arrives (b"" at the end of the stream), then take what has become ready.

    Attributes:
        head: status and headers, None until they are complete.
        done: whether the whole body has come.
    """

    __slots__ = ("_body", "_buffer", "_chunked", "_left", "done", "head")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.done = False
        self._buffer = bytearray()
        self._body = bytearray()
        self._chunked = False
        #: Bytes still to come of the body or chunk, its line end included; -1: a chunk's size comes next.
        self._left = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the same connection."""
        return (
            self.done
            and not self._buffer
            and self.head is not None
            and self.head.headers.get("connection", "").lower() != "close"
        )

    def feed(self, data: bytes) -> None:
        """Take in what arrived.

        Raises:
            Malformed: it is no answer of a service, or the stream ended within it.
        """
        if self.done:
            raise Malformed("it says more than it was asked")
        if not data:
            raise Malformed("it hung up in the middle" if self.head or self._buffer else "it hung up without an answer")
        self._buffer += data
        if self.head is None:
            end = self._buffer.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES)
            if end < 0:
                if len(self._buffer) >= MOST_HEAD_BYTES:
                    raise Malformed(f"its head is larger than {MOST_HEAD_BYTES} bytes")
                if not b"HTTP/1.1 "[: len(self._buffer)] == self._buffer[:9]:
                    raise Malformed("it does not speak HTTP/1.1")
                return
            self.head = _head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self._begin_body(self.head)
        if self._chunked:
            self._read_chunks()
        else:
            self._read_counted()

    def take(self) -> bytes:
        """What has come of the body since the last call."""
        taken = bytes(self._body)
        self._body.clear()
        return taken

    def _begin_body(self, head: Head) -> None:
        length, coding = head.headers.get("content-length"), head.headers.get("transfer-encoding")
        if head.status in (204, 304):
            return
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise Malformed("the length of its answer can be read in two ways")
            self._chunked, self._left = True, -1
            return
        if length is None or not length.isascii() or not 1 <= len(length) <= 15 or not set(length.encode()) <= _DIGITS:
            raise Malformed("the length of its answer is not given")
        self._left = int(length)

    def _read_counted(self) -> None:
        if len(self._buffer) > self._left:
            raise Malformed("its answer is longer than announced")
        self._body += self._buffer
        self._left -= len(self._buffer)
        self._buffer.clear()
        self.done = self._left == 0

    def _read_chunks(self) -> None:
        while not self.done:
            if self._left < 0:
                end = self._buffer.find(b"\r\n", 0, MOST_CHUNK_LINE_BYTES)
                if end < 0:
                    if len(self._buffer) >= MOST_CHUNK_LINE_BYTES:
                        raise Malformed("a chunk has no size")
                    return
                digits = bytes(self._buffer[:end]).partition(b";")[0].rstrip(b" \t")
                if not 1 <= len(digits) <= 8 or not set(digits) <= _HEX:
                    raise Malformed("a chunk has no size")
                size = int(digits, 16)
                if size == 0:
                    if len(self._buffer) < end + 4:
                        return  # the empty line after the last chunk is still to come
                    if self._buffer[end + 2 : end + 4] != b"\r\n":
                        raise Malformed("it sends trailers")
                    del self._buffer[: end + 4]
                    self.done = True
                    if self._buffer:
                        raise Malformed("it says more than it was asked")
                    return
                del self._buffer[: end + 2]
                self._left = size + 2
            payload = min(self._left - 2, len(self._buffer))
            if payload > 0:
                self._body += self._buffer[:payload]
                del self._buffer[:payload]
                self._left -= payload
            if self._left > 2 or len(self._buffer) < 2:
                return
            if self._buffer[:2] != b"\r\n":
                raise Malformed("a chunk does not end where it should")
            del self._buffer[:2]
            self._left = -1


class Lines:
    """Cuts a stream into lines, none of them longer than ``most`` bytes."""

    __slots__ = ("_most", "_rest")

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends. Raises Malformed."""
        searched = len(self._rest)
        self._rest += data
        lines = []
        begin = 0
        while (end := self._rest.find(b"\n", max(begin, searched))) >= 0:
            lines.append(bytes(self._rest[begin:end]))
            begin = end + 1
        del self._rest[:begin]
        if len(self._rest) > self._most or any(len(line) > self._most for line in lines):
            raise Malformed(f"a line of its answer is longer than {self._most} bytes")
        return lines


def require_protocol(head: Head) -> None:
    """Raise Malformed unless the service speaks our version of the protocol."""
    version = head.headers.get("refit-agent-protocol", "")
    if version != str(PROTOCOL):
        said = f"protocol {version[:20]!r}" if version else "no protocol that we know"
        raise Malformed(f"it speaks {said}, and this client speaks {PROTOCOL}")


def _head(data: bytes) -> Head:
    first, *rest = data.split(b"\r\n")
    if not (
        first.startswith(b"HTTP/1.1 ")
        and len(first) >= 12
        and set(first[9:12]) <= _DIGITS
        and first[12:13] in (b"", b" ")
    ):
        raise Malformed("it does not speak HTTP/1.1")
    status = int(first[9:12])
    if not 200 <= status <= 599:
        raise Malformed(f"it answers with the status {status}")
    if len(rest) > MOST_HEADERS:
        raise Malformed(f"its answer has more than {MOST_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip() != name or b"\n" in line or b"\r" in line or b"\0" in line:
            raise Malformed("a header of its answer makes no sense")
        key = name.decode("latin-1").lower()
        if key in headers and key in ("content-length", "transfer-encoding", "refit-agent-protocol"):
            raise Malformed(f"the header {key} stands there twice")
        headers[key] = value.decode("latin-1").strip(" \t")
    return Head(status, headers)
