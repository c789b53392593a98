"""The Unix socket: one service for each user, a folder that is the user's alone, and no leftover in the way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import sys

assert sys.platform != "win32"  # a type checker for Windows reads no further

from refit_agent.errors import ServiceRunning, SocketUnusable  # noqa: E402
from refit_service._posix import own_folder  # noqa: E402

#: sun_path holds 108 bytes with its NUL on Linux, 104 on macOS.
_LONGEST_PATH = 103 if os.uname().sysname == "Darwin" else 107


class UnixListening:
    """A bound socket and the lock that makes it the only one; see `listening.Listening`."""

    gate = None

    def __init__(self, sock: socket.socket, path: str, lock_fd: int, *, inherited: bool) -> None:
        self.sock = sock
        self.path = path
        self.uid = os.geteuid()
        self._lock_fd = lock_fd
        self._inode = None if inherited else _inode(path)

    def close(self) -> None:
        """Remove the socket, unless it is the service manager's or somebody replaced it, and free the lock."""
        if self._inode is not None and _inode(self.path) == self._inode:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.sock.close()
        os.close(self._lock_fd)


def listen_unix(path: str, inherited: socket.socket | None, backlog: int) -> UnixListening:
    """Listen at ``path``, or on the socket that was handed over.

    The lock beside the socket is held until the process ends, however it ends; who holds it may remove
    what a killed predecessor left. The lock file itself stays, since removing it would let two in.

    Raises:
        ServiceRunning: somebody else listens there.
        SocketUnusable: the folder or the path will not do.
    """
    if inherited is not None:
        name = inherited.getsockname()
        path = name if isinstance(name, str) and name.startswith("/") else path
    elif len(os.fsencode(path)) > _LONGEST_PATH:
        detail = f"the path has {len(os.fsencode(path))} bytes and a socket's may have {_LONGEST_PATH}"
        raise SocketUnusable(path=path, detail=detail)
    own_folder(path)
    lock_fd = _lock(path)
    if inherited is not None:
        return UnixListening(inherited, path, lock_fd, inherited=True)
    try:
        return UnixListening(_bind(path, backlog), path, lock_fd, inherited=False)
    except BaseException:
        os.close(lock_fd)
        raise


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


def _bind(path: str, backlog: int) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(backlog)
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
