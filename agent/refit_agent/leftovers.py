"""Temporary files that a killed process left beside the small files of the state folder.

Each is written under a name of its own and then renamed, so that no reader sees half of it. Whoever writes next
deletes what is too old to be in the making.
"""

from __future__ import annotations

import contextlib
import os
import time

#: No writer takes longer: these files have kilobytes.
_IN_THE_MAKING_S = 600.0


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
