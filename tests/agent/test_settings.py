"""Settings: what decides, in which form, and that a wrong value never falls through to the next."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from bundles import MODEL
from refit_agent import ensure_engine, paths, settings
from refit_agent.authoring.signing import make_key, sign_bundle
from refit_agent.bundle import Bundle
from refit_agent.errors import SettingInvalid, SignatureInvalid, SignatureMissing
from refit_agent.settings import Hours
from settings_files import SettingsFiles

KEY = "ed25519:" + "A" * 43 + "="


# ---------------------------------------------------------------- what decides


def test_each_layer_counts_more_than_the_one_below(files: SettingsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default, machine, user, environment, policy; and each says that it was it."""
    assert settings.find("cache_quota") == (None, "default", "")
    files.machine('cache_quota = "1G"')
    assert settings.find("cache_quota") == (1 << 30, "machine", str(files.machine_path))
    files.user('cache_quota = "2G"')
    assert settings.find("cache_quota") == (2 << 30, "user", str(files.user_path))
    monkeypatch.setenv("REFIT_AGENT_CACHE_QUOTA", "3G")
    assert settings.find("cache_quota") == (3 << 30, "environment", "REFIT_AGENT_CACHE_QUOTA")
    files.policy('cache_quota = "4G"')
    assert settings.find("cache_quota") == (4 << 30, "policy", str(files.policy_path))
    assert settings.cache_quota() == 4 << 30
    assert settings.find("cache_quota").source == f"the policy {files.policy_path}"
    files.policy("warm = true")
    assert settings.cache_quota() == 3 << 30


