"""Leases in the name of a process: as long as it lives, whatever else it asks for meanwhile, and no longer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bundles import MODEL, make_bundle
from refit_agent.cache.store import Store
from refit_agent.cli.cache_document import is_leased

from .running import Running, read_answer, until


@pytest.fixture
def app() -> Iterator[subprocess.Popen[bytes]]:
    """A process in whose name engines are asked for."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def leased(service: Running, key: str) -> bool:
    return bool(is_leased(Store(str(service.home / "cache")), key))


def test_one_request_that_ends_takes_no_other_ones_lease(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, app: subprocess.Popen[bytes]
) -> None:
    """Two threads of one app ask, and one gives up: the other's lease holds, until the app ends."""
    service = start(path=[slow_runtime])
    one, two = (service.begin(bundle, MODEL, pid=app.pid, ttl_s=600) for _ in range(2))
    until(lambda: service.status["jobs"] and service.status["jobs"][0]["waiters"] == 2)
    one.close()
    until(lambda: service.status["jobs"][0]["waiters"] == 1)
    (slow_runtime / "go").touch()
    result = read_answer(two).lines[-1]
    two.close()
    assert service.ask("POST", f"/v1/leases/{result['lease']['id']}:renew", {"ttl_s": 600}).status == 200
    assert leased(service, result["key"])
    app.kill()
    app.wait()
    until(lambda: not leased(service, result["key"]), 5)


def test_a_lease_given_back_takes_no_other_ones(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, tmp_path: Path, app: subprocess.Popen[bytes]
) -> None:
    """As an app does that asks for two models and takes the first one over."""
    ready = make_bundle(tmp_path / "ready", seed=4)
    service = start(path=[slow_runtime])
    (slow_runtime / "go").touch()
    service.ensure(ready, MODEL)
    (slow_runtime / "go").unlink()
    waiting = service.begin(bundle, MODEL, pid=app.pid, ttl_s=600)
    until(lambda: service.status["jobs"])
    hit = service.ensure(ready, MODEL, pid=app.pid, ttl_s=600).document
    assert service.ask("DELETE", f"/v1/leases/{hit['lease']['id']}").status == 204
    (slow_runtime / "go").touch()
    result = read_answer(waiting).lines[-1]
    waiting.close()
    assert service.ask("POST", f"/v1/leases/{result['lease']['id']}:renew", {"ttl_s": 600}).status == 200


def test_a_process_that_ends_while_it_waits_leaves_no_lease(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, app: subprocess.Popen[bytes]
) -> None:
    """Its connection may be another's, who still reads."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL, pid=app.pid, ttl_s=600)
    until(service.workers)
    app.kill()
    app.wait()
    (slow_runtime / "go").touch()
    result = read_answer(sock).lines[-1]
    sock.close()
    assert result["event"] == "result"
    until(lambda: not leased(service, result["key"]), 5)
    assert service.ask("POST", f"/v1/leases/{result['lease']['id']}:renew", {}).document["code"] == "no-such-lease"


def test_requests_for_processes_leave_nothing_open(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, app: subprocess.Popen[bytes]
) -> None:
    """Neither those that are given up, nor those for a process that is not there."""
    service = start(path=[slow_runtime])
    service.ask("GET", "/v1/health")
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    before = process.num_fds()
    for _ in range(20):
        service.begin(bundle, MODEL, pid=app.pid).close()
        assert service.ensure(bundle, MODEL, pid=2**22 + 1).document["code"] == "setting-invalid"
    until(lambda: service.status["idle"])
    until(lambda: process.num_fds() <= before, 5)
    (slow_runtime / "go").touch()
    result = service.ensure(bundle, MODEL, pid=app.pid).lines[-1]
    service.ask("DELETE", f"/v1/leases/{result['lease']['id']}")
    assert service.ensure(bundle, MODEL, pid=2**22 + 1).document["code"] == "setting-invalid"
    assert not leased(service, result["key"])
    until(lambda: process.num_fds() <= before, 5)
