"""The units under a real user manager of systemd, in namespaces of their own: nothing of this machine is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from debian_packages import UNITS

MANAGER = Path("/lib/systemd/systemd")
#: The count of refits that the service itself did.
METRICS = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
print(next(line for line in text.splitlines() if line.startswith('refit_agent_refit_seconds_count{phase="refit"}')))
"""
#: Argument 1 is the bundle, 2 the program, 3 a Python. A manager starts only where /run/systemd/system is there.
SCRIPT = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
"$MANAGER" --user --log-target=console >"$HOME/manager.log" 2>&1 &
manager=$!
for i in $(seq 100); do systemctl --user is-system-running --quiet && break; sleep 0.1; done
systemctl --user enable --now --quiet refit-agent.socket
readlink "$HOME/.config/systemd/user/sockets.target.wants/refit-agent.socket"
stat -c 'socket %a' "$XDG_RUNTIME_DIR/refit-agent/agent.sock"
systemctl --user is-active refit-agent.service || true
"$2" provision "$1" --json >"$HOME/provision.json"
systemctl --user is-active refit-agent.service
pid=$(systemctl --user show --property MainPID --value refit-agent.service)
grep -E '^(NoNewPrivs|Seccomp):' "/proc/$pid/status" | tr '\\t' ' '
readlink "/proc/$pid/exe"
"$3" -c "$METRICS" "$XDG_RUNTIME_DIR/refit-agent/agent.sock"
kill -KILL "$pid"
"$2" status >/dev/null
test "$(systemctl --user show --property MainPID --value refit-agent.service)" != "$pid" && echo started anew
systemctl --user stop refit-agent.socket refit-agent.service
systemctl --user show --property Result --value refit-agent.service
test ! -e "$XDG_RUNTIME_DIR/refit-agent/agent.sock" && echo socket gone
kill -TERM "$manager"
wait "$manager" || true
"""


def test_a_socket_of_systemd_starts_a_confined_service_that_makes_engines(tmp_path: Path, bundle: Path) -> None:
    """Enabled, activated by the first client, under all filters of the unit, restarted after a kill, stopped clean."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None or not MANAGER.exists():
        pytest.skip("needs root, unshare and systemd")
    home = tmp_path / "user"
    program = home / ".local/bin/refit-agent"
    program.parent.mkdir(parents=True)
    program.symlink_to(Path(sys.executable).with_name("refit-agent"))
    shutil.copytree(UNITS, home / ".config/systemd/user")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT", "XDG_"))}
    env |= {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": "/run/user/0",
        "MANAGER": str(MANAGER),
        "METRICS": METRICS,
        "LC_ALL": "C.UTF-8",
    }
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*apart, "sh", "-c", "mount -t tmpfs tmpfs /run"], capture_output=True).returncode:
        pytest.skip("namespaces may not be made here")
    done = subprocess.run(
        [*apart, "sh", "-c", SCRIPT, "sh", bundle, program, sys.executable], capture_output=True, text=True, env=env
    )
    log = (home / "manager.log").read_text()
    if "Failed to" in log and "control group" in log.lower():
        pytest.skip("systemd may not make control groups here")
    assert done.stdout.splitlines() == [
        str(home / ".config/systemd/user/refit-agent.socket"),
        "socket 600",
        "inactive",
        "active",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        os.path.realpath(sys.executable),
        # The service made it: under its filters the worker started, read, wrote, ran the golden check and published.
        'refit_agent_refit_seconds_count{phase="refit"} 1.0',
        "started anew",
        "success",
        "socket gone",
    ], done.stderr + log
    assert done.returncode == 0
