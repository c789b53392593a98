"""What the service does its own way on Windows: its folder, its port, and the signals that end it.

A folder made with mode 0o700 gets an access list there that leaves it to the user, the system and the
administrators, and that what is made in it inherits (documented for Python from 3.10.15, 3.11.10, 3.12.4 and 3.13
on). Older Pythons give it the list of the folder above, which within the user's profile says the same.

Not run on Windows yet; the tests run it on Linux, where it must do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from types import FrameType

from refit_agent.client._windows import in_profile
from refit_agent.errors import SocketUnusable

#: All that Windows has of them. Another program can only send Ctrl+Break; one that ends us (TerminateProcess) or
#: the Task Manager leaves no time for anything, and the file stays for the next service to take over.
_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")
_TRIES = 50
_PAUSE_S = 0.02


def own_folder(path: str) -> None:
    """Make the folder of the place ``path``, for this user alone.

    Raises:
        SocketUnusable: it cannot be made, or others may be able to read and replace what is in it.
    """
    folder = os.path.dirname(path)
    if not in_profile(folder):
        raise SocketUnusable(path=path, detail="it is not in the user's profile, so others may be able to read it")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise SocketUnusable(path=path, detail=f"its folder cannot be made: {error.strerror}") from error


def require_own_state(folder: str) -> None:
    """Nothing: the state folder lies in the user's profile unless somebody says otherwise; its access list is not
    looked at."""
    del folder


def replace(source: str, target: str) -> None:
    """Rename a file, onto another one too, which nobody can do there while a client reads that one."""
    for _ in range(_TRIES):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(_PAUSE_S)
    return os.replace(source, target)


def keep_port(sock: socket.socket) -> None:
    """Before it is bound: let no other program bind the same port, which SO_REUSEADDR would allow it there."""
    option = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    if option is not None:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)


def is_gone(pid: int) -> bool:
    """False: there is no signal there that does nothing, so nobody can say by the number alone."""
    del pid
    return False


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set ``stop`` when Ctrl+C, Ctrl+Break or the end of the console comes: no event loop has signal handlers there."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(stop.set)

    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, on_signal)
