"""The API's description is sound, complete, and true of a running service."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from bundles import MODEL
from refit_agent import ensure_engine, paths
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.errors import BundleFileUnreadable, CacheUnwritable, ServiceStopping, SignatureInvalid, SocketUnusable
from refit_service import registry as registry_module
from refit_service.app import make_app
from refit_service.bodies import MOST_BYTES
from refit_service.jobs import Jobs
from refit_service.leases import LeaseBook
from refit_service.metrics import Tally
from refit_service.openapi import document
from refit_service.page.on_demand import PageOnDemand
from refit_service.registry import Registry
from refit_service.state import Service
from refit_service.warm import Warmer

from .running import Running

_PROXY = """
import asyncio, sys
async def pipe(a, b):
    while data := await a.read(65536):
        b.write(data); await b.drain()
    b.close()
async def main():
    async def serve(r, w):
        try:
            ur, uw = await asyncio.open_unix_connection(sys.argv[1])
            await asyncio.gather(pipe(r, uw), pipe(ur, w))
        except OSError:
            w.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def test_the_document_is_valid_openapi_and_names_every_address() -> None:
    """By the standard's own schema; no route is missing and none is invented."""
    import importlib

    validate = importlib.import_module("openapi_spec_validator").validate
    validate(document())
    source = (Path(importlib.import_module("refit_service.app").__file__ or "")).read_text()
    found = re.findall(r'\("(GET|POST|DELETE)", "([^"]+)"', source)
    routes = {(method.lower(), path.replace("{id:[^:]+}", "{id}")) for method, path in found}
    paths = document()["paths"]
    assert isinstance(paths, dict)
    told = {(m, p) for p, operations in paths.items() for m in operations if m in ("get", "post", "delete")}
    assert told == routes


