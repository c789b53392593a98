"""The disk below the cache: how much room it has, and what its errors are in our words."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from refit_agent.errors import CacheError, CacheUnwritable, DiskFull

if TYPE_CHECKING:
    import shutil

#: The process or the machine is out of something: no reason to call an entry damaged.
NOT_ITS_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT)


def write_error(error: OSError, path: str) -> CacheError:
    """Our error for a failed write below the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = 0
        with contextlib.suppress(CacheUnwritable):
            free = free_bytes(path)
        return DiskFull(path=path, free_bytes=free, needed_bytes="more")
    return CacheUnwritable(path=error.filename or path, detail=error.strerror or str(error))


def existing_parent(path: str) -> str:
    """``path`` itself or its nearest parent that exists."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def free_bytes(path: str) -> int:
    """Bytes that this user can still write on the disk that holds ``path`` or its nearest parent.

    Raises CacheUnwritable, for a disk that does not say.
    """
    return _disk(path).free


def disk_bytes(path: str) -> int:
    """Bytes of the whole disk that holds ``path`` or its nearest parent. Raises as `free_bytes`."""
    return _disk(path).total


def _disk(path: str) -> shutil._ntuple_diskusage:
    import shutil  # not needed for a hit, and slow to import

    try:
        return shutil.disk_usage(existing_parent(path))
    except OSError as error:
        raise CacheUnwritable(path=path, detail=error.strerror or str(error)) from error
