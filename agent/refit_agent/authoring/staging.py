"""Folders in which something is in the making, in the folder that it will go to; and what killed commands left of them.

A command holds a lock on the file ``alive`` in its own folder for as long as it lives. The kernel frees the lock when
the process ends, however it ends, and so whoever gets it knows that the folder is abandoned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

from filelock import FileLock, Timeout

_ALIVE_NAME = "alive"


class Staging:
    """A new folder in ``root`` whose name begins with ``prefix``; ``path`` is where.

    To be made while `remove_abandoned` of the same prefix cannot run, as under `change.bundle_lock`: until ``alive`` is
    locked the folder looks abandoned. Raises OSError.
    """

    def __init__(self, root: str, prefix: str) -> None:
        self.path = tempfile.mkdtemp(prefix=prefix, dir=root)
        self._alive = FileLock(os.path.join(self.path, _ALIVE_NAME))
        with contextlib.suppress(NotImplementedError):  # a file system without locks, where nobody removes anything
            self._alive.acquire(timeout=0)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._alive.release()
        shutil.rmtree(self.path, ignore_errors=True)


def remove_abandoned(root: str, prefix: str) -> None:
    """Remove the folders of that prefix in ``root`` whose commands live no more. Raises OSError: ``root`` cannot be read."""
    for entry in os.scandir(root):
        if not entry.name.startswith(prefix) or not entry.is_dir(follow_symlinks=False):
            continue
        alive = FileLock(os.path.join(entry.path, _ALIVE_NAME))
        # A Timeout means that its command lives; any other error, that it is just removing the folder itself.
        with contextlib.suppress(Timeout, OSError):
            alive.acquire(timeout=0)
            # Windows removes no file that is open. Whoever gets the lock now has come to remove the folder as well.
            alive.release()
            shutil.rmtree(entry.path, ignore_errors=True)
