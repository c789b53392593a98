"""Whether the place of a service is ours: another user's program must not hand us engines."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from typing import NoReturn

from refit_agent.errors import ServiceUnreachable

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

if sys.platform == "win32":

    def check_path(path: str) -> NoReturn:
        """Raise ServiceUnreachable: there is no such socket on Windows."""
        raise ServiceUnreachable(
            path=path, detail="Python has no Unix sockets here; a place that ends in .json will do"
        )

else:

    def check_path(path: str) -> None:
        """Raise ServiceUnreachable unless ``path`` is a socket of ours in a folder of ours."""
        try:
            status = os.lstat(path)
            folder = os.stat(os.path.dirname(path))
        except (OSError, ValueError) as error:
            raise nothing_there(path, error) from error
        if not stat.S_ISSOCK(status.st_mode):
            raise ServiceUnreachable(path=path, detail="it is not a socket")
        check_ours(path, "it", status, "write to", OTHERS_MAY_WRITE)
        check_ours(path, "its folder", folder, "write to", OTHERS_MAY_WRITE)

    def check_ours(path: str, what: str, status: os.stat_result, act: str, forbidden: int) -> None:
        """Raise ServiceUnreachable with `fault_of`, if there is one."""
        fault = fault_of(what, status, act, forbidden)
        if fault:
            raise ServiceUnreachable(path=path, detail=fault)

    def fault_of(what: str, status: os.stat_result, act: str, forbidden: int) -> str:
        """Why ``what`` is not to be trusted: it is another user's, or bits of ``forbidden``, which allow other users
        to ``act``, are in its mode; "" if it is. The service and its clients judge by the same rule, or it would
        listen where nobody asks it."""
        if status.st_uid != os.geteuid():
            return f"{what} belongs to user {status.st_uid}"
        if status.st_mode & forbidden:
            return f"other users may {act} {what} (mode {stat.S_IMODE(status.st_mode):o})"
        return ""


def require_place(path: str) -> None:
    """Raise ServiceUnreachable for "", which is no place: `socket_path` gives it where no service is to be used."""
    if not path:
        hint = "Unset REFIT_AGENT_SOCKET to use the service at its usual place."
        raise ServiceUnreachable(path=path, detail="REFIT_AGENT_SOCKET is empty", hint=hint)


def check_peer(path: str, connection: socket.socket) -> None:
    """Raise ServiceUnreachable unless the program at the other end runs as our user, where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or sys.platform == "win32":
        return
    try:
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    except OSError as error:
        raise ServiceUnreachable(path=path, detail=str(error.strerror)) from error
    if uid != os.geteuid():
        raise ServiceUnreachable(path=path, detail=f"user {uid} listens there")


def nothing_there(path: str, error: OSError | ValueError) -> ServiceUnreachable:
    """The error for a place that cannot be looked at."""
    detail = getattr(error, "strerror", None) or str(error)
    return ServiceUnreachable(path=path, detail=f"nothing listens there ({detail})")
