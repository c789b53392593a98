"""A small service on a real Unix socket, in threads: sound by default, and as bad as a test wants it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from refit_agent import ensure_engine
from refit_agent.errors import RefitAgentError
from refit_agent.progress import Progress


class Asked(NamedTuple):
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    def request(self) -> Asked | None:
        line = self._file.readline()
        if not line:
            return None
        method, target, _ = line.decode().split()
        headers: dict[str, str] = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = self._file.read(int(headers.get("content-length", 0)))
        return Asked(method, target, headers, json.loads(body) if body else None)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, status: int = 200, kind: str = "application/json", protocol: str = "1", **more: str) -> None:
        lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}; charset=utf-8", f"Refit-Agent-Protocol: {protocol}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def json(self, document: object, status: int = 200, kind: str = "application/json", protocol: str = "1") -> None:
        body = b"" if document is None else msgspec.json.encode(document)
        if status == 204:
            self.head(status, kind, protocol)
        else:
            self.head(status, kind, protocol, Content_Length=str(len(body)))
            self.send(body)

    def problem(self, code: str, status: int = 422, **facts: object) -> None:
        document = {"title": code, "status": status, "code": code, "detail": "It failed.", "hint": "Do something.", "facts": facts, "request_id": "r1"}  # fmt: skip
        self.json(document, status, "application/problem+json")

    def begin_stream(self) -> None:
        self.head(kind="application/x-ndjson", Transfer_Encoding="chunked")

    def event(self, event: str, **fields: object) -> None:
        self.chunk(msgspec.json.encode({"event": event, **fields}) + b"\n")

    def step(self, phase: str = "refit", fraction: float = 0.5) -> None:
        self.event("progress", phase=phase, text=phase, fraction=fraction, done=1, total=2, eta_s=3.5)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def wait_for_hang_up(self, seconds: float = 5.0) -> bool:
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


Behaviour = Callable[[Peer, Asked], None]


class FakeService:
    """Serves until `close`; ``asked`` is every request, ``hung_up`` is set when a client left in the middle."""

    def __init__(self, path: Path, behaviour: Behaviour | None = None) -> None:
        self.path = path
        self.behaviour: Behaviour = behaviour or self.sound
        self.asked: list[Asked] = []
        self.leases: set[str] = set()
        self.bundles: dict[str, dict[str, object]] = {}
        self.connections = 0
        self.hung_up = threading.Event()
        self._open: list[socket.socket] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            peer = Peer(connection)
            try:
                while (asked := peer.request()) is not None:
                    self.asked.append(asked)
                    self.behaviour(peer, asked)
            except (OSError, ValueError):
                self.hung_up.set()
            finally:
                peer._file.close()

    def close(self) -> None:
        """Stop, and close every connection as the end of a process does."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    # ------------------------------------------------------------ a sound one

    def sound(self, peer: Peer, asked: Asked) -> None:
        """What the contract says, for the calls that the tests need."""
        what = (asked.method, asked.target.partition("?")[0])
        if what == ("POST", "/v1/engines:ensure"):
            self.ensure(peer, asked)
        elif asked.target.startswith("/v1/leases/"):
            self.lease(peer, asked)
        elif what == ("GET", "/v1/status"):
            peer.json(STATUS | {"pid": os.getpid(), "bundles": len(self.bundles)})
        elif what == ("GET", "/v1/bundles"):
            peer.json({"bundles": list(self.bundles.values())})
        elif what == ("POST", "/v1/bundles"):
            record = {"id": "0123456789abcdef", "path": asked.body["path"], "app": "org.example", "name": "Test", "version": "1", "models": ["mlp"], "registered": 1.0}  # fmt: skip
            self.bundles[str(record["id"])] = record
            peer.json(record, 201)
        elif asked.method == "DELETE" and asked.target.startswith("/v1/bundles/"):
            if self.bundles.pop(asked.target[len("/v1/bundles/") :], None):
                peer.json(None, 204)
            else:
                peer.problem("not-found", 404)
        elif what == ("GET", "/v1/gpus"):
            peer.json({"machine": {"os": "linux", "arch": "x86_64", "new_field": 1}})
        elif asked.target.startswith(("/v1/explain", "/v1/cache")):
            peer.json({"target": asked.target, "body": asked.body})
        else:
            peer.problem("not-found", 404)

    def ensure(self, peer: Peer, asked: Asked) -> None:
        """Make it for real, in-process, and tell the steps."""
        wish = asked.body
        peer.begin_stream()
        try:
            with ensure_engine(wish["bundle"], wish["model"], wish["profile"], wish["target"], lambda p: _tell(peer, p), weights=wish["weights"], service=False) as engine:  # fmt: skip
                why = engine.explanation
                self.leases.add("lease-1")
                peer.event(
                    "result",
                    path=os.fspath(engine),
                    key=engine.key,
                    runtime=engine.runtime,
                    runtime_version=engine.runtime_version,
                    target=engine.target,
                    profile=engine.profile,
                    hit=engine.hit,
                    explanation={
                        "engine": why.engine,
                        "tier": why.tier,
                        "chosen": why.chosen,
                        "attempts": [],
                        "refusals": [],
                    },
                    lease={"id": "lease-1", "ttl_s": wish["ttl_s"], "expires": time.time() + wish["ttl_s"]},
                )
        except RefitAgentError as error:
            facts = {k: str(v) for k, v in error.facts.items()}
            peer.event("error", title="", status=502, code=error.code, detail=str(error), hint="said by the service", facts=facts, request_id="r1")  # fmt: skip
        peer.send(b"0\r\n\r\n")

    def lease(self, peer: Peer, asked: Asked) -> None:
        """Renew or release."""
        name, _, verb = asked.target[len("/v1/leases/") :].partition(":")
        if name not in self.leases:
            peer.problem("no-such-lease", 404)
        elif verb == "renew":
            peer.json({"id": name, "ttl_s": asked.body["ttl_s"], "expires": 5.0})
        else:
            self.leases.discard(name)
            peer.json(None, 204)


def _tell(peer: Peer, step: Progress) -> None:
    peer.event("progress", **msgspec.structs.asdict(step), eta_s=None)


STATUS: dict[str, object] = {"version": "0.1.0", "protocol": 1, "pid": 1, "started": 1.0, "uptime_s": 61.5, "idle": True, "bundles": 0, "jobs": [], "warm": {"state": "idle", "reason": "", "failures": []}, "cache": {"bytes": 1024, "entries": 1, "quota": 4096}, "errors": []}  # fmt: skip


@contextlib.contextmanager
def serving(path: Path, behaviour: Behaviour | None = None) -> Iterator[FakeService]:
    """A service for as long as the block runs."""
    service = FakeService(path, behaviour)
    try:
        yield service
    finally:
        service.close()
