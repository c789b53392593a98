from __future__ import annotations

import os
from pathlib import Path

import pytest

from refit_agent.errors import SettingInvalid
from refit_agent.paths import Home, home
from refit_agent.settings import cache_quota, parse_size


def test_one_variable_moves_everything(tmp_path: Path) -> None:
    """REFIT_AGENT_HOME holds cache and state, and a relative one is made absolute."""
    assert home({"REFIT_AGENT_HOME": str(tmp_path)}) == Home(f"{tmp_path}/cache", f"{tmp_path}/state")
    assert home({"REFIT_AGENT_HOME": "here"}).cache == os.path.abspath("here/cache")
    assert home({"REFIT_AGENT_HOME": "~/x"}).cache == os.path.expanduser("~/x/cache")


def test_a_host_app_s_systemd_unit_does_not_move_the_cache() -> None:
    """CACHE_DIRECTORY in an app's unit is the app's folder: the engines stay where all apps find them."""
    assert home({"CACHE_DIRECTORY": "/var/cache/a", "STATE_DIRECTORY": "/var/lib/a"}) == home({})


def test_otherwise_the_user_s_own_folders_are_used_and_nothing_is_created(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Absolute even where the environment is not."""
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = home()
    assert all(os.path.isabs(p) and p.endswith("refit-agent") for p in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("500", 500),
        ("1K", 1024),
        ("1.5k", 1536),
        ("0.5", 1),
        ("0.0", 0),
        ("500MB", 500 << 20),
        ("20GiB", 20 << 30),
        (" 1 T ", 1 << 40),
    ],
)
def test_sizes_are_read_in_powers_of_1024(text: str, value: int) -> None:
    """With or without the letters that people put behind."""
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "many", "-1", "-0.5", "5%", "nan", "inf", "1e999", "K", "10X"])
def test_a_size_that_is_none_is_refused_with_an_example(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting, the value and the form."""
    with pytest.raises(SettingInvalid, match="500M or 20G"):
        parse_size(text)
    monkeypatch.setenv("REFIT_AGENT_CACHE_QUOTA", text)
    if text:
        with pytest.raises(SettingInvalid, match="REFIT_AGENT_CACHE_QUOTA"):
            cache_quota()
    else:
        assert cache_quota() is None
