"""What the service does its own way on Linux and macOS: its folder, and the signals that end it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys

from refit_agent.errors import SocketUnusable

assert sys.platform != "win32"  # a type checker for Windows reads no further

replace = os.replace


def own_folder(path: str) -> None:
    """Make the folder of the place ``path``, for this user alone.

    Raises:
        SocketUnusable: it cannot be made, or other users may replace what is in it.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.stat(folder)
    except OSError as error:
        raise SocketUnusable(path=path, detail=f"its folder cannot be made: {error.strerror}") from error
    if status.st_uid not in (os.geteuid(), 0):
        raise SocketUnusable(path=path, detail=f"its folder belongs to user {status.st_uid}")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        mode = f"{status.st_mode & 0o777:o}"
        raise SocketUnusable(path=path, detail=f"other users may replace it there (mode {mode} of its folder)")


def keep_port(sock: socket.socket) -> None:
    """Nothing to do: no other socket gets a port that one listens at, unless that one allows it."""
    del sock


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set ``stop`` when SIGTERM or SIGINT comes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
