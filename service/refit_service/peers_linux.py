"""Peers on Linux: SO_PEERCRED, and pidfd, which names a process without the danger of a reused number."""

from __future__ import annotations

import os
import socket
import struct

_UCRED = struct.Struct("iII")  # pid, uid, gid


def peer_uid(sock: socket.socket) -> int | None:
    """The user who opened the connection, as the kernel noted it then; None if it will not tell."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return None
    return int(_UCRED.unpack(data)[1])


def open_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the kernel has no such thing.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError):
        raise ProcessLookupError(pid) from None
    except OSError:
        # Older than Linux 5.3, a number that is a thread's, or no descriptors left: the time to live remains.
        return None