def test_the_user_s_file_can_be_left_out(files: SettingsFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By those who have to go on although it is broken; the machine's word stays."""
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files.user("cache_dir = ")
    assert paths.home(user_file=False).cache == f"{tmp_path}/refit-agent"
    files.machine('cache_dir = "/scratch/engines"')
    assert paths.home(user_file=False).cache == "/scratch/engines"
    with pytest.raises(SettingInvalid):
        paths.home()


@pytest.mark.parametrize(
    ("name", "toml", "value"),
    [
        ("cache_quota", "1073741824", 1 << 30),
        ("cache_quota", '"500M"', 500 << 20),
        ("cache_quota", '"10000B"', 10_000),
        ("cache_quota", "0", 0),
        ("cache_quota", '"00"', 0),
        ("cache_quota", '"0.0"', 0),
        ("cache_quota", '"0 GB"', 0),
        ("fetch", '["https"]', ("https",)),
        ("fetch", "[]", ()),
        ("public_keys", f'["{KEY}"]', (KEY,)),
        ("public_keys", "[]", ()),
        ("register_from", '["/opt", "~/apps"]', ("/opt", "~/apps")),
        ("warm", "false", False),
        ("warm_on_battery", "true", True),
        ("warm_busy_percent", "101", 101),
        ("warm_between", '"22:00-06:00"', Hours(22 * 60, 6 * 60)),
        ("warm_between", '"9:30 - 24:00"', Hours(570, 1440)),
        ("cache_dir", '"/scratch/{user}/engines"', "/scratch/{user}/engines"),
    ],
)
def test_files_hold_values_of_toml(files: SettingsFiles, name: str, toml: str, value: object) -> None:
    """Every key, in each form that it has."""
    files.policy(f"{name} = {toml}")
    assert settings.find(name) == (value, "policy", str(files.policy_path))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("fetch", "https, s3,", ("https", "s3")),
        ("fetch", "", ()),
        ("public_keys", f"{KEY},{KEY}", (KEY, KEY)),
        ("register_from", f"/opt{os.pathsep}/srv/apps", ("/opt", "/srv/apps")),
        ("register_from", "", ()),
        ("warm", "0", False),
        ("warm", "1", True),
        ("warm_on_battery", "1", True),
        ("warm_on_battery", "0", False),
        ("warm", "false", False),
        ("warm", "False", False),
        ("warm", "true", True),
        ("warm_on_battery", "true", True),
        ("warm_on_battery", "FALSE", False),
        ("warm_busy_percent", "0", 0),
        ("warm_between", "00:00-08:00", Hours(0, 480)),
        ("cache_dir", "/scratch", "/scratch"),
        ("cache_dir", "/scratch/{user}", "/scratch/{user}"),
        ("cache_dir", "~/engines", "~/engines"),
        ("cache_dir", "engines", os.path.abspath("engines")),
    ],
)
def test_variables_hold_text(
    files: SettingsFiles, name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists are separated, and an empty list is a list."""
    variable = settings.KEYS[name].variable
    monkeypatch.setenv(variable, text)
    assert settings.find(name) == (value, "environment", variable)


@pytest.mark.parametrize("name", ["cache_quota", "warm", "warm_on_battery", "warm_busy_percent", "warm_between"])
def test_a_variable_that_is_set_to_nothing_says_nothing(
    files: SettingsFiles, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is no value."""
    monkeypatch.setenv(settings.KEYS[name].variable, "")
    assert settings.find(name).kind == "default"


@pytest.mark.parametrize(
    ("name", "toml"),
    [
        ("cache_quota", '"lots"'),
        ("cache_quota", "-1"),
        ("cache_quota", "20"),
        ("cache_quota", '"9999"'),
        ("cache_quota", '"20.0"'),
        ("cache_quota", '"1e3"'),
        ("cache_quota", '"0.5"'),
        ("cache_quota", '"0.5B"'),
        ("cache_quota", '"20B"'),
        ("cache_quota", '"9999B"'),
        ("cache_quota", '"1k"'),
        ("cache_quota", '"9.7 KiB"'),
        ("cache_quota", '"-0.5"'),
        ("cache_quota", "true"),
        ("cache_quota", "1979-05-27"),
        ("fetch", '"https"'),
        ("fetch", "[1]"),
        ("fetch", '[""]'),
        ("public_keys", '["ed25519:x"]'),
        ("public_keys", f'"{KEY}"'),
        ("register_from", '["opt"]'),
        ("register_from", '["~other/apps"]'),
        ("warm", '"no"'),
        ("warm", "0"),
        ("warm_on_battery", "1"),
        ("warm_busy_percent", "102"),
        ("warm_busy_percent", "-1"),
        ("warm_busy_percent", "true"),
        ("warm_busy_percent", "2.5"),
        ("warm_between", '"22:00"'),
        ("warm_between", '"22:00-22:00"'),
        ("warm_between", '"22-06"'),
        ("warm_between", '"24:00-06:00"'),
        ("warm_between", '"22:60-06:00"'),
        ("warm_between", '"22:00-25:00"'),
        ("warm_between", '"²2:00-06:00"'),
        ("warm_between", "2200"),
        ("cache_dir", '"engines"'),
        ("cache_dir", '""'),
        ("cache_dir", '"/scratch/{uid}"'),
        ("cache_dir", '"~other/cache"'),
        ("cache_dir", '["/scratch"]'),
    ],
)
@pytest.mark.parametrize("kind", ["policy", "user", "machine"])
def test_a_wrong_value_is_an_error_that_names_file_and_key(
    files: SettingsFiles, kind: str, name: str, toml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not passed over for the next file's, and keeps no other setting from being used."""
    files.machine(f"{name} = {toml}" if kind == "machine" else "")
    path = getattr(files, kind)(f"{name} = {toml}\n" + ('fetch = ["s3"]' if name != "fetch" else "warm = false"))
    monkeypatch.delenv("REFIT_AGENT_HOME")
    with pytest.raises(SettingInvalid) as info:
        settings.find(name)
    assert str(info.value).startswith(f"{name} in {path} is ") and settings.KEYS[name].wanted in str(info.value)
    json.dumps(info.value.facts)
    other = settings.find("warm" if name == "fetch" else "fetch")
    assert other.value == (False if name == "fetch" else ("s3",))


@pytest.mark.parametrize("name", ["warm", "warm_on_battery"])
def test_a_wrong_switch_is_told_all_that_is_taken_there(
    files: SettingsFiles, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Numbers in the environment alone: TOML has true and false."""
    monkeypatch.setenv(settings.KEYS[name].variable, "maybe")
    with pytest.raises(SettingInvalid, match=r" is 'maybe', which is not 1, 0, true or false\.$"):
        settings.find(name)
    files.policy(f"{name} = 1")
    with pytest.raises(SettingInvalid, match=r" is 1, which is not true or false\.$"):
        settings.find(name)


def test_wrong_variables_are_errors_too(files: SettingsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the variable, unless a policy decides."""
    monkeypatch.setenv("REFIT_AGENT_WARM_BETWEEN", "by night")
    with pytest.raises(SettingInvalid, match=r"REFIT_AGENT_WARM_BETWEEN is 'by night', .*22:00-06:00"):
        settings.find("warm_between")
    files.policy('warm_between = "01:00-02:00"')
    assert settings.find("warm_between").kind == "policy"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REFIT_AGENT_WARM", "no"),
        ("REFIT_AGENT_WARM", "off"),
        ("REFIT_AGENT_WARM", "2"),
        ("REFIT_AGENT_WARM_ON_BATTERY", "yes"),
        ("REFIT_AGENT_CACHE_DIR", "~other/x"),
        ("REFIT_AGENT_CACHE_DIR", "/x/{name}"),
    ],
)
def test_text_that_could_mean_anything_is_refused(
    files: SettingsFiles, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """Taken for the opposite it would do what its writer wanted to forbid."""
    monkeypatch.setenv(variable, text)
    name = next(name for name, key in settings.KEYS.items() if key.variable == variable)
    with pytest.raises(SettingInvalid, match=variable):
        settings.find(name)


def test_keys_of_a_newer_version_are_named_once(files: SettingsFiles, caplog: pytest.LogCaptureFixture) -> None:
    """And are no error: agents of several ages read one file."""
    files.machine('warm = false\ncolour = "blue"\n[telemetry]\non = true')
    for _ in range(3):
        assert settings.find("warm").value is False
    assert [r.getMessage() for r in caplog.records] == [
        f"{files.machine_path} has settings that this refit-agent does not know: 'colour', 'telemetry'"
    ]


# ---------------------------------------------------------------- hours


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        (Hours(22 * 60, 6 * 60), [22 * 60, 1439, 0, 359], [360, 720, 22 * 60 - 1]),
        (Hours(60, 120), [60, 119], [59, 120, 1439, 0]),
        (Hours(0, 1440), [0, 720, 1439], []),
        (Hours(1380, 0), [1380, 1439], [0, 1379]),
    ],
)
def test_hours_may_go_over_midnight(hours: Hours, inside: list[int], outside: list[int]) -> None:
    """The first minute belongs to them, the last does not."""
    assert all(hours.contain(m) for m in inside)
    assert not any(hours.contain(m) for m in outside)


