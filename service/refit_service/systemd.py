"""The parts of systemd's protocols that a service needs: sockets handed over, and notes on its state.

Everything is a no-op outside systemd; nothing but the standard library is used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

_FIRST_FD = 3


def inherited_socket() -> socket.socket | None:
    """The listening Unix socket that systemd (or whoever speaks LISTEN_FDS) opened for us, or None.

    The variables are taken out of the environment: a worker must not believe that they are its own.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or sys.platform == "win32":
        return None
    for fd in range(_FIRST_FD, _FIRST_FD + min(int(count), 16)):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        if sock.family == socket.AF_UNIX and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return sock
        sock.detach()
    return None


def notify(state: str) -> None:
    """Tell the service manager, such as "READY=1"; one that does not listen is no error."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or sys.platform != "linux":
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.send(state.encode())


def watchdog_period_s() -> float | None:
    """How often to send "WATCHDOG=1": half of what the manager allows; None if it does not watch."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 2e6
