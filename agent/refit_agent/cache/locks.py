"""One provisioning per engine, across threads and processes."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator

from refit_agent.cache.disk import write_error
from refit_agent.cache.store import Store
from refit_agent.errors import CacheBusy, CacheUnwritable, DiskFull

_POLL_S = 0.02


def lock_path(store: Store, key: str) -> str:
    """The lock file of a key."""
    return f"{store.root}/locks/{key}.lock"


@contextlib.contextmanager
def key_lock(store: Store, key: str, timeout_s: float, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the right to make the engine of ``key``. The kernel frees it when the process ends.

    ``on_wait`` is called several times a second while somebody else holds it; what it raises ends the
    wait and goes to the caller.

    Raises:
        CacheBusy: still held by somebody else after ``timeout_s`` seconds.
        CacheUnwritable, DiskFull: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout  # not needed for a hit

    path = lock_path(store, key)
    lock = FileLock(path, mode=0o600)
    mended = False
    ends = time.monotonic() + timeout_s
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout as error:
            if time.monotonic() >= ends:
                raise CacheBusy(seconds=round(timeout_s), path=path) from error
        except OSError as error:
            if mended or not _mend(store, path):
                raise write_error(error, path) from error
            mended = True
            continue
        if on_wait is not None:
            on_wait()
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        # An unlock that fails says nothing of what was done under the lock, and is tried again as ``lock`` goes.
        with contextlib.suppress(OSError):
            lock.release()


def _mend(store: Store, path: str) -> bool:
    """Make way where something stands in the lock's place that no process of ours can have locked; whether it did.

    A file of this user's only gets its mode back: somebody may hold it.
    """
    try:
        with _alone(os.path.dirname(path)):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                store.discard(path)
                return not os.path.lexists(path)
            if status.st_mode & 0o600 == 0o600:
                return False
            os.chmod(path, 0o600)
    except FileNotFoundError:
        return True  # somebody else made way
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """One process at a time makes way: a second one that saw the odd object would delete the first one's new lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def try_key_lock(store: Store, key: str) -> Iterator[bool]:
    """Hold the lock of ``key`` if it is free right now; the value says whether it was."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(key_lock(store, key, 0))
        except (CacheBusy, CacheUnwritable, DiskFull):
            free = False  # what cannot be locked is left as it is, and holds up nothing else
        else:
            free = True
        yield free


def remove_lock_file(store: Store, key: str) -> None:
    """Delete the lock file of a key whose lock the caller holds.

    Safe while others wait: a waiter that gets the deleted file's lock sees that it has no name any
    more and opens the new one.
    """
    with contextlib.suppress(OSError):
        os.unlink(lock_path(store, key))
