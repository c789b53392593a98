"""A zip that came from elsewhere: its directory checked before anything is unpacked, its entries only ever streamed.

Names in it are never used as paths, so nothing is written where the zip says; one with names that could lead
anywhere is refused all the same, as no honest tool makes it. What an entry is counts by what comes out of it: its
size and checksum are those of the stream, which has to end where the directory says.

Layout: PKWARE's APPNOTE.TXT, 4.3 and 4.4. `zipfile` reads the directory; unpacking is done here, since its reader
stops at the claimed size and does not tell that more would come.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from refit_agent.authoring.errors import ImportRefused, SourceUnreadable
from refit_agent.authoring.foreign_entries import CHUNK_BYTES, MOST_ENTRIES, Entry
from refit_agent.manifest import path_fault
from refit_agent.weights.external import open_regular

#: The first bytes of a zip that has at least one entry.
MAGIC = b"PK\3\4"
_MOST_NAME_BYTES = 1000
_MOST_DIRECTORY_BYTES = 4 << 20
#: All entries together may unpack to this much, or to so many times the size of the zip, and never to more than the
#: third. Engines without weights shrink to a third, those built from zeros to a hundredth and less, but those are small.
_UNPACKED_BYTES, _UNPACKED_TIMES, _MOST_UNPACKED_BYTES = 1 << 30, 100, 256 << 30
#: No deflate stream gives more: 258 bytes for two bits (RFC 1951).
_MOST_DEFLATE_RATIO = 1032
_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_BEHIND = 1 << 3
_UTF8 = 1 << 11
_IN_ZIP64 = 0xFFFFFFFF


class _Place(NamedTuple):
    """Where an entry's packed bytes are, and what they must give."""

    start: int
    packed: int
    method: int
    crc: int


