"""What must not bring the service down, nor leave anything behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from bundles import MODEL

from .running import Running, read_answer, until


def test_a_killed_service_leaves_no_worker_and_its_socket_is_taken_over(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """kill -9 in the middle of a refit; the next service starts and makes the engine."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    worker = until(service.workers)[0]
    service.kill()
    until(lambda: not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE, 5)
    sock.close()
    assert service.socket.exists()
    (slow_runtime / "go").touch()
    again = start(path=[slow_runtime])
    assert again.ensure(bundle, MODEL).lines[-1]["event"] == "result"


def test_a_killed_worker_is_an_error_event(start: Callable[..., Running], slow_runtime: Path, bundle: Path) -> None:
    """kill -9 of the worker; the service stays up."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    until(service.workers)[0].kill()
    last = read_answer(sock).lines[-1]
    sock.close()
    assert (last["event"], last["code"], last["status"]) == ("error", "worker-crashed", 502)
    (slow_runtime / "go").touch()
    assert service.ensure(bundle, MODEL, retry_failed=True).lines[-1]["event"] == "result"


def test_a_hanging_worker_is_stopped_at_the_deadline(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """The deadline of the request is the worker's."""
    service = start(path=[slow_runtime])
    last = service.ensure(bundle, MODEL, deadline_s=1).lines[-1]
    assert last["code"] == "worker-timeout"
    assert not service.workers()


def test_two_hundred_silent_clients_starve_nobody(service: Running, bundle: Path) -> None:
    """Nor do more of them than there may be connections."""
    service.ensure(bundle, MODEL)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(service.connect())
        begun = time.monotonic()
        for _ in range(20):
            assert service.ensure(bundle, MODEL).document["hit"]
        assert time.monotonic() - begun < 2
        for _ in range(100):
            stack.enter_context(service.connect())
        assert service.ensure(bundle, MODEL).document["hit"]


def test_a_client_that_says_nothing_is_sent_away(service: Running) -> None:
    """Half a head and half a body too, after ten seconds."""
    with service.connect() as silent, service.connect() as half, service.connect() as bodyless:
        half.sendall(b"GET /v1/health HTTP/1.1\r\nHost")
        bodyless.sendall(b"POST /v1/bundles HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        for sock in (silent, half, bodyless):
            sock.settimeout(14)
            try:
                data = sock.recv(1000)
            except ConnectionResetError:
                data = b""
            assert data == b""


def test_a_huge_body_is_refused_before_it_is_sent(service: Running) -> None:
    """A gigabyte announced, one that comes in pieces, and one that only unpacks to much."""
    with service.connect() as sock:
        sock.sendall(b"POST /v1/bundles HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1073741824\r\n\r\n")
        assert read_answer(sock).document["code"] == "too-large"
    with service.connect() as sock:
        sock.sendall(b"POST /v1/bundles HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        # Cut off in the middle, or answered: either way not taken in.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert read_answer(sock).status == 413
    assert service.process is not None
    assert psutil.Process(service.process.pid).memory_info().rss < 60 << 20


def test_what_is_no_http_is_answered_and_ended(service: Running) -> None:
    """With a problem document like any other mistake."""
    with service.connect() as sock:
        sock.sendall(b"HELLO\r\n\r\n")
        answer = read_answer(sock)
    assert (answer.status, answer.document["code"]) == (400, "bad-request")
    assert answer.headers["refit-agent-protocol"] == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_refused(service: Running, tmp_path: Path) -> None:
    """Even where folder and socket let everybody in: the kernel says who connected."""
    code = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1])
try:
    s.sendall(b"GET /v1/health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    data = s.recv(1000)
except (BrokenPipeError, ConnectionResetError):
    data = b""
sys.exit(0 if data == b"" else 1)
"""
    opened = [service.socket, *service.socket.parents]
    modes = {p: p.stat().st_mode for p in opened}
    try:
        for path in opened[:-1]:
            path.chmod(0o777 if path == service.socket else modes[path] | 0o011)
        child = subprocess.run(
            [sys.executable, "-c", code, str(service.socket)], cwd="/", capture_output=True, text=True
        )
        assert child.returncode == 0, child.stderr
    finally:
        for path in opened[:-1]:
            path.chmod(modes[path] & 0o7777)
    assert service.ask("GET", "/v1/health").status == 200
    assert "another user" in (service.home / "state/logs/service.log").read_text()


def test_a_full_disk_is_a_clear_error(
    start: Callable[..., Running], mounted: Callable[[str], Path], bundle: Path
) -> None:
    """No engine, no registration, and the service goes on."""
    disk = mounted("size=1m")
    service = start(home=disk / "home")
    last = service.ensure(bundle, MODEL).lines[-1]
    assert (last["event"], last["code"], last["status"]) == ("error", "disk-full", 507)
    filler = disk / "filler"
    with open(filler, "wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            os.write(file.fileno(), b"x" * 4096)
    assert service.ask("POST", "/v1/bundles", {"path": str(bundle)}).document["code"] == "disk-full"
    assert service.ask("GET", "/v1/bundles").document["bundles"] == []
    filler.unlink()
    assert service.ask("POST", "/v1/bundles", {"path": str(bundle)}).status == 201


def test_sigterm_stops_the_worker_tells_the_waiter_and_exits_0(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """Within the deadline, socket removed, no worker left."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    worker = until(service.workers)[0]
    assert service.process is not None
    begun = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    last = read_answer(sock).lines[-1]
    sock.close()
    assert last["code"] == "service-stopping"
    assert service.process.wait(10) == 0
    assert time.monotonic() - begun < 8
    assert not psutil.pid_exists(worker.pid)
    assert not service.socket.exists()


def test_sigterm_lets_a_refit_finish_that_is_nearly_done(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """Its waiter gets the engine."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    until(service.workers)
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    (slow_runtime / "go").touch()
    assert read_answer(sock).lines[-1]["event"] == "result"
    sock.close()
    assert service.process.wait(10) == 0


def test_a_cache_that_is_deleted_under_the_service(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """In the middle of a refit, and with an engine in use: an error or the engine, and it is made anew."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    until(lambda: (slow_runtime / "count").exists())
    shutil.rmtree(service.home / "cache")
    (slow_runtime / "go").touch()
    last = read_answer(sock).lines[-1]
    sock.close()
    assert last["event"] in ("result", "error")
    made = [service.ensure(bundle, MODEL, ttl_s=600).lines[-1]]
    shutil.rmtree(service.home / "cache")
    made.append(service.ensure(bundle, MODEL, ttl_s=600).lines[-1])
    assert [result["hit"] for result in made] == [False, False]
    assert Path(made[1]["path"]).is_file()
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == []
    for result in made:
        assert service.ask("DELETE", f"/v1/leases/{result['lease']['id']}").status == 204
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == [made[1]["key"]]
