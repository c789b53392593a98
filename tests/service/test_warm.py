"""Background work: what is missing is made, nothing twice, and not at a bad time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bundles import MODEL, make_bundle
from refit_agent import paths
from refit_agent.machine import Gpu, Machine
from refit_service import idle, warm
from refit_service.attempts import Attempts
from refit_service.lookup import machine_now

from .in_process import Parts, run
from .in_process import until as soon
from .running import Running, read_answer, until


def test_a_registered_bundle_is_made_ready(start: Callable[..., Running], bundle: Path) -> None:
    """After the registration, and again at the next start if the engine has gone."""
    service = start(REFIT_AGENT_WARM="1")
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(lambda: service.status["idle"] and service.status["cache"]["entries"] == 1)
    until(lambda: service.status["warm"]["state"] == "idle")
    assert service.ensure(bundle, MODEL).document["hit"]
    service.kill()
    shutil.rmtree(service.home / "cache")
    again = start(REFIT_AGENT_WARM="1")
    until(lambda: again.status["cache"]["entries"] == 1)


def test_a_foreground_request_joins_background_work(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """One job, which counts as the app's from then on."""
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(lambda: service.status["jobs"] and service.status["jobs"][0]["background"])
    worker = until(service.workers)[0]
    sock = service.begin(bundle, MODEL)
    (job,) = until(lambda: [j for j in service.status["jobs"] if j["waiters"] == 2])
    assert job["background"] is False
    until(lambda: not worker.is_running(), 5)
    until(service.workers)
    (slow_runtime / "go").touch()
    assert read_answer(sock).lines[-1]["event"] == "result"
    sock.close()
    until(lambda: service.status["warm"] == {"state": "idle", "reason": "", "failures": []})
    assert published(service) == 1


def published(service: Running) -> int:
    """How often an engine was made."""
    return (service.home / "state/logs/service.log").read_text().count("engine published")


def test_failures_back_off_and_are_told(start: Callable[..., Running], bundle: Path) -> None:
    """Not tried again at once, not after a restart either; removing the bundle forgets them."""
    plan = bundle / "plans" / "mlp.cpu"
    plan.write_bytes(bytes(len(plan.read_bytes())))
    service = start(REFIT_AGENT_WARM="1")
    record = service.ask("POST", "/v1/bundles", {"path": str(bundle)}).document

    def told() -> object:
        return [f for f in service.status["warm"]["failures"] if f["code"] != "service-stopped"]

    failure = until(told)[0]
    assert failure["tries"] == 1
    assert 30 < failure["not_before"] - time.time() < 90
    service.kill()
    again = start(REFIT_AGENT_WARM="1")
    time.sleep(0.5)
    assert [f["tries"] for f in again.status["warm"]["failures"]] == [1]
    again.ask("DELETE", f"/v1/bundles/{record['id']}")
    until(lambda: not again.status["warm"]["failures"], 5)


def test_a_crash_loop_backs_off(start: Callable[..., Running], slow_runtime: Path, bundle: Path) -> None:
    """A service that dies of its background work does not begin it again at the next start."""
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(service.workers)
    service.kill()
    again = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    time.sleep(0.7)
    warm = again.status["warm"]
    assert [f["code"] for f in warm["failures"]] == ["service-stopped"]
    assert again.status["idle"]


