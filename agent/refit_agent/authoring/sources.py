"""Files that go into a bundle: read once, hashed on the way; a fault is told in words that name them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator

from refit_agent.authoring.errors import BundleUnwritable, SourceUnreadable
from refit_agent.digest import CHUNK_BYTES
from refit_agent.weights.external import open_regular

OnBytes = Callable[[int], None]


def source_size(path: str) -> int:
    """Bytes of a regular file that can be opened. Raises SourceUnreadable."""
    fd = _open(path)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def read_head(path: str, count: int) -> tuple[bytes, int]:
    """The first bytes of a file, at most ``count``, and how many it has in all. Raises SourceUnreadable."""
    with open(_open(path), "rb") as file:
        try:
            return file.read(count), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise _unreadable(path, error) from error


def read_chunks(path: str, on_bytes: OnBytes | None = None) -> Iterator[memoryview]:
    """The bytes of a file, front to back; each chunk is good until the next. Raises SourceUnreadable."""
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with open(_open(path), "rb", buffering=0) as file:
        while True:
            try:
                count = file.readinto(buffer)
            except OSError as error:
                raise _unreadable(path, error) from error
            if not count:
                return
            yield view[:count]
            if on_bytes is not None:
                on_bytes(count)


def copy_hashed(source: str, target: str, on_bytes: OnBytes | None = None) -> tuple[str, int]:
    """Copy to the new file ``target``, which is on the disk for good then; gives SHA-256 (hex) and size.

    Raises:
        SourceUnreadable
        OSError: the copy cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with open(target, "xb", buffering=0) as out:
        for chunk in read_chunks(source, on_bytes):
            digest.update(chunk)
            size += len(chunk)
            while chunk:  # a file without a buffer may take a part alone
                chunk = chunk[out.write(chunk) :]
        os.fsync(out.fileno())
    return digest.hexdigest(), size


def link_hashed(source: str, target: str, bundle: str, on_bytes: OnBytes | None = None) -> tuple[str, int]:
    """Like `copy_hashed`, but ``target`` becomes a second name (a hard link) of the file itself.

    Raises:
        SourceUnreadable
        BundleUnwritable: it is on another disk, or one that has no hard links.
    """
    digest, size = hash_source(source, on_bytes)
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        detail = f"{source} cannot be linked into it ({error.strerror}); it can be copied"
        raise BundleUnwritable(bundle=bundle, detail=detail) from error
    return digest, size


def hash_source(path: str, on_bytes: OnBytes | None = None) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file. Raises SourceUnreadable."""
    digest, size = hashlib.sha256(), 0
    for chunk in read_chunks(path, on_bytes):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _open(path: str) -> int:
    try:
        fd, _ = open_regular(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if fd is None:
        raise SourceUnreadable(path=path, detail="it is not a regular file")
    return fd


def _unreadable(path: str, error: Exception) -> SourceUnreadable:
    return SourceUnreadable(path=path, detail=getattr(error, "strerror", None) or str(error))
