"""The checks for known vulnerabilities and risky code, as CI runs them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from security import audit

ROOT = Path(__file__).parents[2]
needs_pip_audit = pytest.mark.skipif(
    importlib.util.find_spec("pip_audit") is None, reason="pip-audit is not installed (extra audit)"
)


@pytest.mark.skipif(importlib.util.find_spec("bandit") is None, reason="bandit is not installed (extra audit)")
def test_bandit_finds_nothing(tmp_path: Path) -> None:
    """With the exceptions of pyproject.toml, each with its reason; and it does find what is risky."""
    command = [sys.executable, "-m", "bandit", "-q", "-c", str(ROOT / "pyproject.toml"), "-r"]
    done = subprocess.run([*command, "agent", "service"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    risky = tmp_path / "risky.py"
    risky.write_text("import pickle, sys\npickle.load(sys.stdin.buffer)\n")
    assert subprocess.run([*command, str(risky)], capture_output=True).returncode == 1


def test_every_exception_has_a_reason() -> None:
    """A bare "nosec" says nothing to who reads it."""
    for folder in ("agent", "service"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                _, found, after = line.partition("# nosec ")
                assert "# nosec" not in line or found, f"{path}: {line}"
                assert not found or " # " in after, f"{path}: {line}"


# ---------------------------------------------------------------- a real pip-audit, asking a service of the test's own


class _Osv(BaseHTTPRequestHandler):
    """Answers as OSV does."""

    answer: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        data = json.dumps(self.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[tuple[type[_Osv], list[str]]]:
    """The service's handler, and the options that lead there."""
    kind = type("Handler", (_Osv,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kind, ["-s", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}/v1/query"]
    server.shutdown()
    server.server_close()


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """A folder with one package in it, as options."""
    folder = tmp_path / "site" / "holey-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: holey\nVersion: 1.0\n")
    return ["--path", str(folder.parent)]


VULNERABLE = {
    "vulns": [
        {
            "id": "OSV-1",
            "modified": "2026-01-01T00:00:00Z",
            "published": "2026-01-01T00:00:00Z",
            "summary": "a hole",
            "affected": [
                {
                    "package": {"name": "holey", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
                }
            ],
        }
    ]
}


@needs_pip_audit
def test_a_known_vulnerability_ends_the_build(
    osv: tuple[type[_Osv], list[str]], installed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    osv[0].answer = VULNERABLE
    assert audit.main([*installed, *osv[1]]) == 1
    assert "holey 1.0: OSV-1, mended in 1.1" in capsys.readouterr().out


@needs_pip_audit
def test_none_is_said_so(
    osv: tuple[type[_Osv], list[str]], installed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([*installed, *osv[1]]) == 0
    assert "1 of 1 packages looked up" in capsys.readouterr().out


@needs_pip_audit
def test_without_anybody_to_ask_the_build_goes_on(installed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And the line says that nothing was audited."""
    assert audit.main([*installed, "-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]) == 0
    assert "not audited, nobody to ask" in capsys.readouterr().out


def test_a_tool_that_fails_is_not_taken_for_a_network_that_does() -> None:
    assert audit.judge("x", "", "usage: pip-audit: error: unrecognized arguments").code == 2
    assert audit.judge("x", "", "requests.exceptions.ConnectionError: Failed to establish").code == 0
    skipped = json.dumps({"dependencies": [{"name": "a", "skip_reason": "Dependency not found on PyPI"}], "fixes": []})
    assert audit.judge("x", skipped, "") == (0, ("x: 0 of 1 packages looked up: nothing was audited",))
