"""A real service in a real process, and a raw client of its socket or, where its place ends in .json, of its port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Running:
    """One service below one home; ``path`` is put before its module search path, to bring misbehaving runtimes."""

    def __init__(self, home: Path, path: Sequence[Path] = (), **env: str) -> None:
        self.home = home
        self.socket = Path(env.get("REFIT_AGENT_SOCKET") or home / "run" / "agent.sock")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT_", "CUDA_"))}
        self.env |= {
            "REFIT_AGENT_HOME": str(home),
            "REFIT_AGENT_WARM": "0",
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            **env,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True, **options: Any) -> Running:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "refit_agent", "serve"],
            env=self.env,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )
        while wait:
            try:
                self.ask("GET", "/v1/health")
                break
            except OSError:
                assert self.process.poll() is None, self.process.stdout.read()
                time.sleep(0.02)
        return self

    def __enter__(self) -> Running:
        return self if self.process else self.start()

    def __exit__(self, *args: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    @property
    def place(self) -> Any:
        """What the file says of the port."""
        return json.loads(self.socket.read_bytes())

    def connect(self) -> socket.socket:
        if self.socket.suffix == ".json":
            return socket.create_connection(("127.0.0.1", self.place["port"]), 30)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        try:
            sock.connect(str(self.socket))
        except OSError:
            sock.close()
            raise
        return sock

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> socket.socket:
        data = b"" if body is None else json.dumps(body).encode()
        common = {"Host": "x"}
        if self.socket.suffix == ".json":
            place = self.place
            common = {"Host": f"127.0.0.1:{place['port']}", "Authorization": f"Bearer {place['token']}"}
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", f"Content-Length: {len(data)}"]
        lines += [f"{k.replace('_', '-')}: {v}" for k, v in (common | headers).items() if v]
        sock = self.connect()
        sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return sock

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with self.send(method, path, body, **headers) as sock:
            return read_answer(sock)

    def ensure(self, bundle: Path | str, model: str, **more: Any) -> Answer:
        return self.ask("POST", "/v1/engines:ensure", {"bundle": str(bundle), "model": model, **more})

    def begin(self, bundle: Path | str, model: str, **more: Any) -> socket.socket:
        return self.send("POST", "/v1/engines:ensure", {"bundle": str(bundle), "model": model, **more})

    @property
    def status(self) -> Any:
        return self.ask("GET", "/v1/status").document

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children()


def read_answer(sock: socket.socket) -> Answer:
    """Everything until the other side closes."""
    data = b""
    while part := sock.recv(65536):
        data += part
    if not data:
        raise ConnectionResetError("no answer")
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in rest)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunk(body)
    return Answer(int(first.split()[1]), headers, body)


def _unchunk(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return whole


def until(condition: Any, seconds: float = 15) -> Any:
    """The first true value of ``condition()``."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)
    return value
