"""Write a finished engine's file: hashed while it is written, and on the disk when the call returns."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Sequence

from refit_agent.runtimes.base import WrittenFile

_PIECE_BYTES = 16 << 20
_SYNC_FILE_RANGE_WRITE = 2


def write_durably(
    path: str, parts: Sequence[tuple[int, memoryview]], on_done: Callable[[int], None] = lambda _: None
) -> WrittenFile:
    """Write ``parts`` (offset, bytes; ascending, not overlapping) to the new file ``path``, zeros between them.

    Nothing is copied in this process: the bytes go from where they are to the page cache, and the
    SHA-256 is taken meanwhile by a second thread. The disk is set to work with the first piece, so
    that the fsync at the end finds little left to wait for. ``on_done`` gets the bytes written so far.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    digest = hashlib.sha256()
    stop = threading.Event()
    failed: list[Exception] = []
    hasher = threading.Thread(target=_hash, args=(digest, parts, stop, failed), daemon=True)
    hasher.start()
    position = 0
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            for offset, data in parts:
                position += _write_all(fd, memoryview(bytes(offset - position)))
                for start in range(0, len(data), _PIECE_BYTES):
                    before = position
                    position += _write_all(fd, data[start : start + _PIECE_BYTES])
                    _start_writeback(fd, before, position - before)
                    on_done(position)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        stop.set()
        raise
    finally:
        hasher.join()
    if failed:
        raise failed[0]
    return WrittenFile(os.path.basename(path), position, digest.hexdigest())


def _hash(
    digest: hashlib._Hash, parts: Sequence[tuple[int, memoryview]], stop: threading.Event, failed: list[Exception]
) -> None:
    position = 0
    try:
        for offset, data in parts:
            digest.update(bytes(offset - position))
            position = offset + len(data)
            for start in range(0, len(data), _PIECE_BYTES):
                if stop.is_set():
                    return
                digest.update(data[start : start + _PIECE_BYTES])
    except Exception as error:  # noqa: BLE001 - told by the other thread; the hash of a part would pass for that of the file
        failed.append(error)


def _write_all(fd: int, data: memoryview) -> int:
    total = len(data)
    while data:
        data = data[os.write(fd, data) :]
    return total


if sys.platform == "linux":
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)

    def _start_writeback(fd: int, offset: int, count: int) -> None:
        """Ask the kernel to begin writing a range out, and do not wait: see sync_file_range(2)."""
        if hasattr(_libc, "sync_file_range"):
            _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(count), _SYNC_FILE_RANGE_WRITE)

else:

    def _start_writeback(fd: int, offset: int, count: int) -> None:
        """Elsewhere the fsync at the end does it all."""
