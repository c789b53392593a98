"""``entry.json``: what one published engine is, and whether its files are still what was published."""

from __future__ import annotations

import hashlib
import os
import stat

import msgspec

from refit_agent.cache.disk import NOT_ITS_FAULT
from refit_agent.errors import CacheUnwritable

SCHEMA = 1
ENTRY_NAME = "entry.json"


class EntryFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an entry as it was published."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One published engine. ``plan`` names the file to hand to a host app, ``onnx`` the one for a host that loads
    it through ONNX Runtime: for the CPU target the same, else a small file that points at the plan; "" where the
    model is not an ONNX file. Of several plans ``plan`` is that of rank 0.
    ``created`` is Unix time.

    ``golden_error`` is the largest relative L2 error of the check run, None if there was none.
    ``seconds`` holds the time that each phase of the refit took. ``facts`` is what the key was made
    from, for people; the key itself is authoritative.
    """

    schema: int
    key: str
    plan: str
    files: tuple[EntryFile, ...]
    runtime: str
    runtime_version: str
    target: str
    app: str
    model: str
    profile: str | None
    engine: str
    created: float
    golden_error: float | None = None
    check: str = ""
    onnx: str = ""
    seconds: dict[str, float] = {}
    facts: dict[str, str] = {}

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(f.size for f in self.files)


_decoder = msgspec.json.Decoder(Entry)
_FORBIDDEN = frozenset("/\\\0")


def encode_entry(entry: Entry) -> bytes:
    """The bytes of ``entry.json``: indented, since people read it too. Its last member, ``seal``, is the hash of all
    that stands before it: most flipped bits leave a document that reads well."""
    return _sealed(msgspec.json.format(msgspec.json.encode(entry), indent=1).removesuffix(b"\n}"))


def _sealed(body: bytes) -> bytes:
    return b'%b,\n "seal": "%b"\n}\n' % (body, hashlib.sha256(body).hexdigest().encode())


_SEAL_BYTES = len(_sealed(b""))


def decode_entry(data: bytes, key: str) -> Entry | str:
    """The entry in ``data``, or in words why it cannot be the entry of ``key``."""
    try:
        entry = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"{ENTRY_NAME} cannot be read: {error}"
    if entry.schema != SCHEMA:
        return f"{ENTRY_NAME} has schema {entry.schema}"
    if entry.key != key:
        return f"{ENTRY_NAME} belongs to {entry.key}"
    names = [f.name for f in entry.files]
    if entry.plan not in names:
        return f"{ENTRY_NAME} does not list its plan"
    if entry.onnx not in ("", *names):
        return f"{ENTRY_NAME} does not list its ONNX file"
    if any(name in ("", ".", "..") or not _FORBIDDEN.isdisjoint(name) for name in names):
        return f"{ENTRY_NAME} names a file outside its folder"
    if _sealed(data[:-_SEAL_BYTES]) != data:
        return f"{ENTRY_NAME} was changed after it was published"
    return entry


def files_fault(entry: Entry, folder: str) -> str:
    """What differs between the files and what was published, by size and time alone; "" if nothing.

    Raises CacheUnwritable where the system does not say, which is no damage.
    """
    for file in entry.files:
        try:
            status = os.stat(f"{folder}/{file.name}", follow_symlinks=False)
        except OSError as error:
            if error.errno in NOT_ITS_FAULT:
                raise CacheUnwritable(path=f"{folder}/{file.name}", detail=error.strerror) from error
            return f"{file.name}: {error.strerror}"
        if not stat.S_ISREG(status.st_mode):
            return f"{file.name} is not a file"
        if status.st_size != file.size:
            return f"{file.name} has {status.st_size} bytes and should have {file.size}"
        if status.st_mtime_ns != file.mtime_ns:
            return f"{file.name} was changed after it was published"
    return ""
