"""Peers where nothing better is known: nobody is let in by the socket's own word.

Not run on macOS or Windows yet.
"""

from __future__ import annotations

import os
import socket
import struct
import sys


def peer_uid(sock: socket.socket) -> int | None:
    """The user at the other end (macOS, by LOCAL_PEERCRED); None elsewhere."""
    if sys.platform != "darwin":
        return None
    try:
        data = sock.getsockopt(0, 1, 76)
        return int(struct.unpack_from("II", data)[1])
    except (OSError, struct.error):
        return None


def tcp_peer_uid(ours: tuple[str, int], theirs: tuple[str, int]) -> int | None:
    """None: nobody says whose a TCP connection is. The token alone protects the page."""
    del ours, theirs
    return None


def open_process(pid: int) -> int | None:
    """None: leases end with their time to live alone. Raises ProcessLookupError for a process that is gone."""
    if os.name == "posix":
        os.kill(pid, 0)
    return None
