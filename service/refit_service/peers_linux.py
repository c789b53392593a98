"""Peers on Linux: SO_PEERCRED, the kernel's table of TCP sockets, and pidfd, which names a process without the
danger of a reused number."""

from __future__ import annotations

import os
import socket
import struct
import sys

_UCRED = struct.Struct("iII")  # pid, uid, gid
_TCP_TABLE = "/proc/net/tcp"
_TCP_UID_FIELD = 7
_TCP_STATE_FIELD = 3
_CONNECTED = b"01"
#: The table is read in pieces, and a row may move from one to another meanwhile.
_TCP_TRIES = 3


def peer_uid(sock: socket.socket) -> int | None:
    """The user who opened the connection, as the kernel noted it then; None if it will not tell."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return None
    return int(_UCRED.unpack(data)[1])


def tcp_peer_uid(ours: tuple[str, int], theirs: tuple[str, int]) -> int | None:
    """The user whose socket ``theirs`` is connected to our end ``ours`` of a connection within this machine, over
    IPv4; None if the system has no table that would tell.

    Reads the table of all TCP sockets, those of other users and those that were closed a minute ago too. On one
    machine that took a millisecond for two thousand of them and seven for eighteen thousand: for a thread.

    Raises:
        ConnectionError: no such socket is connected any more, or it is one for IPv6, which no browser uses to get
            to an IPv4 address. A socket that was closed belongs to nobody, in whose place the kernel names root.
        OSError: the table cannot be read now, as when no descriptor is left. It tells nothing of who connected.
    """
    for _ in range(_TCP_TRIES):
        try:
            with open(_TCP_TABLE, "rb") as file:
                table = file.read()
        except FileNotFoundError:
            return None
        row = _tcp_row(table, theirs, ours)
        if row is not None and row[_TCP_STATE_FIELD] == _CONNECTED:
            return int(row[_TCP_UID_FIELD])
        our_row = _tcp_row(table, ours, theirs)
        if our_row is None or our_row[_TCP_STATE_FIELD] != _CONNECTED:
            break  # while our end is connected so is theirs, and its row has only moved
    raise ConnectionError("whoever connected is gone")


def _tcp_row(table: bytes, here: tuple[str, int], there: tuple[str, int]) -> list[bytes] | None:
    at = table.find(f" {_tcp_name(here)} {_tcp_name(there)} ".encode())
    return None if at < 0 else table[table.rfind(b"\n", 0, at) + 1 :].partition(b"\n")[0].split()


def _tcp_name(address: tuple[str, int]) -> str:
    # The address as the machine's own byte order makes a number of it, the port as a number.
    return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"


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