# ---------------------------------------------------------------- the cache's folder


def test_the_cache_s_folder(files: SettingsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file moves the cache alone; REFIT_AGENT_HOME counts more than a file, and a variable of its own more than it."""
    state = tmp_path / "home" / "state"
    files.user(f'cache_dir = "{tmp_path}/mine"')
    assert paths.home() == (str(tmp_path / "home" / "cache"), str(state))
    monkeypatch.setenv("REFIT_AGENT_CACHE_DIR", str(tmp_path / "own"))
    assert paths.home() == (str(tmp_path / "own"), str(state))
    monkeypatch.delenv("REFIT_AGENT_CACHE_DIR")
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.home() == (str(tmp_path / "mine"), str(tmp_path / ".local/state/refit-agent"))
    files.user('cache_dir = "~/mine"')
    assert paths.home().cache == str(tmp_path / "mine")


def test_the_cache_s_variable_means_what_its_key_does(
    files: SettingsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's name and home in their places; the home of all folders is a plain path, as it is for everything else."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REFIT_AGENT_CACHE_DIR", f"{tmp_path}/{{user}}/engines")
    assert paths.home().cache == f"{tmp_path}/{name}/engines"
    monkeypatch.setenv("REFIT_AGENT_CACHE_DIR", "~/{user}")
    assert paths.home().cache == f"{tmp_path}/{name}"
    monkeypatch.delenv("REFIT_AGENT_CACHE_DIR")
    monkeypatch.setenv("REFIT_AGENT_HOME", f"{tmp_path}/{{user}}")
    assert paths.home() == (f"{tmp_path}/{{user}}/cache", f"{tmp_path}/{{user}}/state")


def test_no_variable_moves_the_cache_of_a_policy(
    files: SettingsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not HOME either; the user's name and home are the account's."""
    account = pwd.getpwuid(os.geteuid())
    monkeypatch.setenv("REFIT_AGENT_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "somebody")
    files.policy('cache_dir = "/scratch/{user}/engines"')
    assert paths.home() == (f"/scratch/{account.pw_name}/engines", str(tmp_path / "home" / "state"))
    files.policy('cache_dir = "~/engines"')
    assert paths.home().cache == f"{account.pw_dir}/engines"


def test_an_engine_is_made_where_the_policy_says(files: SettingsFiles, bundle: Path, tmp_path: Path) -> None:
    """And found there again."""
    files.policy(f'cache_dir = "{tmp_path}/elsewhere"')
    for hit in (False, True):
        with ensure_engine(bundle, MODEL) as engine:
            assert engine.hit is hit and os.fspath(engine).startswith(f"{tmp_path}/elsewhere/engines/")
    assert not (tmp_path / "home" / "cache").exists()


# ---------------------------------------------------------------- keys


@pytest.fixture
def public(tmp_path: Path) -> str:
    return make_key(str(tmp_path / "key.pem"))


def test_only_bundles_that_the_machine_s_keys_signed(
    files: SettingsFiles, bundle: Path, public: str, tmp_path: Path
) -> None:
    """A hit is no way round it; the error says whose list it is; and whoever makes bundles can sign them."""
    with ensure_engine(bundle, MODEL) as engine:
        assert not engine.hit
    files.policy(f'public_keys = ["{public}"]')
    with pytest.raises(SignatureMissing, match="the policy ") as info:
        ensure_engine(bundle, MODEL)
    assert str(files.policy_path) in str(info.value) and "administrator" in info.value.hint
    sign_bundle(str(bundle), str(tmp_path / "key.pem"))
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.hit
    manifest = bundle / "bundle.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(SignatureInvalid):
        ensure_engine(bundle, MODEL)


def test_the_app_s_keys_and_the_machine_s_must_both_hold(
    files: SettingsFiles, bundle: Path, public: str, tmp_path: Path
) -> None:
    """One key in both lists, or two signatures. The machine's alone let no code of the bundle's run."""
    other = make_key(str(tmp_path / "other.pem"))
    files.machine(f'public_keys = ["{public}"]')
    sign_bundle(str(bundle), str(tmp_path / "other.pem"))
    with pytest.raises(SignatureMissing, match=r"settings\.toml"):
        Bundle.open(bundle, [other])
    sign_bundle(str(bundle), str(tmp_path / "key.pem"))
    assert Bundle.open(bundle, [other]).signed
    assert not Bundle.open(bundle).signed
    with pytest.raises(SignatureMissing, match="other keys than the app's"):
        Bundle.open(bundle, [make_key(str(tmp_path / "third.pem"))])


def test_an_empty_list_of_keys_lets_no_bundle_in(files: SettingsFiles, bundle: Path) -> None:
    """It is not the same as no list."""
    files.policy("public_keys = []")
    with pytest.raises(SignatureMissing):
        Bundle.open(bundle)
