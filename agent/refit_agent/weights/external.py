"""External data files, confined to one folder.

ONNX keeps large payloads in files beside the model (onnx.proto, ``TensorProto.external_data``). The
location comes from the model, so it is hostile until shown otherwise: it must be a relative path
whose real place is inside the folder.
"""

from __future__ import annotations

import mmap
import os
import posixpath
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from refit_agent.errors import OnnxExternalMissing, OnnxUnsafePath
from refit_agent.errors.bundle import file_error, is_machine_s_fault

_DRIVE = re.compile(r"[A-Za-z]:")


class ExternalFile:
    """One external file, checked once and mapped when first read. Made by ExternalFiles."""

    __slots__ = ("_map", "_owner", "identity", "location", "path", "size")

    def __init__(self, owner: ExternalFiles, location: str, path: Path, info: os.stat_result) -> None:
        self._owner = owner
        self._map: mmap.mmap | None = None
        self.location = location
        self.path = path
        self.size = info.st_size
        self.identity = (info.st_dev, info.st_ino, info.st_size)

    def map(self) -> mmap.mmap:
        """The whole file, mapped for reading; the map lives until ``ExternalFiles.close()`` and all
        arrays on it are gone.

        Raises:
            OnnxExternalMissing: it cannot be opened any more, or is not the file that was checked.
        """
        if self._map is None:
            handle, info = self._owner.open(self.location, self.path, 0)
            try:
                if (info.st_dev, info.st_ino, info.st_size) != self.identity:
                    raise self._owner.missing(self.location, 0, "it changed while the model was open")
                try:
                    self._map = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:
                    raise self._owner.missing(self.location, 0, str(error)) from error
            finally:
                os.close(handle)
        return self._map

    def close(self) -> None:
        mapped, self._map = self._map, None
        if mapped is not None:
            release(mapped)


class ExternalFiles:
    """The external files of one model.

    Args:
        model: path of the model, for errors.
        root: the folder that locations are relative to and may not leave.
        elsewhere: files that the caller vouches for, absolute paths by location, wherever they are.
    """

    def __init__(self, model: str, root: str, elsewhere: Mapping[str, str] | None = None) -> None:
        self._model = model
        self._root = root
        self._elsewhere = elsewhere or {}
        self._real_root: str | None = None
        self._files: dict[str, ExternalFile] = {}

    def find(self, location: str, at: int) -> ExternalFile:
        """The file at ``location``, which the model names at byte ``at``.

        Raises:
            OnnxUnsafePath: the location is not a relative path that stays inside the folder.
            OnnxExternalMissing: there is no such regular file, or it cannot be opened.
            BundleFileUnreadable: nothing says that there is none.
        """
        known = self._files.get(location)
        if known is not None:
            return known
        reason = unsafe_reason(location)
        if reason:
            raise OnnxUnsafePath(path=self._model, offset=at, location=location, detail=reason)
        path = self._place(location, at)
        handle, info = self.open(location, path, at)
        os.close(handle)
        found = self._files[location] = ExternalFile(self, location, path, info)
        return found

    def _place(self, location: str, at: int) -> Path:
        given = self._elsewhere.get(posixpath.normpath(location))
        if given is not None:
            return Path(os.path.realpath(given))
        if self._real_root is None:
            self._real_root = os.path.realpath(self._root)
        try:
            real = os.path.realpath(os.path.join(self._real_root, location))
            inside = os.path.commonpath((self._real_root, real)) == self._real_root
        except (OSError, ValueError) as error:  # other drive, name too long, lone surrogates
            raise self.missing(location, at, str(error)) from error
        if not inside:
            raise OnnxUnsafePath(
                path=self._model, offset=at, location=location, detail="leads out of the folder through a symbolic link"
            )
        return Path(real)

    def open(self, location: str, path: Path, at: int) -> tuple[int, os.stat_result]:
        """A descriptor of a regular file, which the caller closes, and its facts. Raises as `find`."""
        try:
            # O_NOFOLLOW: a link put there after the check must not lead out of the folder
            handle, info = open_regular(path, getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            if is_machine_s_fault(error):
                raise file_error(str(path), error) from error
            raise self.missing(location, at, error.strerror or str(error)) from error
        if handle is None:
            raise self.missing(location, at, "it is not a regular file")
        return handle, info

    def missing(self, location: str, at: int, detail: str) -> OnnxExternalMissing:
        return OnnxExternalMissing(path=self._model, offset=at, location=location, detail=detail)

    def locations(self) -> dict[str, Path]:
        """The real paths by normalized location of the files found so far."""
        return {posixpath.normpath(location): file.path for location, file in self._files.items()}

    def opened(self) -> dict[Path, tuple[int, int, int]]:
        """Device, inode and size of each file when it was found; another one is never mapped in its place."""
        return {file.path: file.identity for file in self._files.values()}

    def paths(self) -> tuple[Path, ...]:
        """The real paths of the files found so far."""
        return tuple(dict.fromkeys(file.path for file in self._files.values()))

    def close(self) -> None:
        """Let go of every map; those under an array live as long as it does."""
        for file in self._files.values():
            file.close()


def unsafe_reason(location: str) -> str:
    """Why ``location`` may not be used on any operating system, or ""."""
    if not location:
        return "is empty"
    if "\0" in location:
        return "contains a NUL character"
    if "\\" in location:
        return "contains a backslash"
    if location.startswith("/"):
        return "is absolute"
    parts = location.split("/")
    if ".." in parts:
        return "leaves the folder with '..'"
    if any(_DRIVE.match(part) for part in parts):
        return "names a drive"
    return ""


def open_regular(path: str | os.PathLike[str], flags: int = 0) -> tuple[int | None, os.stat_result]:
    """Open a regular file for reading: (descriptor, facts), or (None, facts) for anything else.

    Raises:
        OSError: there is nothing there, or it cannot be opened.
    """
    # O_NONBLOCK: opening a FIFO would wait for a writer for ever
    flags |= os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        info = os.fstat(handle)
    except OSError:
        os.close(handle)
        raise
    if stat.S_ISREG(info.st_mode):
        return handle, info
    os.close(handle)
    return None, info


def release(mapped: mmap.mmap) -> None:
    """Close a map now, or leave that to the last array that uses it."""
    try:
        mapped.close()
    except BufferError:
        return  # arrays hold it; it goes when the last of them goes
