"""Background work: what is missing is made, nothing twice, and not at a bad time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import MODEL
from refit_service import idle
from refit_service.attempts import Attempts

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
    """One refit, and the job counts as the app's from then on."""
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(lambda: service.status["jobs"] and service.status["jobs"][0]["background"])
    sock = service.begin(bundle, MODEL)
    job = until(lambda: [j for j in service.status["jobs"] if j["waiters"] == 2])[0]
    assert job["background"] is False
    (slow_runtime / "go").touch()
    assert read_answer(sock).lines[-1]["event"] == "result"
    sock.close()
    assert (slow_runtime / "count").read_text() == "x"


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
