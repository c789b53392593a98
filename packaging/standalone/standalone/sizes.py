"""How large the parts are, and whether that is within the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from standalone import layout
from standalone.assemble import Made

#: What a file takes of a disk is a multiple of this, on nearly every file system.
BLOCK = 4096


class Size(NamedTuple):
    """Of a part, or of an archive: ``on_disk`` in whole blocks, ``compressed`` 0 where nothing was packed."""

    name: str
    files: int
    size: int
    on_disk: int
    compressed: int


def measure(made: Made, archives: Sequence[Path]) -> list[Size]:
    """Each part, then each folder with its archive. The folders' directories count as one block each."""
    found = []
    for part, names in made.parts.items():
        sizes = [(made.folder_of(part) / name).stat().st_size for name in names]
        found.append(Size(part, len(sizes), sum(sizes), sum(map(_blocks, sizes)), 0))
    packed = {a.name.removesuffix(".tar.xz"): a.stat().st_size for a in archives}
    for folder in made.folders:
        paths = list(folder.rglob("*"))
        sizes = [p.stat().st_size for p in paths if p.is_file()]
        folders = len(paths) - len(sizes)
        disk = sum(map(_blocks, sizes)) + (folders + 1) * BLOCK
        found.append(Size(folder.name, len(sizes), sum(sizes), disk, packed.get(folder.name, 0)))
    return found


def check_bounds(sizes: Sequence[Size], cuda: str) -> list[str]:
    """What is larger than it may be, in words."""
    name = layout.folder_name(layout.CORE)
    folder = next(s for s in sizes if s.name == name)
    bounds = (
        (folder.on_disk, layout.MOST_ON_DISK[cuda], "on disk"),
        (folder.compressed, layout.MOST_COMPRESSED, "compressed"),
    )
    return [
        f"{name}: {got / 1e6:.1f} MB {where}, allowed are {most / 1e6:.1f}" for got, most, where in bounds if got > most
    ]


def table(sizes: Sequence[Size]) -> str:
    """For people, in MB of 10^6 bytes."""
    width = max(len(s.name) for s in sizes)
    lines = [f"{'':{width}}  files      MB  on disk  compressed"]
    for s in sizes:
        packed = f"{s.compressed / 1e6:10.1f}" if s.compressed else f"{'':10}"
        lines.append(f"{s.name:{width}}  {s.files:5}  {s.size / 1e6:6.1f}  {s.on_disk / 1e6:7.1f}  {packed}".rstrip())
    return "\n".join(lines)


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
