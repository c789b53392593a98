"""The API's description is sound, complete, and true of a running service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bundles import MODEL

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

    from refit_service.openapi import document

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