class ZipEntries:
    """The files in a zip, its folders left out. Close it, or use it in a ``with`` block.

    Raises:
        SourceUnreadable: it cannot be opened.
        ImportRefused: it is no sound zip, or one that no honest tool makes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.entries, self._places = self._look()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ZipEntries:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def chunks(self, entry: Entry, step: int = CHUNK_BYTES) -> Iterator[bytes]:
        """See `foreign_entries.Entries`; the checksum is that of the directory when the last piece has come."""
        place = self._places[entry.number]
        crc = size = 0
        for piece in self._inflated(entry, place, step) if place.method else self._stored(entry, place, step):
            size += len(piece)
            if size > entry.size:
                raise self._refused(f"{entry.name!r} unpacks to more than the {entry.size} bytes that it claims")
            crc = zlib.crc32(piece, crc)
            yield piece
        if size != entry.size:
            raise self._refused(f"{entry.name!r} unpacks to {size} bytes, and claims {entry.size}")
        if crc != place.crc:
            raise self._refused(f"{entry.name!r} is damaged: its checksum is not that of the directory")

    def _stored(self, entry: Entry, place: _Place, step: int) -> Iterator[bytes]:
        for at in range(0, place.packed, step):
            yield self._read(entry, place.start + at, min(step, place.packed - at))

    def _inflated(self, entry: Entry, place: _Place, step: int) -> Iterator[bytes]:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        done, packed = 0, b""
        while not stream.eof:
            if not packed and done < place.packed:
                packed = self._read(entry, place.start + done, min(step, place.packed - done))
                done += len(packed)
            try:
                piece = stream.decompress(packed, step)
            except zlib.error as error:
                raise self._refused(f"{entry.name!r} is damaged: {error}") from error
            if not piece and not packed:
                raise self._refused(f"{entry.name!r} is cut off")
            packed = stream.unconsumed_tail
            if piece:
                yield piece
        if stream.unused_data or packed or done < place.packed:
            raise self._refused(f"{entry.name!r} ends before the {place.packed} bytes that it claims")

    def _read(self, entry: Entry, at: int, count: int) -> bytes:
        try:
            self._file.seek(at)
            data = self._file.read(count)
        except OSError as error:
            raise SourceUnreadable(path=self.path, detail=error.strerror or str(error)) from error
        if len(data) != count:
            raise self._refused(f"{entry.name!r} is cut off")
        return data

    # ---------------------------------------------------------------- the directory

    def _look(self) -> tuple[tuple[Entry, ...], dict[int, _Place]]:
        infos, start = self._directory()
        if len(infos) > MOST_ENTRIES:
            raise self._refused(f"it has {len(infos)} entries, more than {MOST_ENTRIES}")
        for info in infos:
            fault = _fault(info)
            if fault:
                raise self._refused(f"its entry {_shown(info.orig_filename)} {fault}")
        seen: set[str] = set()
        for info in infos:
            name = info.orig_filename.rstrip("/").casefold()
            if name in seen:
                raise self._refused(f"it has the entry {_shown(info.orig_filename)} twice")
            seen.add(name)
        most = min(max(_UNPACKED_BYTES, _UNPACKED_TIMES * self._size), _MOST_UNPACKED_BYTES)
        total = sum(info.file_size for info in infos)
        if total > most:
            raise self._refused(f"its {self._size} bytes would unpack to {total}, and {most} are allowed")
        places = [self._place(info) for info in infos]
        self._require_apart(infos, places, start)
        files = [pair for pair in zip(infos, places, strict=True) if not pair[0].orig_filename.endswith("/")]
        entries = [Entry(number, info.orig_filename, info.file_size) for number, (info, _) in enumerate(files, 1)]
        return tuple(entries), {number: place for number, (_, place) in enumerate(files, 1)}

    def _directory(self) -> tuple[list[zipfile.ZipInfo], int]:
        """The entries, and where the directory begins."""
        try:
            archive = zipfile.ZipFile(_Sparing(self._file, self._size))
            return archive.infolist(), archive.start_dir
        except zipfile.BadZipFile as error:
            raise self._refused(f"it is no sound zip: {error}") from error
        except (NotImplementedError, ValueError, OverflowError, struct.error, OSError) as error:
            raise self._refused(f"it is no sound zip: {error}") from error

    def _place(self, info: zipfile.ZipInfo) -> _Place:
        """Where the entry's bytes are, from the header before them, which must agree with the directory."""
        name = _shown(info.orig_filename)
        if not 0 <= info.header_offset <= self._size - _LOCAL.size:
            raise self._refused(f"its entry {name} lies outside of it")
        entry = Entry(0, info.orig_filename, info.file_size)
        magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack(
            self._read(entry, info.header_offset, _LOCAL.size)
        )
        if magic != MAGIC:
            raise self._refused(f"the header of its entry {name} is none")
        raw = self._read(entry, info.header_offset + _LOCAL.size, name_size)
        if raw != info.orig_filename.encode("utf-8" if flags & _UTF8 else "cp437", "replace"):
            raise self._refused(f"its entry {name} has another name in its own header")
        if flags & _ENCRYPTED or method != info.compress_type:
            raise self._refused(f"its entry {name} is something else in its own header")
        if not flags & _SIZES_BEHIND:
            told = [(crc, info.CRC), (packed, info.compress_size), (size, info.file_size)]
            if any(own not in (listed, _IN_ZIP64) for own, listed in told):
                raise self._refused(f"its entry {name} has another size or checksum in its own header")
        start = info.header_offset + _LOCAL.size + name_size + extra_size
        return _Place(start, info.compress_size, method, info.CRC)

    def _require_apart(self, infos: list[zipfile.ZipInfo], places: list[_Place], start: int) -> None:
        """Refuse entries that share bytes: by that a small zip unpacks to any size."""
        ranges = sorted(
            (info.header_offset, place.start + place.packed) for info, place in zip(infos, places, strict=True)
        )
        followers = [*(begin for begin, _ in ranges), start][1:]
        if any(end > following for (_, end), following in zip(ranges, followers, strict=True)):
            raise self._refused("its entries overlap each other, or its directory")

    def _refused(self, detail: str) -> ImportRefused:
        return ImportRefused(path=self.path, detail=detail)


class _Sparing:
    """A file of which nobody reads much at once: `zipfile` reads a directory whole, and believes the zip its size."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        wanted = self._size - self._file.tell() if count < 0 else count
        if wanted > _MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {wanted} bytes, more than {_MOST_DIRECTORY_BYTES}")
        return self._file.read(max(wanted, 0))


def _fault(info: zipfile.ZipInfo) -> str:
    """What is wrong with an entry as the directory has it, as the end of a sentence; "" if nothing."""
    name = info.orig_filename
    if len(name.encode("utf-8", "surrogatepass")) > _MOST_NAME_BYTES:
        return f"has a name of more than {_MOST_NAME_BYTES} bytes"
    fault = path_fault(name[:-1] if name.endswith("/") else name) if name else "has no name"
    if fault:
        return fault
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link" if kind == stat.S_IFLNK else "is a device or a socket"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}, and only stored and deflated entries are read"
    if name.endswith("/") and info.file_size:
        return "is a folder with content"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return f"is stored as it is and claims to be {info.file_size} bytes in {info.compress_size}"
    if info.file_size > _MOST_DEFLATE_RATIO * (info.compress_size + 1):
        return f"claims to be {info.file_size} bytes in {info.compress_size}, which no deflate stream can be"
    return ""


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "...")


def _open(path: str) -> IO[bytes]:
    try:
        fd, _ = open_regular(path)
    except (OSError, ValueError) as error:
        raise SourceUnreadable(path=path, detail=getattr(error, "strerror", None) or str(error)) from error
    if fd is None:
        raise SourceUnreadable(path=path, detail="it is not a regular file")
    return open(fd, "rb")
