"""Leases over HTTP keep engines from eviction, and end in every way that they should."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bundles import MODEL
from refit_agent.cache.store import Store
from refit_agent.cli.cache_document import is_leased

from .running import Running, until


def _leased(service: Running, key: str) -> bool:
    return bool(is_leased(Store(str(service.home / "cache")), key))


def test_a_lease_is_given_renewed_and_given_back(service: Running, bundle: Path) -> None:
    """Two clients, one engine: it is leased until the second gives its lease back."""
    one = service.ensure(bundle, MODEL).lines[-1]
    two = service.ensure(bundle, MODEL).document
    assert abs(one["lease"]["expires"] - time.time() - 60) < 5
    renewed = service.ask("POST", f"/v1/leases/{one['lease']['id']}:renew", {"ttl_s": 100})
    assert renewed.document["ttl_s"] == 100
    for result, still in ((one, True), (two, False)):
        assert service.ask("DELETE", f"/v1/leases/{result['lease']['id']}").status == 204
        assert _leased(service, one["key"]) is still
    gone = service.ask("POST", f"/v1/leases/{one['lease']['id']}:renew", {})
    assert (gone.status, gone.document["code"]) == (404, "no-such-lease")
    assert service.ask("DELETE", f"/v1/leases/{one['lease']['id']}").status == 404


def test_a_leased_engine_outlives_a_prune(service: Running, bundle: Path) -> None:
    """And without its lease it goes."""
    result = service.ensure(bundle, MODEL).lines[-1]
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == []
    service.ask("DELETE", f"/v1/leases/{result['lease']['id']}")
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == [result["key"]]


def test_a_lease_runs_out(service: Running, bundle: Path) -> None:
    """After its time to live, by itself."""
    result = service.ensure(bundle, MODEL, ttl_s=0.5).lines[-1]
    assert _leased(service, result["key"])
    until(lambda: not _leased(service, result["key"]), 5)


def test_a_lease_ends_with_the_callers_process(service: Running, bundle: Path) -> None:
    """However it ends; a process that does not exist is refused."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    result = service.ensure(bundle, MODEL, pid=child.pid, ttl_s=600).lines[-1]
    service.ensure(bundle, MODEL, pid=child.pid, ttl_s=600)
    assert _leased(service, result["key"])
    child.kill()
    child.communicate()
    until(lambda: not _leased(service, result["key"]), 3)
    assert service.ensure(bundle, MODEL, pid=child.pid).document["code"] == "setting-invalid"


def test_leases_that_nobody_gives_back_cost_no_descriptors(service: Running, bundle: Path) -> None:
    """Thousands of them on one engine are one for the cache."""
    import psutil

    service.ensure(bundle, MODEL)
    assert service.process is not None
    before = psutil.Process(service.process.pid).num_fds()
    for _ in range(200):
        service.ensure(bundle, MODEL, ttl_s=600)
    assert psutil.Process(service.process.pid).num_fds() <= before + 2
