"""What files and policies say to the service: who may register bundles, and when background work begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import MODEL, REAL
from refit_agent import ServiceClient, settings
from refit_agent.errors import SettingInvalid
from refit_agent.settings import Hours
from refit_service import idle, warm
from settings_files import SettingsFiles

from .in_process import Parts, run, until, workers
from .running import Running
from .running import until as soon


@pytest.fixture
def apps(tmp_path: Path, bundle: Path) -> Path:
    """A folder with one bundle, ``app``, and a folder beside it whose name begins the same."""
    for name in ("apps", "apps-of-others"):
        shutil.copytree(bundle, tmp_path / name / "app")
    return tmp_path / "apps"


# ---------------------------------------------------------------- who may register


def test_bundles_are_registered_from_the_policy_s_folders_alone(
    files: SettingsFiles, start: Callable[..., Running], apps: Path, tmp_path: Path
) -> None:
    """Compared by whole names and with links resolved; a change is in force at once."""
    files.policy(f'register_from = ["{apps}"]')
    service = start(path=[files.site])
    (tmp_path / "link").symlink_to(apps)
    (apps / "way-out").symlink_to(tmp_path / "apps-of-others" / "app")
    (apps / "dots").mkdir()
    with ServiceClient(str(service.socket)) as client:
        outside = [tmp_path / "apps-of-others/app", apps / "way-out", apps / "dots/../../apps-of-others/app"]
        for place in outside:
            with pytest.raises(SettingInvalid, match=f"register_from of the policy {files.policy_path}"):
                client.add_bundle(place)
        assert client.bundles() == ()
        assert client.add_bundle(tmp_path / "link" / "app").path == str(apps / "app")
        files.policy(f'register_from = ["/opt", "{tmp_path}/link"]')
        assert client.add_bundle(apps / "app").path == str(apps / "app")
        files.policy("register_from = []")
        with pytest.raises(SettingInvalid, match="none may"):
            client.add_bundle(apps / "app")
        files.policy_path.unlink()
        client.add_bundle(outside[0])
    # Whoever may not register a bundle can still use it.
    files.policy("register_from = []")
    assert service.ensure(outside[0], MODEL).lines[-1]["event"] == "result"


def test_the_command_says_that_it_is_the_policy(
    files: SettingsFiles, start: Callable[..., Running], apps: Path
) -> None:
    """Exit code 2, the folders, and whom to ask."""
    files.policy(f'register_from = ["{apps}"]')
    service = start(path=[files.site])

    def register(place: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "refit_agent", "register", str(place)]
        return subprocess.run(command, env=service.env, capture_output=True, text=True)

    refused = register(apps.parent / "apps-of-others" / "app")
    assert refused.returncode == 2 and refused.stdout == ""
    assert all(word in refused.stderr for word in ("policy", str(apps), "administrator"))
    assert register(apps / "app").returncode == 0


def test_a_policy_counts_for_what_was_registered_before_it(
    files: SettingsFiles, start: Callable[..., Running], apps: Path
) -> None:
    """The bundle stays in the list; nothing is made for it."""
    service = start(path=[files.site])
    service.ask("POST", "/v1/bundles", {"path": str(apps / "app")})
    service.kill()
    files.policy('register_from = ["/opt"]')
    again = start(path=[files.site], REFIT_AGENT_WARM="1")
    failures = soon(lambda: again.status["warm"]["failures"])
    assert failures[0]["code"] == "setting-invalid" and again.status["cache"]["entries"] == 0
    assert again.status["bundles"] == 1


def test_a_link_is_no_way_out_of_the_policy_s_folders(
    files: SettingsFiles, start: Callable[..., Running], apps: Path, home: Path
) -> None:
    """Written into the service's file by hand, it could lead elsewhere after the look at where it leads."""
    files.policy(f'register_from = ["{apps}"]')
    (apps / "link").symlink_to(apps / "app")
    service = start(path=[files.site])
    service.ask("POST", "/v1/bundles", {"path": str(apps / "app")})
    service.kill()
    file = home / "state/bundles.json"
    file.write_text(file.read_text().replace(str(apps / "app"), str(apps / "link")))
    again = start(path=[files.site], REFIT_AGENT_WARM="1")
    failures = soon(lambda: again.status["warm"]["failures"])
    assert failures[0]["code"] == "setting-invalid" and again.status["cache"]["entries"] == 0
    assert again.status["bundles"] == 1


# ---------------------------------------------------------------- when background work begins


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_WATCH_S", 0.1)
    monkeypatch.setattr(warm, "_PAUSE_S", 0.2)


def _hours(*, now: bool) -> str:
    """Hours of six that contain this minute, or do not."""
    hour = (time.localtime().tm_hour + (21 if now else 3)) % 24
    return f"{hour:02}:00-{(hour + 6) % 24:02}:00"


def test_nothing_begins_outside_the_hours(files: SettingsFiles, bundle: Path, home: Path, quick: None) -> None:
    """The status says why and who says so; it begins when the hours change or come."""
    files.policy(f'warm_between = "{_hours(now=False)}"')

    async def test() -> None:
        parts = Parts()
        parts.registry.add(str(bundle))
        parts.warmer.start()
        await until(lambda: parts.warming[0] == "paused")
        assert _hours(now=False) in parts.warming[1] and str(files.policy_path) in parts.warming[1]
        assert parts.jobs.records() == () and not (home / "cache/engines").exists()
        files.policy(f'warm_between = "{_hours(now=True)}"')
        await until(lambda: (home / "cache/engines").exists() and os.listdir(home / "cache/engines"))
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()

    run(test())


