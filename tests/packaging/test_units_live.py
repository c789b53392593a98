"""The units under a real user manager of systemd, in namespaces of their own: nothing of this machine is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unit_filters
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
#: Makes the engine in a worker of its own, without a service.
MAKE = """
import sys
from refit_agent import ensure_engine
with ensure_engine(sys.argv[1], "mlp") as engine:
    print(engine.hit, engine.check)
"""
#: A namespace (RestrictNamespaces), a family of sockets that every Linux has (RestrictAddressFamilies), swap.
FORBIDDEN = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
said = [os.strerror(ctypes.get_errno()) if libc.unshare(0x04000000) else "done"]
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    said.append("done")
except OSError as error:
    said.append(error.strerror)
libc.swapoff(b"/nothing")
said.append(os.strerror(ctypes.get_errno()))
print(", ".join(said))
"""
#: Argument 1 is the bundle, 2 the program, 3 a Python. A manager starts only where /run/systemd/system is there.
START = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
"$MANAGER" --user --log-target=console >"$HOME/manager.log" 2>&1 &
manager=$!
for i in $(seq 100); do systemctl --user is-system-running --quiet && break; sleep 0.1; done
systemctl --user enable --now --quiet refit-agent.socket
"""
END = """
systemctl --user stop refit-agent.socket refit-agent.service
systemctl --user show --property Result --value refit-agent.service
test ! -e "$XDG_RUNTIME_DIR/refit-agent/agent.sock" && echo socket gone
kill -TERM "$manager"
wait "$manager" || true
"""
LIFE = """
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
"""
#: Then the same filters without systemd: those and no others, in their order, and the calls that they forbid are refused.
FILTERS = """
"$2" status >/dev/null
pid=$(systemctl --user show --property MainPID --value refit-agent.service)
taken=0
"$3" "$UNIT_FILTERS" take "$pid" "$HOME/filters.json" || taken=$?
if [ "$taken" = 77 ]; then
    echo not to be had
else
    [ "$taken" = 0 ]
    grep ^Seccomp_filters: "/proc/$pid/status"
    "$3" "$UNIT_FILTERS" under "$HOME/filters.json" sleep 60 &
    for i in $(seq 100); do test "$(cat "/proc/$!/comm")" = sleep && break; sleep 0.1; done
    "$3" "$UNIT_FILTERS" take $! "$HOME/again.json"
    kill $!
    cmp "$HOME/filters.json" "$HOME/again.json" && echo the same
    "$3" -c "$FORBIDDEN"
    "$3" "$UNIT_FILTERS" under "$HOME/filters.json" "$3" -c "$FORBIDDEN"
    REFIT_AGENT_HOME="$HOME/other" "$3" "$UNIT_FILTERS" under "$HOME/filters.json" "$3" -c "$MAKE" "$1"
fi
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Of a user with the units and the command, as `pip install --user` puts it."""
    home = tmp_path / "user"
    program = home / ".local/bin/refit-agent"
    program.parent.mkdir(parents=True)
    program.symlink_to(Path(sys.executable).with_name("refit-agent"))
    shutil.copytree(UNITS, home / ".config/systemd/user")
    return home


def in_a_manager(script: str, home: Path, bundle: Path) -> list[str]:
    """The lines that ``script`` prints while the user's manager runs and its socket is there; skips where none can."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None or not MANAGER.exists():
        pytest.skip("needs root, unshare and systemd")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT", "XDG_"))}
    env |= {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": "/run/user/0",
        "MANAGER": str(MANAGER),
        "METRICS": METRICS,
        "MAKE": MAKE,
        "FORBIDDEN": FORBIDDEN,
        "UNIT_FILTERS": unit_filters.__file__,
        "LC_ALL": "C.UTF-8",
    }
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*apart, "sh", "-c", "mount -t tmpfs tmpfs /run"], capture_output=True).returncode:
        pytest.skip("namespaces may not be made here")
    program = home / ".local/bin/refit-agent"
    done = subprocess.run(
        [*apart, "sh", "-c", START + script + END, "sh", bundle, program, sys.executable],
        capture_output=True,
        text=True,
        env=env,
    )
    log = (home / "manager.log").read_text()
    if "Failed to" in log and "control group" in log.lower():
        pytest.skip("systemd may not make control groups here")
    assert done.returncode == 0, done.stdout + done.stderr + log
    *lines, result, gone = done.stdout.splitlines()
    assert (result, gone) == ("success", "socket gone"), done.stderr + log
    return lines


def test_a_socket_of_systemd_starts_a_confined_service_that_makes_engines(home: Path, bundle: Path) -> None:
    """Enabled, activated by the first client, under all filters of the unit, restarted after a kill, stopped clean."""
    assert in_a_manager(LIFE, home, bundle) == [
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
    ]


def test_the_unit_s_filters_can_be_had_where_no_systemd_is(home: Path, bundle: Path) -> None:
    """What tests/gpu/test_unit_filters.py puts on a service that opens a GPU are those of this unit, and they bite."""
    lines = in_a_manager(FILTERS, home, bundle)
    if lines == ["not to be had"]:
        pytest.skip("a process's filters may not be asked for here")
    count, same, before, under, made = lines
    assert int(count.split()[1]) >= 6 and same == "the same"
    assert before == "done, done, No such file or directory"
    assert under == "Operation not permitted, Address family not supported by protocol, Operation not permitted"
    assert made == "False golden"
    if keep := os.environ.get("REFIT_AGENT_KEEP_UNIT_FILTERS"):
        shutil.copy(home / "filters.json", keep)
