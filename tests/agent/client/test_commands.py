"""`refit-agent status|watch|bundles`, and the commands that make engines, with a service at hand."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, make_bundle
from refit_agent import __version__

from .conftest import Serve
from .fake_service import STATUS, Asked, Peer

JOB = {"key": "k1", "model": "mlp", "engine": "plans/mlp.cpu", "target": "cpu", "phase": "refit", "fraction": 0.25, "done": 1, "total": 4, "waiters": 2, "background": False, "since": 1.0}  # fmt: skip


def run(*arguments: str | Path, code: int = 0) -> Any:
    """The command in a process of its own; its document, or its lines."""
    done = subprocess.run([sys.executable, "-m", "refit_agent", *map(str, arguments)], capture_output=True, text=True, timeout=30)  # fmt: skip
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr


def test_without_a_service_every_one_says_so() -> None:
    """With the exit code of the service's family."""
    for command in (["status"], ["watch"], ["registered"], ["register", "/b"], ["unregister", "x"]):
        assert "error [service-unreachable]" in run(*command, code=8)
    assert run("status", "--json", code=8)["error"]["code"] == "service-unreachable"


def test_with_an_empty_variable_every_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that a service is missing: one that is started is not asked either."""
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    for command in (["status"], ["watch"], ["registered"], ["register", "/b"], ["unregister", "x"], ["ui"]):
        said = run(*command, code=8)
        assert said.startswith("error [service-unreachable]: No service is used: REFIT_AGENT_SOCKET is empty.\n")
        assert "hint: Unset REFIT_AGENT_SOCKET" in said and "refit-agent serve" not in said


def test_status_says_what_the_service_does(serve: Serve, home: Path) -> None:
    """For people and for programs."""
    status = STATUS | {
        "jobs": [JOB],
        "warm": {"state": "paused", "reason": "on battery", "failures": [{"bundle": "/b", "model": "m", "code": "disk-full", "message": "full\nup"}]},
        "errors": [{"when": time.time(), "code": "disk-full", "message": "no room"}],
    }  # fmt: skip
    serve(lambda peer, asked: peer.json(status))
    text = run("status")
    for words in (
        "up for 61.5 s",
        "1 engine in the cache, 1.0 KiB of 4.0 KiB; 0 bundles",
        "background work: paused: on battery",
        "failed: m of /b: full\n",
        "making mlp (plans/mlp.cpu) for cpu: 25% refit, 2 callers waiting",
        "error just now [disk-full]: no room",
        str(home / "run" / "agent.sock"),
    ):
        assert words in text
    document = run("status", "--json")
    assert document["jobs"] == [JOB]
    assert document["socket"] == str(home / "run" / "agent.sock")


def _statuses(*each: dict[str, object]) -> Any:
    left = list(each)

    def behave(peer: Peer, asked: Asked) -> None:
        peer.json(left.pop(0) if len(left) > 1 else left[0])

    return behave


def test_watch_shows_changes_and_ends_when_asked_to(serve: Serve) -> None:
    """A line for each change, none for the same again."""
    working = STATUS | {"warm": {"state": "working", "reason": "", "failures": []}}
    serve(_statuses(working | {"jobs": [JOB]}, working | {"jobs": [JOB]}, working | {"jobs": [JOB | {"fraction": 0.5}]}, working, STATUS))  # fmt: skip
    lines = run("watch", "--until-idle", "--every", "0.05").splitlines()
    assert lines == [
        "mlp (plans/mlp.cpu) for cpu: 25% refit, 2 callers waiting",
        "background work: working",
        "mlp (plans/mlp.cpu) for cpu: 50% refit, 2 callers waiting",
        "mlp (plans/mlp.cpu) for cpu: over",
        "background work: idle",
    ]
    assert run("watch", "--json")["idle"]


def _doctor() -> dict[str, Any]:
    (check,) = [check for check in run("doctor", "--json")["checks"] if check["name"] == "service"]
    return dict(check)


def test_doctor_says_whether_the_service_runs(serve: Serve, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its version and its place; none, or one that is not wanted, is no fault."""
    place = str(home / "run" / "agent.sock")
    check = _doctor()
    assert check["status"] == "ok" and f"none runs at {place}" in check["summary"]
    assert check["facts"] == {"socket": place, "runs": False}
    serve(lambda peer, asked: peer.json(STATUS | {"version": __version__}))
    check = _doctor()
    assert (check["status"], check["advice"]) == ("ok", "")
    assert check["summary"] == f"refit-agent {__version__} runs as process {STATUS['pid']} at {place}"
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    assert _doctor()["summary"] == "not used: REFIT_AGENT_SOCKET is empty"


