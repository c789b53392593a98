"""A hundred thousand requests: memory, descriptors, threads and leases stay what they were after the first."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from bundles import MODEL

from .running import Running

_REQUESTS = 100_000
_WARM_UP = 20_000
_CONNECTIONS = 4
#: Leases on one engine, of which none is ever given back here.
_MOST_LEASES = 1024


class Use(NamedTuple):
    """What the service costs at one moment."""

    memory: int
    descriptors: int
    threads: int
    leases: int


def measure(service: Running) -> Use:
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    metrics = service.ask("GET", "/metrics").body.decode()
    leases = next(line for line in metrics.splitlines() if line.startswith("refit_agent_leases "))
    return Use(process.memory_full_info().uss, process.num_fds(), process.num_threads(), int(float(leases.split()[1])))


def encoded(method: str, path: str, body: Any = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def batch(bundle: Path) -> list[tuple[bytes, int]]:
    """Requests to send in one go, with the status that each is to have: hits, and something of everything else."""
    wish = {"bundle": str(bundle), "model": MODEL}
    ensure = "/v1/engines:ensure"
    return [
        *[(encoded("POST", ensure, wish), 200)] * 12,
        (encoded("POST", ensure, {**wish, "pid": os.getpid(), "ttl_s": 600}), 200),
        (encoded("POST", ensure, {**wish, "model": "no such"}), 422),
        (encoded("DELETE", "/v1/leases/nonsense"), 404),
        (encoded("GET", "/v1/health"), 200),
    ]


def statuses(sock: socket.socket, count: int) -> list[int]:
    """The status of each of the next ``count`` answers; their bodies are read too."""
    data, found = b"", list[int]()
    while len(found) < count:
        head, blank, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) if blank else 0
        if not blank or len(rest) < length:
            part = sock.recv(1 << 20)
            assert part, "the service hung up"
            data += part
            continue
        found.append(int(head.split(None, 2)[1]))
        data = rest[length:]
    assert not data
    return found


@pytest.mark.slow
def test_a_hundred_thousand_requests_leave_memory_flat(service: Running, bundle: Path) -> None:
    """On kept connections, with leases that nobody gives back."""
    service.ensure(bundle, MODEL)
    requests = batch(bundle)
    data, wanted = b"".join(request for request, _ in requests), [status for _, status in requests]
    done, before = 0, None
    with ExitStack() as stack:
        socks = [stack.enter_context(service.connect()) for _ in range(_CONNECTIONS)]
        while done < _REQUESTS:
            for sock in socks:
                sock.sendall(data)
            for sock in socks:
                assert statuses(sock, len(wanted)) == wanted
                done += len(wanted)
            if before is None and done >= _WARM_UP:
                before = measure(service)
        after = measure(service)
    assert before is not None
    print(f"after {_WARM_UP}: {before}, after {done}: {after}")
    assert after.memory - before.memory < 2 << 20
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads == 1
    assert after.leases == before.leases == _MOST_LEASES