def test_schemathesis_finds_nothing(service: Running, bundle: Path, tmp_path: Path) -> None:
    """Made-up requests of every kind get documented answers in documented forms."""
    service.ensure(bundle, MODEL)
    (tmp_path / "openapi.json").write_bytes(service.ask("GET", "/v1/openapi.json").body)
    proxy = subprocess.Popen([sys.executable, "-c", _PROXY, str(service.socket)], stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        port = proxy.stdout.readline().strip()
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", str(tmp_path / "openapi.json")]
        # A well-formed request about a bundle that is not there is refused, rightly.
        command += ["--exclude-checks", "positive_data_acceptance"]
        command += [
            "--url",
            f"http://127.0.0.1:{port}",
            "--max-examples",
            "15",
            "--seed",
            "7",
            "--phases",
            "examples,coverage,fuzzing",
            "--no-color",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    finally:
        proxy.kill()
        proxy.wait()
        proxy.stdout.close()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert service.ask("GET", "/v1/health").status == 200


# ---------------------------------------------------------------- statuses

NO_ID = "0123456789abcdef"
#: Method, path and body of a sound request to each address; {bundle} is a bundle's folder.
REQUESTS: tuple[tuple[str, str, object], ...] = (
    ("GET", "/v1/health", None),
    ("GET", "/v1/status", None),
    ("GET", "/v1/gpus", None),
    ("GET", "/v1/bundles", None),
    ("POST", "/v1/bundles", {"path": "{bundle}"}),
    ("DELETE", "/v1/bundles/{id}", None),
    ("POST", "/v1/engines:ensure", {"bundle": "{bundle}", "model": MODEL}),
    ("POST", "/v1/leases/{id}:renew", {}),
    ("DELETE", "/v1/leases/{id}", None),
    ("GET", "/v1/explain", None),
    ("GET", "/v1/cache", None),
    ("POST", "/v1/cache:verify", {}),
    ("POST", "/v1/cache:prune", {}),
    ("POST", "/v1/page", None),
    ("GET", "/v1/openapi.json", None),
    ("GET", "/metrics", None),
)
Patch = pytest.MonkeyPatch
#: aiohttp's advice about keys of requests; a service in a process of its own is not tested with warnings as errors.
_in_this_process = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises it, whatever it is asked."""

    def fail(*args: object, **options: object) -> None:
        raise error

    return fail


def _open_to_all(patch: Patch) -> None:
    Path(paths.home().cache).chmod(0o777)


#: What is wrong -> how to make it so, and the addresses that must say so with which status.
FAULTS: dict[str, tuple[Callable[[Patch], object], dict[str, int]]] = {
    "a manifest that cannot be read": (
        lambda p: p.setattr(Bundle, "open", raising(BundleFileUnreadable(path="b", detail="no"))),
        {"POST /v1/bundles": 503, "POST /v1/engines:ensure": 503, "GET /v1/explain": 503},
    ),
    "a wrong signature": (
        lambda p: p.setattr(Bundle, "open", raising(SignatureInvalid(bundle="b", detail="no"))),
        {"POST /v1/bundles": 422, "POST /v1/engines:ensure": 422, "GET /v1/explain": 422},
    ),
    "a wrong setting": (
        lambda p: p.setenv("REFIT_AGENT_CACHE_QUOTA", "lots"),
        {"GET /v1/status": 200, "GET /v1/cache": 400, "POST /v1/cache:prune": 400, "GET /metrics": 200},
    ),
    "keys that are none": (
        lambda p: p.setenv("REFIT_AGENT_PUBLIC_KEYS", "x"),
        {"POST /v1/bundles": 400, "POST /v1/engines:ensure": 400, "GET /v1/explain": 400},
    ),
    "a cache that is open to all": (
        _open_to_all,
        {"POST /v1/engines:ensure": 507, "GET /v1/explain": 507, "GET /v1/cache": 507, "POST /v1/cache:verify": 507},
    ),
    "a cache that cannot be listed": (
        lambda p: p.setattr(Store, "list_keys", raising(CacheUnwritable(path="c", detail="no"))),
        {"GET /v1/status": 507, "GET /v1/cache": 507, "POST /v1/cache:prune": 507, "GET /metrics": 507},
    ),
    "a disk without room": (
        lambda p: p.setattr(registry_module, "replace_file", raising(OSError(28, "full"))),
        {"POST /v1/bundles": 507},
    ),
    "no port": (
        lambda p: p.setattr(PageOnDemand, "link", raising(SocketUnusable(path="p", detail="no"))),
        {"POST /v1/page": 503},
    ),
    "a service that ends": (
        lambda p: p.setattr(Jobs, "join", raising(ServiceStopping())),
        {"POST /v1/engines:ensure": 503},
    ),
    "nothing": (
        lambda p: None,
        {"DELETE /v1/bundles/{id}": 404, "POST /v1/leases/{id}:renew": 404, "DELETE /v1/leases/{id}": 404},
    ),
}


async def _statuses(bundle: str, body: bytes | None = None) -> dict[str, int]:
    """The status that each address answers a sound request with, or, if ``body`` is one, this body."""
    home = paths.home()
    registry, leases = Registry(home.state), LeaseBook(asyncio.get_running_loop())
    jobs = Jobs(leases, lambda job: None)
    warmer = Warmer(registry, jobs, home.state, lambda error, _: None)
    service = Service(home, Store(home.cache), registry, leases, jobs, warmer, Tally(), 1.0, 1.0, lambda: 0, lambda error, _: None, PageOnDemand())  # fmt: skip
    found = {}
    async with TestClient(TestServer(make_app(service, lambda connection: None))) as client:
        for method, path, sound in REQUESTS:
            query = {"bundle": bundle} if path == "/v1/explain" else {}
            data = msgspec.json.encode(sound).replace(b"{bundle}", bundle.encode()) if body is None else body
            async with client.request(
                method, path.replace("{id}", NO_ID), params=query, data=None if sound is None else io.BytesIO(data)
            ) as answer:
                await answer.read()
                found[f"{method} {path}"] = answer.status
    await service.page.close()
    return found


def _documented(request: str) -> set[int]:
    method, _, path = request.partition(" ")
    described: Any = document()["paths"]
    return set(map(int, described[path][method.lower()]["responses"]))


@pytest.fixture
def cached(bundle: Path) -> Path:
    """A bundle whose engine is in the cache, so that no address has work to do."""
    ensure_engine(bundle, MODEL, service=False).close()
    return bundle


@_in_this_process
@pytest.mark.parametrize("fault", FAULTS)
def test_every_status_that_a_fault_gives_is_documented(cached: Path, monkeypatch: Patch, fault: str) -> None:
    """A client that was generated from the document knows it; where it must come, it does."""
    make, expected = FAULTS[fault]
    if fault == "a service that ends":
        next(Path(paths.home().cache, "engines").iterdir()).joinpath("entry.json").unlink()
    make(monkeypatch)
    found = asyncio.run(_statuses(str(cached)))
    assert {request: found[request] for request in expected} == expected
    assert {request: status for request, status in found.items() if status not in _documented(request)} == {}


@_in_this_process
@pytest.mark.parametrize(("body", "status"), [(b"[]", 400), (b" " * (MOST_BYTES + 1), 413)])
def test_every_status_that_a_wrong_body_gives_is_documented(cached: Path, body: bytes, status: int) -> None:
    """By each address that takes a body."""
    found = asyncio.run(_statuses(str(cached), body))
    takes = {f"{method} {path}" for method, path, sound in REQUESTS if sound is not None}
    assert {request: found[request] for request in takes} == dict.fromkeys(takes, status)
    assert {request: status for request, status in found.items() if status not in _documented(request)} == {}


def test_every_address_is_asked() -> None:
    """Also one that is new."""
    described: Any = document()["paths"]
    known = {(m.upper(), path) for path, operations in described.items() for m in operations if m != "parameters"}
    assert {(method, path) for method, path, _ in REQUESTS} == known
