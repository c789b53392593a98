"""Named files that came from elsewhere, in a zip or unpacked in a folder: looked at one by one, never trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from refit_agent.authoring.errors import ImportRefused, SourceUnreadable
from refit_agent.weights.external import open_regular

#: What a build leaves are a dozen files. More of them are a mistake or an attack.
MOST_ENTRIES = 1000
CHUNK_BYTES = 1 << 20


class Entry(NamedTuple):
    """A file: its place in the order of names (from 1), its name as the source gives it, for messages alone, and its
    size in bytes as the source claims it."""

    number: int
    name: str
    size: int


class Entries(Protocol):
    """A source of entries; used by one thread, and closed by its owner."""

    path: str
    entries: tuple[Entry, ...]

    def chunks(self, entry: Entry, step: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes of an entry, in pieces of at most ``step``. Whoever reads to the end has what the source promised.

        Raises:
            ImportRefused: what comes is not what the source promised.
            SourceUnreadable
        """
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


def read_head(source: Entries, entry: Entry, count: int) -> bytes:
    """The first bytes of an entry, at most ``count``. Raises as `Entries.chunks`."""
    head = b""
    for piece in source.chunks(entry, count):
        head += piece
        if len(head) >= count:
            break
    return head[:count]


def copy_entry(source: Entries, entry: Entry, target: str) -> Iterator[int]:
    """Copy an entry to the new file ``target`` while the iterator is read, which gives the bytes of each step.

    Raises:
        ImportRefused, SourceUnreadable: as `Entries.chunks`; the file is left unfinished.
        OSError: it cannot be written.
    """
    with open(target, "xb") as out:
        for piece in source.chunks(entry):
            out.write(piece)
            yield len(piece)


class FolderEntries:
    """The files below a folder, by their paths relative to it, with forward slashes.

    Raises:
        ImportRefused: a symbolic link or a device is among them, or there are too many files.
        SourceUnreadable
    """

    def __init__(self, path: str) -> None:
        self.path = path
        names = sorted(self._names(path, ""))
        self.entries = tuple(Entry(number, name, self._size(name)) for number, name in enumerate(names, 1))

    def place(self, entry: Entry) -> str:
        """Where the entry lies on this disk."""
        return os.path.join(self.path, *entry.name.split("/"))

    def chunks(self, entry: Entry, step: int = CHUNK_BYTES) -> Iterator[bytes]:
        place = self.place(entry)
        try:
            fd, _ = open_regular(place, getattr(os, "O_NOFOLLOW", 0))
            if fd is None:
                raise ImportRefused(path=self.path, detail=f"{entry.name!r} is no regular file any more")
            with open(fd, "rb", buffering=0) as file:
                left = entry.size
                while piece := file.read(step):
                    left -= len(piece)
                    if left < 0:
                        break
                    yield piece
        except OSError as error:
            raise SourceUnreadable(path=place, detail=error.strerror or str(error)) from error
        if left:
            raise ImportRefused(path=self.path, detail=f"{entry.name!r} changed while it was read")

    def close(self) -> None:
        return

    def _names(self, folder: str, prefix: str) -> Iterator[str]:
        found = 0
        todo = [(folder, prefix)]
        while todo:
            folder, prefix = todo.pop()
            try:
                with os.scandir(folder) as scan:
                    items = list(scan)
            except OSError as error:
                raise SourceUnreadable(path=folder, detail=error.strerror or str(error)) from error
            for item in items:
                found += 1
                if found > MOST_ENTRIES:
                    raise ImportRefused(path=self.path, detail=f"it has more than {MOST_ENTRIES} files and folders")
                name = prefix + item.name
                if item.is_dir(follow_symlinks=False):
                    todo.append((item.path, name + "/"))
                elif item.is_file(follow_symlinks=False):
                    yield name
                else:
                    raise ImportRefused(path=self.path, detail=f"{name!r} in it is a symbolic link, or no regular file")

    def _size(self, name: str) -> int:
        place = os.path.join(self.path, *name.split("/"))
        try:
            return os.stat(place, follow_symlinks=False).st_size
        except OSError as error:
            raise SourceUnreadable(path=place, detail=error.strerror or str(error)) from error
