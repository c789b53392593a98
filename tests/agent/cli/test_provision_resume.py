"""`refit-agent provision` killed in the middle and run again: what was done stays done, and nothing is broken."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from several_models import WaitingRuntime, several_models

from .command import Cli
from .lines import Lines

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
#: Of each weights file that much comes before the server pauses.
PIECE = 4096


def _rest(process: subprocess.Popen[str]) -> str:
    """What it still prints, to its end. By the file that has read the lines before: ``communicate`` reads past it, and
    loses what that file has read ahead."""
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        rest = process.stdout.read()
        process.wait(60)
    return rest


def _until(condition: Callable[[], Any], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def _engines(cli: Cli) -> set[str]:
    return {p.name for p in (cli.cache / "engines").glob("*")}


def _sound(cli: Cli) -> bool:
    return cli("cache", "verify").code == 0 and cli.leftovers() == []


@pytest.fixture
def four(tmp_path: Path) -> Path:
    return several_models(tmp_path / "bundle", 4)


def _provision(bundle: Path) -> list[str | Path]:
    return ["provision", bundle, "--progress=json"]


def test_killed_again_and_again(cli: Cli, four: Path, tmp_path: Path) -> None:
    """SIGKILL at each engine in turn: every run has one hit more, and the last one ends it."""
    for number in range(1, 4):
        waiting = WaitingRuntime(tmp_path / f"waiting{number}", waits_from=2)
        cli.env["PYTHONPATH"] = str(waiting.folder)
        process = cli.start(*_provision(four))
        _until(lambda: waiting.imports() == 2)  # noqa: B023 - asked within this turn
        (worker,) = psutil.Process(process.pid).children()
        process.kill()
        out, _ = process.communicate()
        lines = Lines(out, whole=False)
        assert [e["engine"].get("hit") for e in lines.engines] == [True] * (number - 1) + [False]
        assert len(_engines(cli)) == number
        psutil.wait_procs([worker], 10)
        assert not worker.is_running(), "it sees that nobody wants it any more"
    del cli.env["PYTHONPATH"]
    last = Lines(cli(*_provision(four)).out)
    assert [e["hit"] for e in last.result["engines"]] == [True, True, True, False]
    assert _sound(cli) and len(_engines(cli)) == 4


def test_one_that_was_killed_is_no_failure(cli: Cli, four: Path, tmp_path: Path) -> None:
    """The engine that was in the making is made, not skipped as one that failed."""
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=1)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    process = cli.start(*_provision(four))
    _until(lambda: waiting.imports() == 1)
    os.killpg(psutil.Process(process.pid).children()[0].pid, signal.SIGSTOP)  # it cannot even clean up
    process.kill()
    process.communicate()
    waiting.go()
    assert Lines(cli(*_provision(four)).out).result["ok"] and not (cli.home / "state/failures").exists()
    for stopped in psutil.process_iter(["environ"]):
        if (stopped.info["environ"] or {}).get("REFIT_AGENT_HOME") == str(cli.home):
            stopped.kill()
    assert _sound(cli)


class Source:
    """A server of weights files that pauses in the middle of a file while ``slow``, and what it was asked for."""

    def __init__(self, files: dict[str, bytes], port: int) -> None:
        self.files = files
        self.url = f"http://127.0.0.1:{port}"
        self.slow = threading.Event()
        self.paused = threading.Event()
        #: From which byte on each file was asked for, in turn.
        self.asked: dict[str, list[int]] = {}


@pytest.fixture
def source() -> Iterator[Source]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served.files[self.path]
            asked = self.headers.get("Range")
            begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            served.asked.setdefault(self.path, []).append(begin)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(data) - begin))
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            end = begin + PIECE if served.slow.is_set() else len(data)
            try:
                self.wfile.write(data[begin:end])
                while served.slow.is_set():
                    served.paused.set()
                    time.sleep(0.02)
                self.wfile.write(data[end:])
            except OSError:
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Source({}, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.slow.clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def remote(cli: Cli, four: Path, source: Source) -> Path:
    """The bundle, its weights at the server."""
    cli.env["REFIT_AGENT_FETCH"] = "http"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        cli.env.pop(name, None)
    document = json.loads((four / "bundle.json").read_text())
    for model in document["models"]:
        place = f"/{model['name']}.onnx"
        source.files[place] = (four / model["onnx"]["path"]).read_bytes()
        (four / model["onnx"]["path"]).unlink()
        model["onnx"]["url"] = source.url + place
    (four / "bundle.json").write_text(json.dumps(document))
    return four


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_in_the_middle_of_a_download(cli: Cli, remote: Path, source: Source, signum: signal.Signals) -> None:
    """What has come is kept: the next run fetches the rest alone."""
    assert cli("provision", remote, "--model", "m1").code == 0
    source.slow.set()
    process = cli.start(*_provision(remote))
    assert source.paused.wait(30)
    partial = cli.cache / "partial"
    _until(lambda: any(p.stat().st_size >= PIECE for p in partial.glob("*")))
    assert process.stdout is not None
    seen = ""
    while '"phase":"fetch"' not in seen:  # there is a line every second
        seen += process.stdout.readline()
        assert process.poll() is None
    process.send_signal(signum)
    lines = Lines(seen + _rest(process), whole=signum != signal.SIGKILL)
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)
    fetching = [step for step in lines.steps if step["phase"] == "fetch"]
    assert fetching and fetching[-1]["model"] == "m2" and fetching[-1]["total"] == len(source.files["/m2.onnx"])
    source.slow.clear()
    again = cli(*_provision(remote))
    assert [e["hit"] for e in Lines(again.out).result["engines"]] == [True, False, False, False]
    assert source.asked == {"/m1.onnx": [0], "/m2.onnx": [0, PIECE], "/m3.onnx": [0], "/m4.onnx": [0]}
    assert _sound(cli) and [*partial.glob("*")] == []


def test_a_download_that_the_deadline_ends(cli: Cli, remote: Path, source: Source) -> None:
    """The code of the network, which says that another try goes on from there."""
    source.slow.set()
    ran = cli(*_provision(remote), "--deadline", "3")
    result = Lines(ran.out).result
    assert ran.code == 9 and result["error"]["code"] == "fetch-failed" and result["deadline_passed"] is True
    assert [e["error"]["code"] for e in result["engines"][1:]] == ["deadline-passed"] * 3
    source.slow.clear()
    assert Lines(cli(*_provision(remote), "--deadline", "60").out).result["ok"]
    assert source.asked["/m1.onnx"] == [0, PIECE]


if sys.platform != "win32":
    from service.running import Running

    def test_when_the_service_does_the_work(cli: Cli, four: Path, tmp_path: Path) -> None:
        """Lines as without it, the steps of the service's worker too."""
        slow = WaitingRuntime(tmp_path / "slow", waits_from=2, session=True)
        with Running(cli.home, path=[slow.folder]) as service:
            process = cli.start(*_provision(four))
            assert process.stdout is not None
            lines = []
            # A quick job is over before the service passes its steps on: this one waits until one of them was seen.
            for line in process.stdout:
                lines.append(line)
                if json.loads(line).get("phase") in ("check", "open"):
                    break
            slow.go()
            lines.append(_rest(process))
            entries = service.status["cache"]["entries"]
        told = Lines("".join(lines))
        assert told.result["ok"] and told.percent == 100 and entries == 4
        assert {"check", "open"} & {step["phase"] for step in told.steps}
        for model in ("m1", "m2", "m3", "m4"):
            assert [step["phase"] for step in told.steps if step["model"] == model][-1] == "ready"

    def test_killed_while_the_service_works(cli: Cli, four: Path, tmp_path: Path) -> None:
        """It stops what nobody waits for, and the next run goes on."""
        waiting = WaitingRuntime(tmp_path / "waiting", waits_from=2)
        with Running(cli.home, path=[waiting.folder]) as service:
            process = cli.start(*_provision(four))
            _until(lambda: waiting.imports() == 2)
            assert len(service.workers()) == 1, "the worker is the service's"
            process.kill()
            process.communicate()
            _until(lambda: service.workers() == [])
            waiting.go()
            again = Lines(cli(*_provision(four)).out)
        assert [e["hit"] for e in again.result["engines"]] == [True, False, False, False]
        assert _sound(cli)

    def test_the_service_goes_away(cli: Cli, four: Path, tmp_path: Path) -> None:
        """In the middle: the command goes on by itself, and the percentage does not go back."""
        waiting = WaitingRuntime(tmp_path / "waiting", waits_from=2)
        with Running(cli.home, path=[waiting.folder]) as service:
            process = cli.start(*_provision(four))
            _until(lambda: waiting.imports() == 2)
            service.kill()
            out, _ = process.communicate(timeout=60)
        lines = Lines(out)
        assert lines.result["ok"] and [e["hit"] for e in lines.result["engines"]] == [False] * 4
        assert _sound(cli)

    def test_the_deadline_holds_with_the_service_too(cli: Cli, four: Path, tmp_path: Path) -> None:
        """Its own answer, or ours."""
        waiting = WaitingRuntime(tmp_path / "waiting", waits_from=2)
        with Running(cli.home, path=[waiting.folder]) as service:
            ran = cli(*_provision(four), "--deadline", "3")
            _until(lambda: service.workers() == [])
        result = Lines(ran.out).result
        assert ran.code == result["exit_code"] in (6, 8) and result["deadline_passed"] is True
        assert ["error" in e for e in result["engines"]] == [False, True, True, True]
