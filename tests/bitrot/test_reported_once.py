"""A damaged engine is reported once, however many ask for it: one line in the log, one error in the service's status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, python

from .victim import Victim, flipped, write

if sys.platform != "win32":
    from service.running import Running, until

needs_service = pytest.mark.skipif(sys.platform == "win32", reason="the service needs Unix sockets")

_ASK = """
import sys
from refit_agent import ensure_engine, logs
logs.want("info")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    with ensure_engine(sys.argv[1], sys.argv[2], service=False) as engine:
        print("hit" if engine.hit else "made")
"""


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _damaged(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"] == "cached engine is damaged"]


def test_by_one_of_many_processes(victim: Victim) -> None:
    """Six ask for it in one moment, three times each: one sets it aside and says so, one makes it, all have it."""
    write(victim.folder / "weights.bin", b"")
    command, env = python(_ASK, victim.bundle, MODEL)
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(6)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    ended = [process.communicate("go\n") for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, ended
    outcomes = [word for out, _ in ended for word in out.split()]
    assert len(outcomes) == 18 and outcomes.count("made") == 1
    lines = [line for _, err in ended for line in _lines(err)]
    (report,) = _damaged(lines)
    assert (report["level"], report["key"]) == ("warning", victim.key)
    assert report["detail"].startswith("weights.bin has 0 bytes") and [Path(report["moved_to"])] == victim.set_aside()
    assert [line["event"] for line in lines].count("engine published") == 1


def _errors(service: Running) -> list[Any]:
    errors: list[Any] = service.status["errors"]
    return errors


def _log(victim: Victim) -> list[Any]:
    return _lines((Path(victim.store.root).parent / "state/logs/service.log").read_text())


def _ask_often(service: Running, victim: Victim) -> list[str]:
    """Twelve requests at once, three times; the keys of what they got."""
    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(lambda _: service.ensure(victim.bundle, MODEL).lines[-1]["key"], range(36)))


@needs_service
def test_by_the_service(victim: Victim, home: Path) -> None:
    """Found on the way of a hit. A second time it is damaged it is reported a second time."""
    with Running(home) as service:
        assert service.ensure(victim.bundle, MODEL).document["hit"]
        for times in (1, 2):
            write(victim.folder / "entry.json", flipped((victim.folder / "entry.json").read_bytes(), 300, 1))
            assert _ask_often(service, victim) == [victim.key] * 36
            errors = _errors(service)
            assert [error["code"] for error in errors] == ["entry-damaged"] * times
            assert victim.key in errors[-1]["message"] and "entry.json" in errors[-1]["message"]
            assert len(_damaged(_log(victim))) == times == len(victim.set_aside())
        metrics = service.ask("GET", "/metrics").body.decode()
        assert 'refit_agent_failures_total{code="entry-damaged"} 2.0' in metrics


@needs_service
def test_with_an_error_of_its_own_when_it_cannot_be_made_anew(victim: Victim, home: Path, tmp_path: Path) -> None:
    """The damage once, the failure once: what failed is remembered."""
    bundle = shutil.copytree(victim.bundle, tmp_path / "bundle")
    (bundle / "plans" / "mlp.cpu").unlink()
    os.truncate(victim.folder / "weights.bin", 5)
    with Running(home) as service:
        for _ in range(3):
            assert service.ensure(bundle, MODEL).lines[-1]["code"] == "bundle-file-missing"
        codes = [error["code"] for error in _errors(service)]
        assert codes.count("entry-damaged") == 1
        assert service.ensure(victim.bundle, MODEL, retry_failed=True).lines[-1]["event"] == "result"
        assert [error["code"] for error in _errors(service)].count("entry-damaged") == 1


@needs_service
def test_what_only_verify_can_find(victim: Victim, home: Path) -> None:
    """The service serves it until somebody has it verified; then a registered bundle's engine is made by itself."""
    weights = victim.folder / "weights.bin"
    with Running(home, REFIT_AGENT_WARM="1") as service:
        assert service.ask("POST", "/v1/bundles", {"path": str(victim.bundle)}).status == 201
        until(lambda: service.status["warm"]["state"] == "idle" and service.status["idle"])
        write(weights, flipped(weights.read_bytes(), 5000, 2))
        assert service.ensure(victim.bundle, MODEL).document["hit"], "by design: a hit reads no content"
        assert _errors(service) == []
        first = service.ask("POST", "/v1/cache:verify", {}).document
        (entry,) = first["entries"]
        assert not first["ok"] and not entry["ok"] and [Path(entry["set_aside"])] == victim.set_aside()
        until(lambda: victim.folder.exists())
        assert service.ask("POST", "/v1/cache:verify", {}).document["ok"]
        (error,) = _errors(service)
        assert error["code"] == "entry-damaged" and "the content of weights.bin changed" in error["message"]
        with victim.ask() as engine:
            assert engine.hit
