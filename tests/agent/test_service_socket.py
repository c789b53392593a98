"""Where the service is looked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from refit_agent.service_socket import is_loopback, socket_path
from settings_files import SettingsFiles


@pytest.fixture(autouse=True)
def no_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also against the others; empty means that there is to be no service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "my.sock")
    assert socket_path() == str(tmp_path / "my.sock")
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    assert socket_path() == ""


def test_a_home_of_its_own_has_a_service_of_its_own(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Its cache is another, so an answer of the usual service would be of no use."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert socket_path() == str(home / "run" / "agent.sock")


def test_the_runtime_folder_is_the_usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one is ignored, as the specification asks."""
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/77")
    assert socket_path() == "/run/user/77/refit-agent/agent.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert os.path.isabs(socket_path())
    assert "relative" not in socket_path()


def test_without_a_runtime_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/run/user/UID if it is ours, as a cron job has it, and else a folder below the state."""
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("refit_agent.service_socket._is_ours", lambda folder: True)
    assert socket_path() == f"/run/user/{os.geteuid()}/refit-agent/agent.sock"
    monkeypatch.setattr("refit_agent.service_socket._is_ours", lambda folder: False)
    assert socket_path() == str(tmp_path / "refit-agent" / "run" / "agent.sock")


def test_a_broken_settings_file_of_the_user_hides_no_service(
    monkeypatch: pytest.MonkeyPatch, files: SettingsFiles, tmp_path: Path
) -> None:
    """It may say where the cache is, which is not asked here: 'uninstall' has to find the service all the same."""
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("refit_agent.service_socket._is_ours", lambda folder: False)
    files.user("cache_dir = ")
    assert socket_path() == str(tmp_path / "refit-agent" / "run" / "agent.sock")


def test_on_windows_it_is_a_file(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    """Below the home or the state; Python has no Unix sockets there. A name that says so means one anywhere."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/77")
    assert socket_path() == str(home / "run" / "agent.json")
    monkeypatch.delenv("REFIT_AGENT_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert socket_path() == str(tmp_path / "refit-agent" / "run" / "agent.json")
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    assert socket_path() == ""
    assert is_loopback("/x/agent.json")
    assert not is_loopback("/x/agent.json.sock")
    assert not is_loopback("")
