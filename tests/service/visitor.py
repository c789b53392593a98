"""A browser without a screen: plain HTTP requests for the status page."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

from .running import Answer, Running, read_answer


class Visitor:
    """Asks at the address of a page's link, as the browser that was sent there would."""

    def __init__(self, url: str) -> None:
        self.host, _, self.opening = url.removeprefix("http://").partition("/")
        self.port = int(self.host.rpartition(":")[2])
        self.cookie = ""
        self.place = ""

    @classmethod
    def of(cls, service: Running) -> Visitor:
        """With a new link of the service's."""
        return cls(service.ask("POST", "/v1/page").document["url"])

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.settimeout(30)
        return sock

    def request(self, path: str, method: str = "GET", **headers: str | None) -> bytes:
        """``headers`` with "_" for "-"; None leaves one out."""
        given: dict[str, str | None] = {"Host": self.host, "Cookie": self.cookie or None, "Connection": "close"}
        given |= {name.replace("_", "-"): text for name, text in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items() if v is not None)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def ask(self, path: str, method: str = "GET", **headers: str | None) -> Answer:
        with self.connect() as sock:
            sock.sendall(self.request(path, method, **headers))
            return read_answer(sock)

    def open(self, **headers: str | None) -> Answer:
        """Use the link; from then on the cookie goes with every request."""
        answer = self.ask("/" + self.opening, **headers)
        if answer.status == 200:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
            found = re.search(r'content="0;url=(/[\w-]+/)"', answer.body.decode())
            assert found
            self.place = found[1]
        return answer

    def stream(self) -> Stream:
        """The page's news."""
        sock = self.connect()
        sock.sendall(self.request(self.place + "events"))
        return Stream(sock)


class Stream:
    """One stream of news; ``parts`` is what the page would show by now."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self.head = b""
        self.parts: dict[str, Any] = {}
        self._documents = self._read()
        while (line := self._file.readline()).strip():
            self.head += line

    def _read(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while size := int(self._file.readline() or b"0", 16):
            *lines, rest = (rest + self._file.read(size)).split(b"\n")
            self._file.readline()
            yield from map(json.loads, lines)

    def until(self, part: str, wanted: Any = lambda data: True) -> Any:
        """The content of that part as soon as it is as wanted."""
        while part not in self.parts or not wanted(self.parts[part]):
            document = next(self._documents, None)
            assert document, f"the stream ended without {part} as wanted: {self.parts.get(part)}"
            self.parts[document["part"]] = document["data"]
        return self.parts[part]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()
        self.sock.close()
