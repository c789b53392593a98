"""The socket: one service for each user, a folder that is the user's alone, and no leftover in the way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat

from refit_agent.errors import ServiceRunning, SocketUnusable
from refit_service.systemd import inherited_socket

#: sun_path holds 108 bytes with its NUL on Linux, 104 on macOS.
_LONGEST_PATH = 103 if os.uname().sysname == "Darwin" else 107
#: More than connections are taken: a crowd that comes at once waits here and is not turned away.
BACKLOG = 512


class Listening:
    """A bound socket and the lock that makes it the only one. `close` gives both back."""

    def __init__(self, sock: socket.socket, path: str, lock_fd: int, *, inherited: bool) -> None:
        self.sock = sock
        self.path = path
        self._lock_fd = lock_fd
        self._inode = None if inherited else _inode(path)

    def close(self) -> None:
        """Remove the socket, unless it is the service manager's or somebody replaced it, and free the lock."""
        if self._inode is not None and _inode(self.path) == self._inode:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.sock.close()
        os.close(self._lock_fd)


def listen(path: str) -> Listening:
    """Listen at ``path``, or on the socket that systemd hands over.

    The lock beside the socket is held until the process ends, however it ends; who holds it may remove
    what a killed predecessor left. The lock file itself stays, since removing it would let two in.

    Raises:
        ServiceRunning: somebody else listens there.
        SocketUnusable: the folder or the path will not do.
    """
    try:
        sock = inherited_socket()
    except OSError as error:
        detail = f"the socket that was handed over (LISTEN_FDS) is none: {error.strerror}"
        raise SocketUnusable(path=path, detail=detail) from error
    if sock is not None:
        name = sock.getsockname()
        path = name if isinstance(name, str) and name.startswith("/") else path
    elif not path:
        raise SocketUnusable(path="REFIT_AGENT_SOCKET", detail="it is set to nothing, which means no service")
    elif len(os.fsencode(path)) > _LONGEST_PATH:
        detail = f"the path has {len(os.fsencode(path))} bytes and a socket's may have {_LONGEST_PATH}"
        raise SocketUnusable(path=path, detail=detail)
    _make_folder(os.path.dirname(path), path)
    lock_fd = _lock(path)
    if sock is not None:
        return Listening(sock, path, lock_fd, inherited=True)
    try:
        return Listening(_bind(path), path, lock_fd, inherited=False)
    except BaseException:
        os.close(lock_fd)
        raise


def _make_folder(folder: str, path: str) -> None:
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


def _lock(path: str) -> int:
    name = path + ".lock"
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SocketUnusable(path=path, detail=f"its lock {name} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise ServiceRunning(path=path) from error
        raise SocketUnusable(path=path, detail=f"its lock cannot be taken: {error.strerror}") from error
    return fd


def _bind(path: str) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SocketUnusable(path=path, detail=error.strerror or str(error)) from error
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise SocketUnusable(path=path, detail="something that is no socket is in its place")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError:
            raise ServiceRunning(path=path) from None
        else:
            # It listens without our lock: somebody removed the lock's file.
            raise ServiceRunning(path=path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
