"""Leases by advisory locks (Linux, macOS): the kernel drops them when their process ends, however it ends.

Nothing is written for a lease and nothing is left behind by a killed process; a process ID that is
used again cannot be mistaken for the old holder, and holders in other containers count too.
"""

from __future__ import annotations

import errno
import fcntl
import os

#: Not blocking: whoever opens a pipe that has taken the name of a file would wait for its writer.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: Network file systems give an exclusive lock only on a file that is open for writing.
CLAIM_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def lock_shared(fd: int) -> bool:
    """Take a lease on an open file; False while an eviction holds it."""
    return _lock(fd, fcntl.LOCK_SH)


def lock_exclusive(fd: int) -> bool:
    """Claim an open file for its removal; False while somebody holds a lease."""
    return _lock(fd, fcntl.LOCK_EX)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            # A file system without locks: readers go on, removals do not happen.
            return kind == fcntl.LOCK_SH
        raise
    return True


def owner_fault(status: os.stat_result) -> str:
    """Why a folder with this status cannot be trusted, as the end of a sentence; "" if it can."""
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}"
    if status.st_mode & 0o022:
        return f"other users may write to it (mode {status.st_mode & 0o777:o})"
    return ""


def link_fault(status: os.stat_result) -> str:
    """Why a link with this status cannot be followed, as `owner_fault`."""
    if status.st_uid in (0, os.geteuid()):
        return ""
    return f"it is a link that user {status.st_uid} made"
