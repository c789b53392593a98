"""Folders that are made for an output, and go again if nothing comes of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def new_folders(folder: str) -> Iterator[None]:
    """``folder`` and those above it, made as far as they are missing; when the block ends, those of them that are empty
    are removed.

    Raises:
        OSError: one cannot be made; those that were are removed.
    """
    made: list[str] = []
    try:
        for path in missing_folders(folder):
            with contextlib.suppress(FileExistsError):  # another command makes it too, and it is not ours to remove
                os.mkdir(path)
                made.append(path)
        yield
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # not empty: something came of it
                os.rmdir(path)


def missing_folders(folder: str) -> list[str]:
    """The folders on the way to ``folder`` that are not there, the outermost first; may name what is a file."""
    missing: list[str] = []
    at = os.path.abspath(folder)
    while not os.path.isdir(at) and os.path.dirname(at) != at:
        missing.append(at)
        at = os.path.dirname(at)
    return missing[::-1]
