"""Weights that were fetched are an entry of the cache like any other, and rot like any other."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, edit, model_of
from refit_agent import ensure_engine
from refit_agent.cache.store import Store
from refit_agent.cache.verify import verify

from .victim import flipped, write


@pytest.fixture
def remote(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A bundle whose ONNX file is at a server on loopback, and what the server was asked."""
    monkeypatch.setenv("REFIT_AGENT_FETCH", "http")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data = (bundle / "models/mlp.onnx").read_bytes()
    (bundle / "models/mlp.onnx").unlink()
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/weights"

        def change(document: dict[str, Any]) -> None:
            model_of(document)["onnx"]["url"] = url

        edit(bundle, change)
        yield bundle, asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("seen_by_the_look_up", [True, False])
def test_they_are_fetched_anew_and_it_is_reported_once(
    remote: tuple[Path, list[str]], home: Path, seen_by_the_look_up: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a look-up finds it or verify does; the engine that is made of them is sound."""
    bundle, asked = remote
    store = Store(str(home / "cache"))
    with ensure_engine(bundle, MODEL, service=False) as engine:
        (weights,) = set(store.list_keys()) - {engine.key}
    assert asked == ["/weights"]
    path = Path(store.folder(weights), "weights")
    rotten = flipped(path.read_bytes(), 3000, 1)
    write(path, rotten + b"x" if seen_by_the_look_up else rotten)
    shutil.rmtree(store.folder(engine.key))
    if not seen_by_the_look_up:
        assert [verdict.fault != "" and verdict.set_aside != "" for verdict in verify(store)] == [True]
    for _ in range(2):
        ensure_engine(bundle, MODEL, service=False).close()
    assert asked == ["/weights"] * 2
    damaged = [line for line in caplog.messages if line.startswith("cached weights are damaged")]
    assert len(damaged) == seen_by_the_look_up
    for line in damaged:
        assert f"key='{weights}'" in line
        assert Path(line.partition("moved_to='")[2].removesuffix("'")).is_dir()
    assert [verdict.fault for verdict in verify(store)] == ["", ""]