def test_doctor_warns_of_a_service_of_another_version(serve: Serve) -> None:
    """As after an update: it still runs what it was started with."""
    serve(lambda peer, asked: peer.json(STATUS | {"version": "0.0.1"}))
    check = _doctor()
    assert check["status"] == "warn" and "refit-agent 0.0.1 runs" in check["summary"] and __version__ in check["advice"]


def test_doctor_warns_of_what_is_no_service(serve: Serve, socket_file: Path) -> None:
    """What answers nonsense, and a file in the socket's place; a socket that one left behind is no fault."""
    serve(lambda peer, asked: peer.send(b"what?\r\n\r\n"))
    check = _doctor()
    assert check["status"] == "warn" and "cannot be used" in check["summary"]
    socket_file.unlink()
    socket_file.touch()
    assert "it is not a socket" in _doctor()["summary"]
    socket_file.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_file))
    assert _doctor()["status"] == "ok"


def test_watch_ends_with_ctrl_c(serve: Serve) -> None:
    """As every command does."""
    service = serve()
    process = subprocess.Popen([sys.executable, "-m", "refit_agent", "watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    with process:
        while not service.asked:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_bundles_are_added_listed_and_removed(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    """By folder or by id; a folder that is gone can still be removed."""
    service = serve()
    assert run("registered").strip() == "no bundle is registered"
    record = run("register", bundle, "--json")
    assert record["path"] == str(bundle)
    assert "Test 1 (org.example), 1 model, " in run("registered")
    assert [b["id"] for b in run("registered", "--json")["bundles"]] == [record["id"]]
    bundle.rename(tmp_path / "gone")
    assert run("unregister", bundle, "--json") == {"removed": record["id"]}
    assert "not-found" in run("unregister", "nonsense", code=8)
    run("register", "relative")
    assert service.bundles["0123456789abcdef"]["path"] == os.path.abspath("relative")
    run("unregister", "0123456789abcdef")
    assert service.bundles == {}


def test_what_is_not_registered_cannot_be_removed(serve: Serve) -> None:
    """The hint is for somebody who meant another, not for somebody who wants the bundle."""

    def answer(peer: Peer, asked: Asked) -> None:
        if asked.method == "GET":
            peer.json({"bundles": []})
        else:
            peer.problem("no-such-bundle", 404, id="nope")

    serve(answer)
    text = run("unregister", "nope", code=8)
    assert "No bundle is registered as 'nope'." in text
    assert "'refit-agent registered' lists" in text and "Register its folder" not in text


def test_path_and_provision_use_the_service(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    """Without a word about it: the result is the same."""
    service = serve()
    path = run("path", bundle, MODEL).splitlines()[-1]
    assert os.path.isfile(path) or "ready" in path
    assert [a.target for a in service.asked] == ["/v1/engines:ensure", "/v1/leases/lease-1"]
    other = make_bundle(tmp_path / "other", seed=7)
    document = run("provision", other, "--json")
    assert not document["engines"][0]["hit"]
    assert len(service.asked) == 4
    assert run("path", other, MODEL).strip() == document["engines"][0]["path"]
    assert len(service.asked) == 4


def test_ctrl_c_in_a_command_hangs_up(serve: Serve, bundle: Path) -> None:
    """The service stops what nobody waits for."""
    left: list[bool] = []

    def work(peer: Peer, asked: Asked) -> None:
        peer.begin_stream()
        peer.step()
        left.append(peer.wait_for_hang_up())

    service = serve(work)
    process = subprocess.Popen([sys.executable, "-m", "refit_agent", "path", str(bundle), MODEL], stderr=subprocess.PIPE, text=True)  # fmt: skip
    with process:
        assert process.stderr is not None
        assert "50% refit" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    service.close()
    assert left == [True]
