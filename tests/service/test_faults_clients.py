"""Clients that do not read, and more of them than there may be."""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from bundles import MODEL, make_bundle
from refit_agent import ensure_engine

from .altered import Altered, talking_runtime
from .running import Answer, Running, read_answer, until

_MOST_CONNECTIONS = 256
#: A few lines of progress fill what the system keeps for a reader that sleeps (about 200 KB).
_CHATTY = """
n = [0]
def step():
    n[0] += 1
    tell("step %d " % n[0] + "x" * 30000)
    time.sleep(0.02)
wait(step)
"""


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A runtime that reports long steps without end, until the file "go" is there."""
    return talking_runtime(tmp_path / "chatty", _CHATTY)


@pytest.fixture
def hasty(home: Path, chatty: Path) -> Iterator[Altered]:
    """A service that waits for a second until its last line is taken."""
    with Altered(home, "from refit_service import ensure_handler as e; e._LAST_LINE_S = 1.0", path=[chatty]) as running:
        yield running


def unread(sock: socket.socket) -> int:
    """Bytes that wait on our side of the connection."""
    data = fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", data)[0])


def sleeping_reader(service: Running, bundle: Path) -> socket.socket:
    sock = service.begin(bundle, MODEL)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return sock


def wait_until_full(sock: socket.socket) -> int:
    """Wait until no more goes in, for a second in which dozens of steps were reported; gives the bytes that wait."""
    before = -1
    while (now := unread(sock)) != before:
        before = now
        time.sleep(1)
    assert now > 60_000
    return now


def gauge(service: Running, name: str) -> float:
    lines = service.ask("GET", "/metrics").body.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"refit_agent_{name} ")))


def test_readers_that_sleep_hold_up_nobody_and_cost_no_memory(
    start: Callable[..., Running], chatty: Path, sound_bundle: Path, tmp_path: Path
) -> None:
    """Their connections are full; others go on at full speed; they get the engine when they read again."""
    ready = make_bundle(tmp_path / "ready", seed=9)
    with ensure_engine(ready, MODEL, service=False):
        service = start(path=[chatty])
        with ExitStack() as stack:
            sleepers = [stack.enter_context(sleeping_reader(service, sound_bundle)) for _ in range(20)]
            reader = stack.enter_context(service.begin(sound_bundle, MODEL))
            full = wait_until_full(sleepers[0])
            assert service.process is not None
            process = psutil.Process(service.process.pid)
            before, begun = process.memory_info().rss, time.monotonic()
            read = 0
            while time.monotonic() - begun < 3:
                read += len(reader.recv(1 << 20))
                assert service.ensure(ready, MODEL).document["hit"]
            assert read > 10 * 60_000, "one who reads goes on getting lines"
            assert unread(sleepers[0]) == full
            assert process.memory_info().rss - before < 4 << 20
            begun = time.monotonic()
            for _ in range(200):
                assert service.ensure(ready, MODEL).document["hit"]
            assert time.monotonic() - begun < 4
            (chatty / "go").touch()
            for sock in [reader, *sleepers]:
                rest = b""
                while part := sock.recv(1 << 20):
                    rest += part
                assert json.loads(rest.splitlines()[-4])["event"] == "result", rest[-1000:]
        until(lambda: gauge(service, "connections") == 1)


def test_a_reader_that_never_reads_again_is_cut_off(hasty: Altered, chatty: Path, sound_bundle: Path) -> None:
    """A while after the end of the job: its connection goes, and the lease that it never learned of."""
    with sleeping_reader(hasty, sound_bundle) as sleeper, hasty.begin(sound_bundle, MODEL) as reader:
        wait_until_full(sleeper)
        (chatty / "go").touch()
        assert read_answer(reader).lines[-1]["event"] == "result"
        assert gauge(hasty, "leases") == 2
        until(lambda: gauge(hasty, "connections") == 1, 10)
        assert gauge(hasty, "leases") == 1
        rest = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sleeper.recv(1 << 20):
                rest += part
        assert b'"event":"result"' not in rest
    assert hasty.ensure(sound_bundle, MODEL).document["hit"]


def test_a_reader_that_sleeps_is_not_waited_for_beyond_its_deadline(
    hasty: Altered, chatty: Path, sound_bundle: Path
) -> None:
    """The work is stopped when nobody but it wants it any more."""
    with hasty.begin(sound_bundle, MODEL, deadline_s=4) as sleeper:
        wait_until_full(sleeper)
        until(lambda: hasty.status["idle"], 15)
        until(lambda: not hasty.workers(), 5)
        until(lambda: gauge(hasty, "connections") == 1, 10)


def ask_health(sock: socket.socket) -> Answer:
    """The whole answer, however it comes in parts; the connection stays."""
    sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = b"", b""
    while not head:
        body += _more(sock)
        if b"\r\n\r\n" in body:
            head, _, body = body.partition(b"\r\n\r\n")
    first, *rest = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest)
    while len(body) < int(headers["content-length"]):
        body += _more(sock)
    return Answer(int(first.split()[1]), headers, body)


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionResetError("it ended before its answer did")
    return data


def keep(service: Running) -> socket.socket:
    """A connection that has had an answer, and stays."""
    sock = service.connect()
    assert ask_health(sock).status == 200
    return sock


def ask_once(service: Running) -> Answer:
    """The answer to one request; one that is refused at the door may be reset behind it."""
    with service.connect() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        return ask_health(sock)
    return Answer(0, {}, b"{}")


def test_one_connection_too_many_is_told_so(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, tmp_path: Path
) -> None:
    """All of the others are at work or have been: the next one gets a problem, an app its engine, and all is well
    when some have gone."""
    service = start(path=[slow_runtime])
    with ExitStack() as stack:
        streams = [stack.enter_context(service.begin(bundle, MODEL)) for _ in range(_MOST_CONNECTIONS // 2)]
        until(lambda: service.status["jobs"] and service.status["jobs"][0]["waiters"] == len(streams))
        kept = [stack.enter_context(keep(service)) for _ in range(_MOST_CONNECTIONS - len(streams))]
        refused: dict[str, Any] = {}

        def is_refused() -> bool:
            answer = ask_once(service)
            refused.update(answer.document)
            return answer.status == 503

        until(is_refused, 5)
        assert (refused["code"], refused["status"]) == ("too-many-connections", 503)
        with ensure_engine(make_bundle(tmp_path / "other", seed=6), MODEL) as engine:
            assert not engine.hit
        for sock in kept[:3]:
            sock.close()
        until(lambda: ask_once(service).status == 200, 5)
        assert service.ensure("/nowhere", MODEL).document["code"] == "bundle-missing"
        (slow_runtime / "go").touch()
        for sock in streams:
            assert read_answer(sock).lines[-1]["event"] == "result"
        assert ask_health(kept[-1]).status == 200


def test_one_who_asks_and_asks_and_never_reads_is_cut_off(home: Path) -> None:
    """Requests in a row on one connection, and no answer taken: it does not hold its place for ever."""
    changes = "from refit_service import transport as t; t.UNREAD_S = 1.0"
    with Altered(home, changes) as service, service.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while True:
                sock.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        until(lambda: gauge(service, "connections") == 1, 10)  # that of the question itself
        assert service.ask("GET", "/v1/health").status == 200
