"""Archives that are the same whenever and wherever they are made, and the comparison of two folders."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from standalone import layout

#: The filter for x86 code makes the archive 4 % smaller; xz, tar and dpkg of every present system read it.
_FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def pack(folder: Path) -> Path:
    """Write ``folder`` as .tar.xz beside it; gives its path. Owner, order, modes and times are fixed."""
    target = folder.with_name(folder.name + ".tar.xz")
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", layout.DEFAULT_EPOCH))

    def uniform(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = epoch
        return info

    with (
        lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=_FILTERS) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, path.relative_to(folder.parent).as_posix(), recursive=False, filter=uniform)
    return target


def publish(paths: Sequence[Path], dist: Path) -> list[Path]:
    """Move what was made into ``dist``, in place of what an earlier build left there under the same names."""
    published = []
    for path in paths:
        target = dist / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
        published.append(target)
    return published


def differences(one: Path, two: Path) -> list[str]:
    """In which files, modes and times two folders differ, in words."""
    names = [{p.relative_to(root).as_posix() for p in root.rglob("*")} for root in (one, two)]
    found = [f"{one.name}/{name} is in one of them alone" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        a, b = one / name, two / name
        if (a.stat().st_mode, a.stat().st_mtime) != (b.stat().st_mode, b.stat().st_mtime):
            found.append(f"{one.name}/{name}: mode or time differ")
        elif a.is_file() and a.read_bytes() != b.read_bytes():
            found.append(f"{one.name}/{name} differs")
    return found
