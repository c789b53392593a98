"""`refit-agent settings`, and what `doctor` says of the files."""

from __future__ import annotations

from typing import Any

import pytest

from refit_agent import settings
from settings_files import SettingsFiles

from .command import Cli


def _by_name(document: Any) -> dict[str, Any]:
    return {one["name"]: one for one in document["settings"]}


@pytest.fixture
def cli(files: SettingsFiles, cli: Cli) -> Cli:
    """The command, on a machine with the test's own files."""
    cli.env |= {"PYTHONPATH": str(files.site), "XDG_CONFIG_HOME": str(files.user_folder.parent)}
    return cli


def test_every_setting_says_where_it_comes_from(cli: Cli, files: SettingsFiles) -> None:
    """Default, machine, user, variable, policy; and which files were looked for."""
    files.machine('cache_quota = "1G"\nwarm = false')
    files.user("warm = true\nwarm_busy_percent = 50")
    files.policy('warm_between = "22:00-06:00"\nregister_from = []')
    ran = cli("settings", "--json", REFIT_AGENT_WARM_BUSY_PERCENT="60")
    found = _by_name(ran.document)
    assert ran.code == 0 and ran.err == "" and list(found) == list(settings.KEYS)
    expected = {
        "cache_dir": (str(cli.cache), "environment", "REFIT_AGENT_HOME"),
        "cache_quota": (1 << 30, "machine", str(files.machine_path)),
        "public_keys": (None, "default", ""),
        "register_from": ([], "policy", str(files.policy_path)),
        "warm": (True, "user", str(files.user_path)),
        "warm_on_battery": (False, "default", ""),
        "warm_busy_percent": (60, "environment", "REFIT_AGENT_WARM_BUSY_PERCENT"),
        "warm_between": ("22:00-06:00", "policy", str(files.policy_path)),
    }
    for name, (value, kind, place) in expected.items():
        assert (found[name]["value"], found[name]["from"], found[name]["place"]) == (value, kind, place)
    assert [(f["kind"], f["path"], f["found"]) for f in ran.document["files"]] == [
        ("policy", str(files.policy_path), True),
        ("user", str(files.user_path), True),
        ("machine", str(files.machine_path), True),
    ]
    text = cli("settings").out
    assert f"warm_between       22:00-06:00  (the policy {files.policy_path})" in text
    assert f"{files.user_path} (user): read" in text
    files.user_path.unlink()
    assert f"{files.user_path} (user): not there" in cli("settings").out


def test_what_is_wrong_is_shown_beside_the_rest(cli: Cli, files: SettingsFiles) -> None:
    """With the exit code of a wrong setting; `doctor` fails and says the same."""
    files.user('warm_between = "by night"\nwarm = false')
    ran = cli("settings", "--json")
    found = _by_name(ran.document)
    assert ran.code == 2 and found["warm"]["value"] is False
    message = f"warm_between in {files.user_path} is 'by night', which is not hours of the day such as 22:00-06:00."
    assert found["warm_between"]["error"]["message"] == message
    assert f"WRONG: {message}" in cli("settings").out
    doctor = cli("doctor")
    assert doctor.code == 1 and f"FAIL settings: {message}" in doctor.out


def test_a_file_that_cannot_be_used_is_shown(cli: Cli, files: SettingsFiles) -> None:
    """And is no reason for a traceback, whoever meets it."""
    files.policy("warm = [")
    ran = cli("settings", "--json")
    policy = ran.document["files"][0]
    assert ran.code == 2 and policy["error"]["code"] == "settings-file-invalid"
    assert "not TOML" in cli("settings").out
    doctor = cli("doctor")
    assert doctor.code == 1 and "FAIL settings: The settings file" in doctor.out
    refused = cli("cache", "list")
    assert refused.code == 2 and str(files.policy_path) in refused.err and "administrator" in refused.err


def test_doctor_lists_what_files_decide(cli: Cli, files: SettingsFiles) -> None:
    """And the keys that this version does not know, as a warning."""
    files.machine('cache_quota = "5G"')
    doctor = cli("doctor", REFIT_AGENT_WARM="0").out
    assert f"read: {files.machine_path}" in doctor and f"cache_quota: 5.0 GiB ({files.machine_path})" in doctor
    assert "no setting of refit-agent" not in doctor
    files.machine("cache_qouta = 5")
    doctor = cli("doctor").out
    assert "warn settings:" in doctor and "cache_qouta" in doctor
    assert f"not known to this version: {'cache_qouta'}" in cli("settings").out


def test_the_demo_is_no_way_round_the_machine_s_keys(cli: Cli, files: SettingsFiles) -> None:
    """Its bundle is not signed. It is refused in the same words each time."""
    files.policy("public_keys = []")
    for _ in range(2):
        ran = cli("demo", "--json")
        assert ran.code == 3 and str(files.policy_path) in ran.out
