"""Stops this user's service for `refit-agent uninstall`: its systemd units first, which would start it again, then
the process itself, with SIGTERM, on which it ends its worker and its leases."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from typing import NamedTuple

from refit_agent.client.messages import JobStatus
from refit_agent.client.sync import ServiceClient
from refit_agent.errors import RefitAgentError, ServiceNotStopped, ServiceUnreachable
from refit_agent.paths import APP
from refit_agent.service_socket import VARIABLE, is_loopback, socket_path
from refit_agent.settings import HOME_VARIABLE

_UNITS = (f"{APP}.socket", f"{APP}.service")
_SYSTEMCTL_S = 30.0
#: More than a service takes that lets a nearly finished engine be finished (see its `daemon`).
_PATIENCE_S = 20.0


class Stopped(NamedTuple):
    """What was stopped; 0 and () for nothing. ``units`` are disabled; ``enabled_for_all`` are stopped and start at the
    next login, since the administrator has enabled them for everybody; ``faults`` are units that systemd did not
    disable, each with the reason."""

    pid: int
    units: tuple[str, ...] = ()
    enabled_for_all: tuple[str, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()


def stop_service() -> Stopped:
    """Stop the service if one runs; more than once does no harm. Waits until its process is gone.

    Raises:
        ServiceNotStopped: it runs on.
    """
    stopped = _disable_units()
    path = socket_path()
    if not path or not os.path.lexists(path):
        return stopped
    pid = _pid_of_service(path)
    if pid:
        _terminate(path, pid)
    _require_ended(path)
    return stopped._replace(pid=pid)


def jobs_of_service() -> tuple[JobStatus, ...]:
    """The engines that the service makes, or is to make; none where no service answers."""
    path = socket_path()
    if not path or not os.path.lexists(path):
        return ()
    # What else is wrong with it, whoever stops it says.
    with contextlib.suppress(RefitAgentError), ServiceClient(path) as client:
        return client.status().jobs
    return ()


def is_of_service(place: str) -> bool:
    """Whether a service made what is at ``place``, or nothing is there."""
    try:
        mode = os.lstat(place).st_mode
    except OSError:
        return True
    if not is_loopback(place):
        return stat.S_ISSOCK(mode)
    from refit_agent.client.loopback import read_place

    try:
        read_place(place)
    except ServiceUnreachable:
        return False
    return True


def is_lock_of_service(path: str) -> bool:
    """Whether the file is one that was made to be locked: they are empty. Of another it is not known whose it is, and
    locking would empty it."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _require_ended(path: str) -> None:
    """Raise ServiceNotStopped if a service, one that does not answer, holds its lock."""
    lock = path + ".lock"
    if not is_lock_of_service(lock):
        return
    from filelock import FileLock, Timeout

    try:
        # Windows frees the locks of a process that was ended a moment later.
        with FileLock(lock, timeout=5 if sys.platform == "win32" else 0, mode=0o600):
            return
    except Timeout as error:
        raise ServiceNotStopped(path=path, pid="?", detail="it runs and does not answer") from error
    except OSError as error:
        detail = f"whether it runs cannot be told: {lock}: {error.strerror or error}"
        raise ServiceNotStopped(path=path, pid="?", detail=detail) from error


def _disable_units() -> Stopped:
    """Stop and disable the user's units, where there are any."""
    # A service with a place or a home of its own is not the one that the units start.
    elsewhere = os.environ.get(VARIABLE) is not None or os.environ.get(HOME_VARIABLE)
    systemctl = None if elsewhere or sys.platform != "linux" else shutil.which("systemctl")
    if systemctl is None:
        return Stopped(0)
    known = _run(systemctl, "list-unit-files", "--no-legend", *_UNITS)
    if known is None or known.returncode:
        return Stopped(0)  # there is no manager for this user, as in a container
    names = [unit for unit in _UNITS if any(line.split()[:1] == [unit] for line in known.stdout.splitlines())]
    if not names:
        return Stopped(0)
    done = _run(systemctl, "disable", "--now", *names)
    if done is None or done.returncode:
        said = "it does not answer" if done is None else " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        return Stopped(0, faults=tuple((unit, f"systemctl could not disable it: {said}") for unit in names))
    # This user's `disable` leaves in force what the administrator enabled for all.
    enabled = tuple(unit for unit in names if _is_enabled(systemctl, unit))
    return Stopped(0, tuple(unit for unit in names if unit not in enabled), enabled)


def _is_enabled(systemctl: str, unit: str) -> bool:
    done = _run(systemctl, "is-enabled", unit)
    return done is not None and done.stdout.strip() == "enabled"


def _run(systemctl: str, *words: str) -> subprocess.CompletedProcess[str] | None:
    """How it ended, None if it did not answer."""
    try:
        return subprocess.run(
            [systemctl, "--user", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _pid_of_service(path: str) -> int:
    """The number of the service's process; 0 if nothing listens there that is this user's."""
    try:
        with ServiceClient(path) as client:
            return client.status().pid
    except ServiceUnreachable:
        return 0
    except RefitAgentError as error:
        raise ServiceNotStopped(path=path, pid="?", detail=str(error).rstrip(".")) from error


def _terminate(path: str, pid: int) -> None:
    with contextlib.ExitStack() as stack:
        handle = _open_process(stack, pid)
        # Asked once more, now that the handle holds the process: a number may have become another one's.
        if _pid_of_service(path) != pid:
            raise ServiceNotStopped(path=path, pid=pid, detail="another one has taken its place")
        fault = _stranger(pid)
        if fault:
            raise ServiceNotStopped(path=path, pid=pid, detail=fault)
        try:
            if handle is not None and sys.platform == "linux":
                signal.pidfd_send_signal(handle, signal.SIGTERM)
            else:
                os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except OSError as error:
            raise ServiceNotStopped(path=path, pid=pid, detail=error.strerror or str(error)) from error
        ends = time.monotonic() + _PATIENCE_S
        while not _is_gone(pid, handle):
            if time.monotonic() >= ends:
                raise ServiceNotStopped(path=path, pid=pid, detail=f"it still runs after {_PATIENCE_S:.0f} s")
            time.sleep(0.05)


def _open_process(stack: contextlib.ExitStack, pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # an old kernel, or the number means nothing here: `_stranger` says so
        return None
    stack.callback(os.close, handle)
    return handle


def _stranger(pid: int) -> str:
    """Why the process with that number, which is what the service says it has, is not to be ended; "" if it is ours.
    From another container the number is another process's, or nobody's. Only Linux tells."""
    if sys.platform != "linux":
        return ""
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return "there is no such process here; it may be in another container"
    if owner != os.geteuid() or b"serve" not in words:
        return "the process of that number is not a service of this user; it may be in another container"
    return ""


def _is_gone(pid: int, handle: int | None) -> bool:
    if handle is not None:
        import select

        return bool(select.select([handle], [], [], 0)[0])
    if sys.platform == "win32":
        return True  # SIGTERM has ended it at once, and signal 0 would be Ctrl+C there
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    return False
