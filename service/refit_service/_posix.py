"""What the service does its own way on Linux and macOS: its folder, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys

assert sys.platform != "win32"  # a type checker for Windows reads no further

from refit_agent.client.trust import OTHERS_MAY_WRITE, fault_of  # noqa: E402
from refit_agent.errors import SocketUnusable, StateInsecure  # noqa: E402

replace = os.replace


def own_folder(path: str) -> None:
    """Make the folder of the place ``path``, for this user alone.

    Raises:
        SocketUnusable: it cannot be made, or no client would trust it, since it is another user's or others may
            write to it. Not even with the sticky bit: they could come before us and make the files there.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.stat(folder)
    except OSError as error:
        raise SocketUnusable(path=path, detail=f"its folder cannot be made: {error.strerror}") from error
    fault = fault_of("its folder", status, "write to", OTHERS_MAY_WRITE)
    if fault:
        raise SocketUnusable(path=path, detail=fault)


def require_own_state(folder: str) -> None:
    """Make the state folder if it is missing; raise StateInsecure if another user could have put something into it.

    Registered bundles are read from there, and the log is appended to whatever has its name: a link to a file of this
    user's, for instance.
    """
    with contextlib.suppress(OSError):  # made now: what comes to be there later would not be judged
        os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        link, status = os.lstat(folder), os.stat(folder)
    except OSError:
        return  # nothing is read there, nor written
    fault = fault_of("it", status, "write to", OTHERS_MAY_WRITE)
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
        fault = f"it is a link that user {link.st_uid} made"
    if fault:
        raise StateInsecure(path=folder, detail=fault)


def keep_port(sock: socket.socket) -> None:
    """Nothing to do: no other socket gets a port that one listens at, unless that one allows it."""
    del sock


def is_gone(pid: int) -> bool:
    """Whether no process of this user has that number, as far as can be seen from here."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return True
    return False


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set ``stop`` when SIGTERM or SIGINT comes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
