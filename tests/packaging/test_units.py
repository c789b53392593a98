"""The systemd units, as systemd itself reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from debian_packages import UNITS

SERVICE = UNITS / "refit-agent.service"


@pytest.fixture
def analyze(tmp_path: Path) -> str:
    """systemd-analyze of version 252 or newer, with what it needs to speak of a user's units."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()
    if int(said[1].split(".")[0].split("~")[0]) < 252:
        pytest.skip("this systemd-analyze is too old for the checks")
    return program


def run(program: str, tmp_path: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """It asks for a runtime folder, though no manager has to run."""
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "LC_ALL": "C"}
    return subprocess.run([program, *words], capture_output=True, text=True, env=env)


def test_systemd_finds_no_fault_in_them(analyze: str, tmp_path: Path) -> None:
    """With a command in place of ours, and without the manual page: both are looked for on this machine."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("ExecStart=refit-agent", "ExecStart=/bin/true")
        (tmp_path / unit.name).write_text("".join(f"{x}\n" for x in text.splitlines() if "Documentation=" not in x))
    done = run(analyze, tmp_path, "verify", "--user", *sorted(tmp_path.glob("refit-agent.*")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_would_find_one(analyze: str, tmp_path: Path) -> None:
    """Guards the test above: a misspelt option is told."""
    faulty = tmp_path / "faulty.service"
    faulty.write_text("[Service]\nExecStart=/bin/true\nNoNewPriviliges=yes\n")
    assert "NoNewPriviliges" in run(analyze, tmp_path, "verify", "--user", faulty).stderr


def test_the_service_is_as_confined_as_it_says(analyze: str, tmp_path: Path) -> None:
    """systemd's own list of hardening options: those that a user's manager can set, and none that shuts out the GPU."""
    unit = tmp_path / "refit-agent.service"
    unit.write_text(SERVICE.read_text().replace("ExecStart=refit-agent", "ExecStart=/bin/true"))
    done = run(analyze, tmp_path, "security", "--user", "--offline=true", "--json=short", unit)
    # It fails only beyond --threshold, which is not given.
    rows = {(row["json_field"] or row["name"]): row["set"] for row in json.loads(done.stdout)}
    on = {name for name, is_set in rows.items() if is_set}
    assert on >= {
        "NoNewPrivileges",
        "LockPersonality",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
        "UMask",
        "RestrictNamespaces_user",
        "RestrictNamespaces_mnt",
        "SystemCallFilter_mount",
        "SystemCallFilter_module",
        "SystemCallFilter_raw_io",
        "SystemCallFilter_reboot",
        "RestrictAddressFamilies_AF_PACKET",
    }, sorted(rows)
    off = {"PrivateDevices", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute", "ProtectHome", "PrivateTmp"}
    assert not on & off


def test_the_socket_is_where_the_clients_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """%t is XDG_RUNTIME_DIR; a socket is started at login through sockets.target."""
    from refit_agent.service_socket import socket_path

    monkeypatch.delenv("REFIT_AGENT_HOME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    text = (UNITS / "refit-agent.socket").read_text()
    assert f"ListenStream={socket_path().replace('/run/user/1000', '%t')}\n" in text
    assert "\nWantedBy=sockets.target\n" in text
