"""SHA-256 of files, in pieces that let other threads run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import BinaryIO

from refit_agent.errors import BundleFileMismatch
from refit_agent.errors.bundle import file_error
from refit_agent.manifest import FileRef

#: Large enough that hashing runs at the memory's speed, small enough to stay in the processor's cache.
CHUNK_BYTES = 1 << 20


Identity = tuple[int, ...]


def identity_of(status: os.stat_result) -> Identity:
    """What tells a file from another one that takes its name, and from itself after a change."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def require_identity(path: str, status: os.stat_result, expected: Identity | None) -> None:
    """Raise BundleFileMismatch if a file that was opened is not the one that was there before."""
    if expected is not None and identity_of(status) != expected:
        raise BundleFileMismatch(path=path, detail="it changed while the engine was made")


def hash_file(
    path: str, on_bytes: Callable[[int], None] | None = None, expected: Identity | None = None
) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file, read front to back; releases the GIL while it hashes.

    ``on_bytes`` is called with the number of bytes read since the last call. Raises OSError.
    """
    with open(path, "rb", buffering=0) as file:
        require_identity(path, os.fstat(file.fileno()), expected)
        return hash_open(file, on_bytes)


def hash_open(file: BinaryIO, on_bytes: Callable[[int], None] | None = None) -> tuple[str, int]:
    """As `hash_file`, of what an open file has from its position on."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    total = 0
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(view[:count])
        total += count
        if on_bytes is not None:
            on_bytes(count)
    return digest.hexdigest(), total


def verify_file(
    path: str, ref: FileRef, on_bytes: Callable[[int], None] | None = None, expected: Identity | None = None
) -> None:
    """Check that ``path`` holds exactly what the manifest describes, and is the file that was ``expected`` there.

    Raises:
        BundleFileMissing, BundleFileUnreadable: it cannot be read.
        BundleFileMismatch: another size or another SHA-256.
    """
    try:
        found, size = hash_file(path, on_bytes, expected)
    except OSError as error:
        raise file_error(path, error) from error
    require_match(path, ref, found, size)


def require_match(path: str, ref: FileRef, found: str, size: int) -> None:
    """Check the SHA-256 and the size that ``path`` was found to have. Raises BundleFileMismatch."""
    if size != ref.size:
        raise BundleFileMismatch(path=path, detail=f"it has {size} bytes and should have {ref.size}")
    if found != ref.sha256:
        raise BundleFileMismatch(path=path, detail=f"its SHA-256 is {found} and should be {ref.sha256}")


def fsync_folder(path: str) -> None:
    """Make names created in or renamed into a folder survive a power cut. A no-op on Windows."""
    if os.name == "nt":
        return  # Windows cannot open folders this way, and journals renames by itself
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
