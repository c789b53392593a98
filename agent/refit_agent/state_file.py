"""Small files of the state folder: replaced whole, so that no reader sees half of one.

Each is written under a name of its own and then renamed. What a killed process left so is deleted by whoever writes the
same file next, once it is too old to be in the making.
"""

from __future__ import annotations

import contextlib
import os
import time

#: No writer takes longer: these files have kilobytes.
_IN_THE_MAKING_S = 600.0


def replace_file(path: str, data: bytes, *, lasting: bool = False) -> None:
    """Make ``data`` the content of the file at ``path``, for the user alone; its folder is made if it is missing.

    ``lasting`` waits for the disk, where the machine may go down next. Safe from any thread and process: the last one
    to end has its way.

    Raises:
        OSError: nothing was changed, and nothing is left behind.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    drop_leftovers(folder, f"{name}.", ".tmp")
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb", opener=_for_the_user_alone) as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def drop_leftovers(folder: str, begin: str, end: str = "") -> None:
    """Delete the files in ``folder`` whose names begin and end so and that nobody is writing any more.

    Never raises OSError; safe from any thread and process.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        for item in items:
            if item.name.startswith(begin) and item.name.endswith(end):
                with contextlib.suppress(OSError):
                    if item.stat(follow_symlinks=False).st_mtime < time.time() - _IN_THE_MAKING_S:
                        os.unlink(item.path)


def _for_the_user_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
