"""What the client costs a host app."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bundles import MODEL, python
from refit_agent import ensure_engine

from .conftest import Serve

#: They take tens of milliseconds to import, each.
SLOW = ("asyncio", "aiohttp", "http", "urllib", "ssl", "email", "logging", "json", "structlog", "numpy", "concurrent", "refit_service")  # fmt: skip


def _loaded(code: str, *args: str | Path) -> set[str]:
    command, env = python("import sys, msgspec\nbefore = set(sys.modules)\n" + code + "\nprint(*(set(sys.modules) - before), sep='\\n')", *args)  # fmt: skip
    return set(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split())


def test_a_hit_loads_nothing_of_the_client(serve: Serve, bundle: Path) -> None:
    """Not even with a service at hand."""
    ensure_engine(bundle, MODEL, service=False).close()
    serve()
    for _ in range(2):  # the first one asks what machine this is
        loaded = _loaded(
            "from refit_agent import ensure_engine; assert ensure_engine(*sys.argv[1:]).hit", bundle, MODEL
        )
    assert [n for n in loaded if n.startswith(("refit_agent.client", "refit_agent.service_socket", "socket"))] == []
    assert "refit_agent.provision" in loaded


def test_the_client_loads_no_http_library(serve: Serve) -> None:
    """A Unix socket and msgspec are enough."""
    serve()
    loaded = _loaded("from refit_agent import ServiceClient; ServiceClient().status()")
    assert "refit_agent.client.sync" in loaded
    assert [n for n in loaded if n.split(".")[0] in SLOW] == []


def test_a_miss_that_the_service_serves_loads_no_machinery(serve: Serve, bundle: Path) -> None:
    """The app is spared what the service does for it."""
    serve()
    loaded = _loaded(
        "from refit_agent import ensure_engine; assert not ensure_engine(*sys.argv[1:]).hit", bundle, MODEL
    )
    assert "refit_agent.client.ask" in loaded
    assert [n for n in loaded if n.startswith(("refit_agent.make", "refit_agent.refit", "filelock", "structlog"))] == []


def test_a_miss_without_a_service_loads_no_client(bundle: Path) -> None:
    """One look for the socket, and on with the work."""
    loaded = _loaded(
        "from refit_agent import ensure_engine; assert not ensure_engine(*sys.argv[1:]).hit", bundle, MODEL
    )
    assert "refit_agent.make" in loaded
    assert [n for n in loaded if n.startswith("refit_agent.client")] == []
