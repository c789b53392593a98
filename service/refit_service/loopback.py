"""A port of 127.0.0.1 in place of a Unix socket, and the file that tells this user's programs of it.

The file is written whole and put in its place by a rename, with new secrets at every start. The lock beside it is
filelock's, which the cache uses too: one way for all systems, so that what is tested on one holds on the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from refit_agent.client.http import Answer, Head, Malformed, Whom, request_bytes
from refit_agent.client.loopback import BUSY, HOST, MOST_BYTES, PROOF_HEADER, Place, connect, read_place
from refit_agent.errors import ServiceRunning, ServiceUnreachable, SocketUnusable
from refit_agent.state_file import drop_leftovers
from refit_service.gate import Gate

if sys.platform == "win32":
    from refit_service import _windows as _platform
else:
    from refit_service import _posix as _platform

if TYPE_CHECKING:
    from filelock import BaseFileLock

_SECRET_BYTES = 32
_PROBE_S = 2.0


class _AnyPlace(msgspec.Struct):
    """What the file of every version holds."""

    port: int
    token: str


class PortListening:
    """A listening port, the file that names it, and the lock that makes it the only one; see
    `listening.Listening`."""

    uid = None

    def __init__(self, sock: socket.socket, path: str, place: Place, lock: BaseFileLock) -> None:
        self.sock = sock
        self.path = path
        self.gate = Gate(place)
        self._written = msgspec.json.encode(place)
        self._lock = lock

    def close(self) -> None:
        """Remove the file, unless somebody replaced it, and free the lock."""
        with contextlib.suppress(OSError):
            if _read(self.path) == self._written:
                os.unlink(self.path)
        self.sock.close()
        self._lock.release()


def listen_at_port(path: str, backlog: int) -> PortListening:
    """Listen at a port of the system's choice, and say so in the file ``path``.

    The lock is held until the process ends, however it ends; who holds it may replace what a killed
    predecessor left.

    Raises:
        ServiceRunning: somebody else listens there.
        SocketUnusable: the folder will not do, or there is no loopback interface.
    """
    _platform.own_folder(path)
    lock = _lock(path)
    try:
        _check_replaceable(path)
        folder, name = os.path.split(path)
        drop_leftovers(folder, f"{name}.", ".tmp")
        sock = _bind(path, backlog)
        try:
            place = Place(port=sock.getsockname()[1], token=_secret(), proof=_secret(), pid=os.getpid())
            _write(path, msgspec.json.encode(place))
        except BaseException:
            sock.close()
            raise
    except BaseException:
        lock.release()
        raise
    return PortListening(sock, path, place, lock)


def _secret() -> str:
    return os.urandom(_SECRET_BYTES).hex()


def _lock(path: str) -> BaseFileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(path + ".lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ServiceRunning(path=path) from error
    except (OSError, NotImplementedError) as error:
        detail = f"its lock cannot be taken: {getattr(error, 'strerror', None) or error}"
        raise SocketUnusable(path=path, detail=detail) from error
    return lock


def _check_replaceable(path: str) -> None:
    try:
        data = _read(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketUnusable(path=path, detail=f"what is in its place cannot be read: {error.strerror}") from error
    try:
        msgspec.json.decode(data, type=_AnyPlace)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SocketUnusable(path=path, detail="something that is no file of the service is in its place") from error
    if _is_used(path):
        # It listens without our lock: somebody removed the lock's file.
        raise ServiceRunning(path=path)


def _read(path: str) -> bytes:
    """The beginning of a file; b"" of anything else."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return b""
    with open(path, "rb") as file:
        return file.read(MOST_BYTES + 1)


def _is_used(path: str) -> bool:
    """Whether the service that wrote the file may still be there, and not a stranger at its port.

    One that is busy or full is there: who says nothing, or that there is no place for another connection, is taken for
    the service as long as the process that wrote the file lives.
    """
    try:
        place = read_place(path)
    except ServiceUnreachable:
        return False  # no client could use it either
    try:
        whom, sock = connect(path, _PROBE_S)
    except ServiceUnreachable as error:
        return not isinstance(error.__cause__, ConnectionRefusedError) and not _platform.is_gone(place.pid)
    try:
        with contextlib.closing(sock):
            head = _head(sock, whom)
    except Malformed:
        return False
    if head is not None and head.headers.get(PROOF_HEADER.lower()) == place.proof:
        return True
    if head is not None and head.status != BUSY:
        return False
    return not _platform.is_gone(place.pid)


def _head(sock: socket.socket, whom: Whom) -> Head | None:
    """The head of the answer to a question; None if there is none in time. Raises Malformed."""
    until = time.monotonic() + _PROBE_S
    answer = Answer()
    try:
        sock.sendall(request_bytes("GET", "/v1/health", None, whom))
        while answer.head is None:
            sock.settimeout(max(0.001, until - time.monotonic()))
            data = sock.recv(MOST_BYTES)
            if not data:
                return None
            answer.feed(data)
    except OSError:
        return None
    return answer.head


def _bind(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        _platform.keep_port(sock)
        sock.bind((HOST, 0))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        detail = f"no port of {HOST} can be had: {error.strerror or error}"
        raise SocketUnusable(path=path, detail=detail) from error
    return sock


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _platform.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise SocketUnusable(path=path, detail=f"it cannot be written: {error.strerror}") from error
