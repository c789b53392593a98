"""SHA-256 of many files at once, on as many threads as there are processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from refit_agent.digest import hash_file

#: More threads than this only make a disk seek.
MOST_THREADS = 8


class FileHash(NamedTuple):
    """SHA-256 (hex) and size of one file."""

    digest: str
    size: int


class _Cancelled(Exception):  # noqa: N818 - never seen by a caller
    """Another thread has failed, so the rest of this file is not read."""


def hash_files(
    paths: Sequence[str], on_bytes: Callable[[int], None] | None = None, *, threads: int | None = None
) -> list[FileHash | OSError]:
    """The hash of each file, or why it cannot be read, in the order of ``paths``.

    ``on_bytes`` gets the number of bytes read since its last call. It is called from several threads, by one at
    a time; what it raises ends the work at once and comes out of this call. ``threads`` is by default the number
    of processors, and never more than `MOST_THREADS`. The largest file is begun first: begun last, it would be
    read by one thread while the others have nothing left to do.
    """
    lock = threading.Lock()
    stop = threading.Event()
    failed: list[BaseException] = []

    def report(count: int) -> None:
        with lock:
            if stop.is_set():
                raise _Cancelled
            try:
                if on_bytes is not None:
                    on_bytes(count)
            except BaseException as error:
                failed.append(error)
                stop.set()
                raise

    def one(path: str) -> FileHash | OSError:
        if stop.is_set():
            raise _Cancelled
        try:
            return FileHash(*hash_file(path, report))
        except OSError as error:
            if error in failed:
                raise
            return error

    count = min(threads or os.cpu_count() or 1, MOST_THREADS, max(len(paths), 1))
    order = sorted(range(len(paths)), key=lambda index: -_size(paths[index]))
    with ThreadPoolExecutor(count, "hash") as pool:
        futures = {index: pool.submit(one, paths[index]) for index in order}
        try:
            return [futures[index].result() for index in range(len(paths))]
        except BaseException as error:
            stop.set()
            if failed and isinstance(error, _Cancelled):
                raise failed[0] from None
            raise


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
