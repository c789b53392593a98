"""Whether what listens at a socket's path is ours: another user's program must not hand us engines."""

from __future__ import annotations

import os
import socket
import stat
import struct

from refit_agent.errors import ServiceUnreachable

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_path(path: str) -> None:
    """Raise ServiceUnreachable unless ``path`` is a socket of ours in a folder of ours."""
    if not hasattr(socket, "AF_UNIX"):
        raise ServiceUnreachable(path=path, detail="this system's Python has no Unix sockets")
    try:
        status = os.lstat(path)
        folder = os.stat(os.path.dirname(path))
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise ServiceUnreachable(path=path, detail=f"nothing listens there ({detail})") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ServiceUnreachable(path=path, detail="it is not a socket")
    for what, one in (("it", status), ("its folder", folder)):
        if one.st_uid != os.geteuid():
            raise ServiceUnreachable(path=path, detail=f"{what} belongs to user {one.st_uid}")
        if one.st_mode & _OTHERS_MAY_WRITE:
            mode = stat.S_IMODE(one.st_mode)
            raise ServiceUnreachable(path=path, detail=f"other users may write to {what} (mode {mode:o})")


def check_peer(path: str, connection: socket.socket) -> None:
    """Raise ServiceUnreachable unless the program at the other end runs as our user, where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return
    try:
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    except OSError as error:
        raise ServiceUnreachable(path=path, detail=str(error.strerror)) from error
    if uid != os.geteuid():
        raise ServiceUnreachable(path=path, detail=f"user {uid} listens there")
