"""A stripped plan's bytes in memory, unpacked as a stream and never larger than the manifest says."""

from __future__ import annotations

import contextlib
import lzma
import mmap
import os
from collections.abc import Callable
from typing import Protocol

from refit_agent.errors import PlanInvalid
from refit_agent.manifest import Engine

#: A page on every machine we run on; all-zero stretches of this size cost neither time nor memory.
_BLOCK = 64 << 10
_CHUNK = 1 << 20
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
        self.view.release()
        # A runtime that still looks at the bytes keeps them: better than taking them from under it.
        with contextlib.suppress(BufferError):
            self.memory.close()


class _Stream(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


def unpack(path: str, engine: Engine, on_bytes: Callable[[int, int], None] | None = None) -> PlanImage:
    """The plan in the file ``path``, which the manifest describes by ``engine``.

    An uncompressed plan is mapped in place. A compressed one is unpacked into fresh memory; stretches
    of zeros, most of a plan that was built from zeroed weights, are skipped and take no memory.

    Raises:
        PlanInvalid: damaged, or another size than ``plan_size``.
    """
    if engine.plan_size == 0:
        raise PlanInvalid(path=path, detail="the manifest gives it a plan_size of 0")
    if engine.compression == "none":
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != engine.plan_size:
                raise PlanInvalid(path=path, detail=f"it should have {engine.plan_size} bytes")
            return PlanImage(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    memory = mmap.mmap(-1, engine.plan_size)
    _prefer_large_pages(memory)
    with open(path, "rb") as file:
        try:
            if engine.compression == "zstd":
                import zstandard

                # The window is bounded: a hostile frame may ask for gigabytes of it.
                stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)
                _fill(memory, stream, path, on_bytes)
            else:
                with lzma.LZMAFile(file) as xz:
                    _fill(memory, xz, path, on_bytes)
        except (lzma.LZMAError, EOFError, ValueError) as error:
            raise PlanInvalid(path=path, detail=f"its {engine.compression} data is damaged: {error}") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise PlanInvalid(path=path, detail=f"its {engine.compression} data is damaged: {error}") from error
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
            block = buffer[start : min(start + _BLOCK, count)]
            # Not writing zeros leaves the page untouched: the kernel shows zeros there without storing any.
            if block != zeros[: len(block)]:
                memory[done + start : done + start + len(block)] = bytes(block)
        done += count
        if on_bytes is not None:
            on_bytes(done, size)
    if done != size:
        raise PlanInvalid(path=path, detail=f"it unpacks to {done} bytes and the manifest gives {size}")


def _prefer_large_pages(memory: mmap.mmap) -> None:
    """Hundreds of page faults for a plan in place of hundreds of thousands, where the kernel offers it."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def _map_all(memory: mmap.mmap) -> None:
    if hasattr(memory, "madvise"):
        with contextlib.suppress(OSError, ValueError):
            memory.madvise(_MADV_POPULATE_READ)