def test_what_was_begun_in_time_is_finished(
    files: SettingsFiles,
    bundle: Path,
    home: Path,
    quick: None,
    tmp_path: Path,
    evil_runtime: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of the hours stops nothing; nor does a file that was damaged meanwhile."""
    go = tmp_path / "go"
    evil_runtime(f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n" + REAL)
    battery = tmp_path / "supplies" / "BAT0"
    battery.mkdir(parents=True)
    (battery / "type").write_text("Battery\n")
    (battery / "status").write_text("Discharging\n")
    monkeypatch.setattr(idle, "_SUPPLIES", str(tmp_path / "supplies"))
    files.policy(f'warm_between = "{_hours(now=True)}"\nwarm_on_battery = true')
    looks: list[int] = []

    def power_reason() -> str:
        looks.append(1)
        return idle.power_reason()

    monkeypatch.setattr(warm, "power_reason", power_reason)

    async def test() -> None:
        parts = Parts()
        parts.registry.add(str(bundle))
        parts.warmer.start()
        await until(workers)
        files.policy(f'warm_between = "{_hours(now=False)}"\nwarm_on_battery = "x"')
        looks.clear()
        await until(lambda: len(looks) > 3)
        assert len(workers()) == 1 and parts.warming == ("working", "")
        go.touch()
        await until(lambda: (home / "cache/engines").exists() and os.listdir(home / "cache/engines"))
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()
        assert parts.faults == []

    run(test())


def test_the_hours_are_those_of_the_clock_on_the_wall(files: SettingsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set forward, set back, or carried into another time zone while the service runs."""
    minute = time.gmtime().tm_hour * 60
    hours = Hours(minute, (minute + 60) % 1440)
    files.user(f'warm_between = "{hours}"')
    try:
        monkeypatch.setenv("TZ", "XXX0")
        inside = idle.hours_reason()
        monkeypatch.setenv("TZ", "XXX-5")
        assert str(hours) in idle.hours_reason()
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    if time.gmtime().tm_hour * 60 == minute:  # unless the hour is over just now
        assert inside == ""
    for now, there in ((minute * 60, ""), ((minute - 61) * 60, str(hours)), ((minute + 61) * 60, str(hours))):
        monkeypatch.setattr(time, "localtime", lambda now=now: time.gmtime(now % 86400))
        assert (there in idle.hours_reason()) if there else idle.hours_reason() == ""


def test_a_policy_turns_it_off_and_on(
    files: SettingsFiles, bundle: Path, home: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the variable says; the service notices at its next look."""
    files.policy("warm = false")
    monkeypatch.setenv("REFIT_AGENT_WARM", "1")

    async def test() -> None:
        parts = Parts()
        parts.registry.add(str(bundle))
        parts.warmer.start()
        await until(lambda: parts.warming == ("paused", f"the policy {files.policy_path} turns it off"))
        files.policy("warm = true")
        parts.warmer.look_again()
        await until(lambda: (home / "cache/engines").exists() and os.listdir(home / "cache/engines"))
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()

    run(test())


def test_what_is_turned_on_again_is_noticed_without_news(
    files: SettingsFiles, bundle: Path, home: Path, quick: None
) -> None:
    """Nobody tells the service that a file has changed."""
    files.policy("warm = false")

    async def test() -> None:
        parts = Parts()
        parts.registry.add(str(bundle))
        parts.warmer.start()
        await until(lambda: parts.warming == ("paused", f"the policy {files.policy_path} turns it off"))
        files.policy("")
        await until(lambda: (home / "cache/engines").exists() and os.listdir(home / "cache/engines"))
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()

    run(test())


@pytest.mark.parametrize("text", ["warm = 1", "warm_between = 7", "warm_busy_percent = 500", "warm = ["])
def test_a_policy_that_is_wrong_stops_background_work(
    files: SettingsFiles, bundle: Path, home: Path, quick: None, text: str
) -> None:
    """The status says what is wrong; it goes on when that is mended."""
    parts_bundle = str(bundle)

    async def test() -> None:
        parts = Parts()
        parts.registry.add(parts_bundle)
        files.policy(text)
        parts.warmer.start()
        await until(lambda: parts.warming[0] == "paused" and str(files.policy_path) in parts.warming[1])
        assert not (home / "cache/engines").exists()
        files.policy("")
        await until(lambda: (home / "cache/engines").exists() and os.listdir(home / "cache/engines"))
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()
        assert parts.faults == []

    run(test())


def test_a_service_does_not_start_under_a_policy_that_it_cannot_read(files: SettingsFiles, home: Path) -> None:
    """It could not know what is forbidden."""
    files.policy("cache_dir = [").chmod(0o666)
    running = Running(home, path=[files.site]).start(wait=False)
    assert running.process is not None and running.process.stdout is not None
    assert running.process.wait(30) == 2
    assert "settings-file-invalid" in running.process.stdout.read().decode()
    running.kill()


def test_the_quota_of_a_file_is_the_service_s_too(files: SettingsFiles, start: Callable[..., Running]) -> None:
    """And is reported."""
    files.machine('cache_quota = "3G"')
    assert settings.cache_quota() == 3 << 30
    service = start(path=[files.site])
    assert service.status["cache"]["quota"] == 3 << 30
    files.machine('cache_quota = "4G"')
    assert json.loads(service.ask("GET", "/v1/status").body)["cache"]["quota"] == 4 << 30
