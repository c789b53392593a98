"""What an ELF file needs: libraries, search path, and symbol versions of glibc."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from standalone.commands import BuildError

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: the one kind that is built here
_PT_LOAD, _PT_DYNAMIC = 1, 2
_NEEDED, _STRTAB, _RPATH, _RUNPATH, _VERNEED, _VERNEEDNUM = 1, 5, 15, 29, 0x6FFFFFFE, 0x6FFFFFFF


class Needs(NamedTuple):
    """``libraries`` by name; ``search`` the folders of RPATH or RUNPATH; ``versions`` such as "GLIBC_2.34".

    With ``runpath`` only these folders and the system's are searched; else also the RPATH of whoever loads the file,
    up to the program's.
    """

    libraries: tuple[str, ...]
    search: tuple[str, ...]
    runpath: bool
    versions: frozenset[str]


def is_elf(path: Path) -> bool:
    """Whether the file is a 64-bit little-endian ELF file."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def elf_files(root: Path) -> list[Path]:
    """Every ELF file below a folder, sorted."""
    return [p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink() and is_elf(p)]


def needs(path: Path) -> Needs:
    """Read what the dynamic linker will read. Raises BuildError: no such file can be."""
    data = path.read_bytes()
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError) as error:
        raise BuildError(f"{path} is no ELF file that the linker would take: {error}") from error


def loadable(path: Path) -> bool:
    """Whether the segments lie in the file as the kernel can map them; `strip` may break what patchelf has changed."""
    data = path.read_bytes()
    (headers_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, _, offset, address, _, length, _, align = struct.unpack_from("<IIQQQQQQ", data, headers_at + i * size)
        if kind == _PT_LOAD and ((offset - address) % max(1, align) or offset + length > len(data)):
            return False
    return True


def highest(versions: frozenset[str] | set[str], family: str) -> str:
    """The highest of the symbol versions of one family ("GLIBC", "GLIBCXX"), "" if there is none."""
    numbers = [
        tuple(int(n) for n in rest.split("."))
        for prefix, _, rest in (v.partition("_") for v in versions)
        if prefix == family and rest.replace(".", "").isdigit()
    ]
    return ".".join(str(n) for n in max(numbers)) if numbers else ""


def _read(data: bytes) -> Needs:
    (headers_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    for i in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, headers_at + i * size)
        if kind == _PT_LOAD:
            loads.append((address, offset, length))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, length)
    if dynamic is None:
        return Needs((), (), False, frozenset())
    table = data[dynamic[0] : dynamic[0] + dynamic[1] // 16 * 16]
    entries = list(struct.iter_unpack("<QQ", table))
    values = dict(reversed(entries))

    def place(address: int) -> int:
        for start, offset, length in loads:
            if start <= address < start + length:
                return address - start + offset
        raise ValueError(f"address {address:#x} is in no segment")

    strings = place(values[_STRTAB]) if _STRTAB in values else 0

    def text(at: int) -> str:
        return data[strings + at : data.index(b"\0", strings + at)].decode()

    libraries = tuple(text(value) for tag, value in entries if tag == _NEEDED)
    search = values.get(_RUNPATH, values.get(_RPATH))
    folders = tuple(text(search).split(":")) if search is not None else ()
    versions: set[str] = set()
    if _VERNEED in values:
        at = place(values[_VERNEED])
        for _ in range(values[_VERNEEDNUM]):
            _, names, _, first, following = struct.unpack_from("<HHIII", data, at)
            name_at = at + first
            for _ in range(names):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, name_at)
                versions.add(text(name))
                name_at += step
            at += following
    return Needs(libraries, tuple(f for f in folders if f), _RUNPATH in values, frozenset(versions))
