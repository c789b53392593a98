"""Files that a copy is made from: read in chunks, never changed, and noticed if somebody else changes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from io import FileIO
from types import TracebackType

from refit_agent.authoring.errors import ModelUnsupported
from refit_agent.weights.external import open_regular

#: Exporters write a file for each tensor, thousands for a model; open files are few.
_MOST_OPEN = 8

_Identity = tuple[int, int, int, int]


class InputFiles:
    """The files at ``paths``, of which each is identified when it is added.

    Raises:
        ModelUnsupported: one of them cannot be read; also from every method.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._identities: dict[str, _Identity] = {}
        self._open: dict[str, FileIO] = {}
        self.add(paths)

    def __enter__(self) -> InputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def add(self, paths: Iterable[str]) -> None:
        """Further files; those that are known stay as they are."""
        for path in paths:
            if path not in self._identities:
                try:
                    self._identities[path] = _identity(os.stat(path))
                except OSError as error:
                    raise _unreadable(path, error) from error

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, in the order in which they were added."""
        return tuple(self._identities)

    def size(self, path: str) -> int:
        """Bytes that the file had at first."""
        return self._identities[path][2]

    def chunks(self, path: str, start: int, stop: int, buffer: bytearray) -> Iterator[memoryview]:
        """The bytes ``[start, stop)`` of a file, in order; each chunk is part of ``buffer`` and good until the next."""
        view = memoryview(buffer)
        file = self._file(path)
        while start < stop:
            try:
                file.seek(start)
                count = file.readinto(view[: min(len(view), stop - start)])
            except OSError as error:
                raise _unreadable(path, error) from error
            if not count:
                raise ModelUnsupported(path=path, detail="it became shorter while it was read")
            yield view[:count]
            start += count

    def require_unchanged(self) -> None:
        """Raise ModelUnsupported if a file is not the one that it was at first."""
        for path, identity in self._identities.items():
            try:
                now = _identity(os.stat(path))
            except OSError as error:
                raise _unreadable(path, error) from error
            if now != identity:
                raise ModelUnsupported(path=path, detail="it changed while it was read")

    def _file(self, path: str) -> FileIO:
        known = self._open.pop(path, None)
        if known is None:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            try:
                handle, info = open_regular(path)
            except OSError as error:
                raise _unreadable(path, error) from error
            if handle is None:
                raise ModelUnsupported(path=path, detail="it is not a regular file")
            known = FileIO(handle, "rb")
            if _identity(info) != self._identities[path]:
                known.close()
                raise ModelUnsupported(path=path, detail="it changed while it was read")
        self._open[path] = known  # the last one used goes to the end
        return known


def _identity(info: os.stat_result) -> _Identity:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _unreadable(path: str, error: OSError) -> ModelUnsupported:
    return ModelUnsupported(path=path, detail=f"it cannot be read: {error.strerror or error}")
