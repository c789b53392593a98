"""The service's API: a service in this process whose connection gets the input as it is.

It never fails (an answer with status 500, a fault in its log, an exception that nobody took), answers as itself, and
still answers the next one. Its bundle is reached as ``/proc/self/cwd/bundle``, so that the corpus names no place of
the machine; nothing is made, since the Python that workers would run in is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

from .. import mutators, sandbox

sys.path.insert(0, str(Path(__file__).parents[2]))

BUNDLE = "/proc/self/cwd/bundle"
#: For an answer that needs a thread: after that the client hangs up, as clients do.
_PATIENCE_S = 0.25
#: In the client's own version, even if it is 0.9.
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")
_HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
_WORDS = (b"\r\n", b"\r\n\r\n", b"GET ", b"POST ", b"DELETE ", b"/v1/", b"/v1/status", b"?model=", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"0\r\n\r\n", b"Upgrade: websocket\r\n", b"%00", b"%ff", b"\xff", b"\x00", b"HTTP/1.0", b"X-Request-Id: a\r\n", b"Origin: null\r\n")  # fmt: skip


class _Faults(logging.Handler):
    """Keeps what goes wrong inside and would only be logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class _Service:
    """The parts of `refit_service.daemon` in an event loop that runs while a client waits."""

    def __init__(self, folder: Path) -> None:
        os.environ |= {
            "REFIT_AGENT_HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "REFIT_AGENT_WARM": "0",
            "REFIT_AGENT_SOCKET": "",
        }
        os.chdir(folder)
        from bundles import MODEL, make_bundle
        from refit_agent import ensure_engine

        make_bundle(folder / "bundle")
        ensure_engine(folder / "bundle", MODEL).close()  # asking for it is a hit from now on
        os.environ["REFIT_AGENT_PYTHON"] = "/bin/false"
        self.faults = _Faults()
        for name in ("", "aiohttp", "asyncio", "refit_service"):
            logging.getLogger(name).addHandler(self.faults)
            logging.getLogger(name).propagate = False
        self.heard = 0
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.faults.seen.append(str(context)))
        self.path = str(folder / "s")
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        from aiohttp import web

        from refit_agent import paths
        from refit_agent.cache.store import Store
        from refit_service.app import make_app
        from refit_service.jobs import Jobs
        from refit_service.leases import LeaseBook
        from refit_service.metrics import Tally
        from refit_service.page.on_demand import PageOnDemand
        from refit_service.registry import Registry
        from refit_service.state import Service
        from refit_service.transport import Doorkeeper
        from refit_service.warm import Warmer

        def report(error: BaseException, request_id: str) -> None:
            self.faults.seen.append(f"{type(error).__name__}: {error}")

        home, tally, leases = paths.home(), Tally(), LeaseBook(self.loop)
        store, registry = Store(home.cache), Registry(home.state)
        jobs = Jobs(leases, lambda job: None)
        warmer = Warmer(registry, jobs, home.state, report)
        service = Service(
            home, store, registry, leases, jobs, warmer, tally, time.time(), time.monotonic(), lambda: 0, report, PageOnDemand()
        )  # fmt: skip
        runner = web.AppRunner(make_app(service, lambda h: self._hear(h)), handler_cancellation=True, access_log=None)
        await runner.setup()
        assert runner.server is not None
        self.server = runner.server
        self.door = Doorkeeper(runner.server, os.geteuid(), lambda uid: self.faults.seen.append(f"user {uid}?"))
        await self.loop.create_unix_server(self.door, self.path)

    def _hear(self, handler: Any) -> None:
        self.heard += 1
        self.door.heard(handler)

    def ask(self, data: bytes, patience_s: float, least: int = 0) -> bytes:
        """Everything that comes back, until the service hangs up, has answered all that it heard (and ``least``
        requests), or is slow."""
        return self.loop.run_until_complete(self._ask(data, patience_s, least))

    async def _ask(self, data: bytes, patience_s: float, least: int) -> bytes:
        self.heard = 0
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await self.loop.sock_connect(sock, self.path)
        got = bytearray()
        with contextlib.closing(sock), contextlib.suppress(ConnectionError):
            sending = asyncio.ensure_future(self.loop.sock_sendall(sock, data))
            receiving = asyncio.ensure_future(self.loop.sock_recv(sock, 1 << 16))
            ends, idle = self.loop.time() + patience_s, 0
            while self.loop.time() < ends and idle < 2:
                # What has come of a request is known a moment later; an answer that is due is waited for. One and the same
                # receive goes on meanwhile: from Python 3.12 on a cancelled one may have taken bytes with it.
                if not (await asyncio.wait({receiving}, timeout=0.001))[0]:
                    quiet = sending.done() and len(_STATUS.findall(got)) >= max(self.heard, least)
                    idle = idle + 1 if quiet else 0
                    continue
                if not (part := receiving.result()):
                    break
                got += part
                receiving = asyncio.ensure_future(self.loop.sock_recv(sock, 1 << 16))
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
        for _ in range(3):  # it hears that we hung up
            await asyncio.sleep(0)
        return bytes(got)


_service = _Service(sandbox.folder("http"))


def check(data: bytes) -> bool:
    """Send ``data``, and then ask how the service is."""
    got = _service.ask(data, _PATIENCE_S)
    statuses = [int(status) for status in _STATUS.findall(got)]
    if got:
        assert _STATUS.match(got), got[:40]
        assert 500 not in statuses, got
        head = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")[0].lower()
        assert not head or b"\r\nserver: refit-agent" in head, head
        assert not head or b"\r\nx-request-id: " in head, head
    healthy = _service.ask(_HEALTH, 10, 1)
    assert healthy.endswith(b'{"ok":true}'), f"it is not well after that: {healthy!r}"
    faults, _service.faults.seen = _service.faults.seen, []
    assert not faults, "\n".join(faults)
    return any(200 <= status < 300 for status in statuses)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another body with its length, or a word put into the head."""
    head, between, body = data.partition(b"\r\n\r\n")
    if body and rng.random() < 0.6:
        new = mutators.json_document(body, rng)
        return head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(new)) + between + new
    place = rng.randrange(len(head) + 1)
    return head[:place] + rng.choice(_WORDS) + head[place + rng.choice((0, 0, 1, 4, 9)) :] + between + body


def request(method: str, target: str, body: object = None, **headers: str) -> bytes:
    """One request as a client writes it."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    if body is not None:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data
