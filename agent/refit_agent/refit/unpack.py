"""A stripped plan's bytes in memory, unpacked as a stream and never larger than the manifest says."""

from __future__ import annotations

import contextlib
import lzma
import mmap
import os
from collections.abc import Callable
from typing import BinaryIO, Protocol

from refit_agent.digest import Identity, hash_open, require_identity, require_match
from refit_agent.errors import PlanInvalid, RefitError
from refit_agent.errors.bundle import file_error
from refit_agent.manifest import Plan

#: A page on every machine we run on; all-zero stretches of this size cost neither time nor memory.
_BLOCK = 64 << 10
_CHUNK = 1 << 20
#: A hostile file may ask for gigabytes of window; the highest presets stay below these.
_MAX_ZSTD_WINDOW = 128 << 20
_MAX_XZ_MEMORY = 160 << 20
#: Linux: map the pages of a region for reading in one call (since 5.14).
_MADV_POPULATE_READ = 22


class PlanImage:
    """The bytes of one plan, held by the caller until `close`.

    ``view`` is read-only memory of exactly ``size`` bytes, ``memory`` the map behind it (not to be
    written). It must be closed only after every runtime that looks at it has let go.
    """

    def __init__(self, path: str, memory: mmap.mmap) -> None:
        self.path = path
        self.size = len(memory)
        self.memory = memory
        self.view = memoryview(memory).toreadonly()

    def close(self) -> None:
        """Give the memory back."""
        # Whoever still looks at the bytes keeps them, a runtime or a check in its thread: better than
        # taking them from under it.
        with contextlib.suppress(BufferError):
            self.view.release()
            self.memory.close()


class _Stream(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


class _XzStream:
    """One .xz stream, unpacked in bounded memory (`lzma.LZMAFile` takes no limit)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)

    def readinto(self, buffer: bytearray, /) -> int:
        while not self._decoder.eof:
            data = b""
            if self._decoder.needs_input:
                data = self._file.read(_CHUNK)
                if not data:
                    raise EOFError("it ends in the middle")
            out = self._decoder.decompress(data, len(buffer))
            if out:
                buffer[: len(out)] = out
                return len(out)
        return 0


def unpack_checked(
    path: str, plan: Plan, expected: Identity, on_bytes: Callable[[int, int], None] | None = None
) -> PlanImage:
    """As `unpack`, of the file that was ``expected`` there, its SHA-256 compared before a byte of it is parsed.

    Raises also BundleFileMismatch, BundleFileMissing, BundleFileUnreadable.
    """
    try:
        # Hashed and unpacked through one descriptor: under the name there may be another file by then.
        with open(path, "rb") as file:
            require_identity(path, os.fstat(file.fileno()), expected)
            require_match(path, plan, *hash_open(file))
            file.seek(0)
            return _unpack(file, path, plan, on_bytes)
    except OSError as error:
        raise file_error(path, error) from error


def unpack(path: str, plan: Plan, on_bytes: Callable[[int, int], None] | None = None) -> PlanImage:
    """The plan in the file ``path``, which the manifest describes by ``plan``.

    An uncompressed plan is mapped in place. A compressed one is unpacked into fresh memory; stretches
    of zeros, most of a plan that was built from zeroed weights, are skipped and take no memory.

    Raises:
        PlanInvalid: damaged, or another size than ``plan_size``.
        RefitError: not enough memory.
    """
    with open(path, "rb") as file:
        return _unpack(file, path, plan, on_bytes)


def _unpack(file: BinaryIO, path: str, plan: Plan, on_bytes: Callable[[int, int], None] | None) -> PlanImage:
    if plan.plan_size == 0:
        raise PlanInvalid(path=path, detail="the manifest gives it a plan_size of 0")
    if plan.compression == "none":
        if os.fstat(file.fileno()).st_size != plan.plan_size:
            raise PlanInvalid(path=path, detail=f"it should have {plan.plan_size} bytes")
        return PlanImage(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    memory = _fresh_memory(path, plan.plan_size)
    _prefer_large_pages(memory)
    try:
        if plan.compression == "zstd":
            import zstandard

            stream = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).stream_reader(file)
            _fill(memory, stream, path, on_bytes)
        else:
            _fill(memory, _XzStream(file), path, on_bytes)
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise PlanInvalid(path=path, detail=f"its {plan.compression} data is damaged: {error}") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise PlanInvalid(path=path, detail=f"its {plan.compression} data is damaged: {error}") from error
    _map_all(memory)
    return PlanImage(path, memory)


def _fill(memory: mmap.mmap, stream: _Stream, path: str, on_bytes: Callable[[int, int], None] | None) -> None:
    size = len(memory)
    buffer = bytearray(_CHUNK)
    zeros = bytes(_BLOCK)
    done = 0
    while count := stream.readinto(buffer):
        if done + count > size:
            raise PlanInvalid(path=path, detail=f"it unpacks to more than the {size} bytes that the manifest gives")
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            # Not writing zeros leaves the page untouched: the kernel shows zeros there without storing any.
            # startswith compares in place; a slice of each block would cost more than the unpacking.
            if not buffer.startswith(zeros if stop - start == _BLOCK else zeros[: stop - start], start, stop):
                memory[done + start : done + stop] = buffer[start:stop]
        done += count
        if on_bytes is not None:
            on_bytes(done, size)
    if done != size:
        raise PlanInvalid(path=path, detail=f"it unpacks to {done} bytes and the manifest gives {size}")


def _fresh_memory(path: str, size: int) -> mmap.mmap:
    try:
        if os.name == "nt":
            return mmap.mmap(-1, size)
        # Private: in shared memory even a page that is only read takes memory.
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, MemoryError) as error:
        raise RefitError(detail=f"There is not enough memory to unpack {path} ({size} bytes): {error}.") from error


def _prefer_large_pages(memory: mmap.mmap) -> None:
    """Hundreds of page faults for a plan in place of hundreds of thousands, where the kernel offers it."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def _map_all(memory: mmap.mmap) -> None:
    if hasattr(memory, "madvise"):
        with contextlib.suppress(OSError, ValueError):
            memory.madvise(_MADV_POPULATE_READ)
