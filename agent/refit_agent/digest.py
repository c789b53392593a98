"""SHA-256 of files, in pieces that let other threads run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from refit_agent.errors import BundleFileMismatch, BundleFileMissing
from refit_agent.manifest import FileRef

#: Large enough that hashing runs at the memory's speed, small enough to stay in the processor's cache.
CHUNK_BYTES = 1 << 20


def hash_file(path: str, on_bytes: Callable[[int], None] | None = None) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file, read front to back; releases the GIL while it hashes.

    ``on_bytes`` is called with the number of bytes read since the last call. Raises OSError.
    """
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    total = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            total += count
            if on_bytes is not None:
                on_bytes(count)
    return digest.hexdigest(), total


def verify_file(path: str, ref: FileRef, on_bytes: Callable[[int], None] | None = None) -> None:
    """Check that ``path`` holds exactly what the manifest describes.

    Raises:
        BundleFileMissing: it cannot be read.
        BundleFileMismatch: another size or another SHA-256.
    """
    try:
        found, size = hash_file(path, on_bytes)
    except OSError as error:
        raise BundleFileMissing(path=path, detail=error.strerror or str(error)) from error
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