def test_sigterm_during_background_work_is_no_failure(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """It goes on at the next start."""
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(service.workers)
    assert service.process is not None
    service.process.terminate()
    assert service.process.wait(10) == 0
    assert json.loads((service.home / "state/warm.json").read_bytes()) == []


def test_a_busy_gpu_is_asked_once_whatever_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    """Each question is a process of its own. When it has time again, all is made."""
    asked: list[str] = []
    load = "GPU 0 is busy (99 %)"

    def gpu_load() -> str:
        asked.append(load)
        return load

    def with_gpu(home: paths.Home) -> Machine:
        gpu = Gpu(index=0, name="X", uuid="GPU-0", compute_capability="9.0", memory_total=1 << 30)
        return msgspec.structs.replace(machine_now(home), gpus=(gpu,))

    monkeypatch.setattr(warm, "gpu_load", gpu_load)
    monkeypatch.setattr(warm, "machine_now", with_gpu)

    async def test() -> None:
        nonlocal load
        parts = Parts()
        for seed in range(3):
            parts.registry.add(str(make_bundle(tmp_path / f"b{seed}", seed=seed)))
        parts.warmer.start()
        await soon(lambda: parts.warming == ("paused", "GPU 0 is busy (99 %)"))
        await asyncio.sleep(0.5)
        assert len(asked) == 1
        load = ""
        parts.warmer.look_again()
        await soon(lambda: parts.warming == ("idle", "") and len(list((home / "cache/engines").iterdir())) == 3)
        assert asked[1:] == [""] * 3
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()
        assert parts.faults == []

    run(test())


def test_a_gpu_that_is_never_too_busy_is_not_asked(monkeypatch: pytest.MonkeyPatch, bundle: Path, home: Path) -> None:
    """It is the way out where the driver takes down whoever asks."""
    monkeypatch.setenv("REFIT_AGENT_WARM_BUSY_PERCENT", "101")
    monkeypatch.setattr(warm, "gpu_load", lambda: pytest.fail("asked"))

    def with_gpu(home: paths.Home) -> Machine:
        gpu = Gpu(index=0, name="X", uuid="GPU-0", compute_capability="9.0", memory_total=1 << 30)
        return msgspec.structs.replace(machine_now(home), gpus=(gpu,))

    monkeypatch.setattr(warm, "machine_now", with_gpu)

    async def test() -> None:
        parts = Parts()
        parts.registry.add(str(bundle))
        parts.warmer.start()
        await soon(lambda: parts.warming == ("idle", "") and len(list((home / "cache/engines").glob("*"))) == 1)
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()
        assert parts.faults == []

    run(test())


def test_it_can_be_turned_off(service: Running, bundle: Path) -> None:
    """REFIT_AGENT_WARM=0, and the status says why nothing happens."""
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    assert service.status["warm"]["state"] == "paused"
    assert "REFIT_AGENT_WARM" in service.status["warm"]["reason"]


def test_a_clock_set_back_does_not_put_work_off_for_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do the waits grow without end."""
    attempts = Attempts(str(tmp_path))
    what = ("/b", "m", None)
    for _ in range(40):
        attempts.begin(what)
    assert 5 * 3600 < attempts.wait_s(what) <= 6 * 3600
    assert Attempts(str(tmp_path)).failures()[0].tries == 40
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400 * 365)
    assert attempts.wait_s(what) == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it reads what is open by its number")
def test_an_attempt_is_on_the_disk_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take the whole machine down, and would again after the next start."""
    synced: list[bytes] = []

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    Attempts(str(tmp_path)).begin(("/b", "m", None))
    assert synced == [(tmp_path / "warm.json").read_bytes()]
    assert b'"/b"' in synced[0]


@pytest.mark.parametrize("damage", [b"", b"[{", b"\xff", b"[" * 200_000, b'[{"x":' + b"[" * 200_000])
def test_notes_that_cannot_be_read_are_none(tmp_path: Path, damage: bytes) -> None:
    """A service that does not start helps no app."""
    (tmp_path / "warm.json").write_bytes(damage)
    attempts = Attempts(str(tmp_path))
    assert attempts.failures() == ()
    attempts.begin(("/b", "m", None))
    assert len(Attempts(str(tmp_path)).failures()) == 1


def test_battery_is_read_from_the_system(tmp_path: Path) -> None:
    """A mouse's battery is none of the machine's; a plug in the wall decides."""

    def supply(name: str, **files: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        for key, value in files.items():
            (tmp_path / name / key).write_text(value + "\n")

    assert not idle.on_battery(str(tmp_path / "none"))
    supply("mouse", type="Battery", status="Discharging", scope="Device")
    assert not idle.on_battery(str(tmp_path))
    supply("BAT0", type="Battery", status="Discharging")
    supply("AC", type="Mains", online="0")
    assert idle.on_battery(str(tmp_path))
    supply("AC", type="Mains", online="1")
    assert not idle.on_battery(str(tmp_path))
