"""The tree that becomes a package: files at their places, with plain modes and one date."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from pathlib import Path


class Tree:
    """A package in the making below ``root``; every file gets the date ``date`` (seconds since 1970).

    Names are relative to the root of the file system, without a leading slash. Not safe from several threads.
    """

    def __init__(self, root: Path, date: int) -> None:
        self.root = root
        self._date = date
        (root / "DEBIAN").mkdir(parents=True)

    def link(self, name: str, source: Path) -> None:
        """A file or symbolic link of the standalone folder; links stay links, programs executable.

        Libraries are not programs, whatever their mode was.
        """
        if source.is_symlink():
            self.symlink(name, os.readlink(source))
            return
        target = self._place(name)
        is_program = source.stat().st_mode & 0o100 and ".so" not in source.suffixes
        wanted = 0o755 if is_program else 0o644
        if source.stat().st_mode & 0o7777 == wanted and source.stat().st_mtime <= self._date:
            try:
                os.link(source, target)
            except OSError:
                pass  # another file system, or one without hard links
            else:
                return
        shutil.copyfile(source, target)
        target.chmod(wanted)

    def symlink(self, name: str, to: str) -> None:
        self._place(name).symlink_to(to)

    def write(self, name: str, data: bytes) -> None:
        target = self._place(name)
        target.write_bytes(data)
        target.chmod(0o644)

    def write_gz(self, name: str, text: str) -> None:
        """Compressed as Debian wants documents: best level, no name and no date inside."""
        self.write(name, gzip.compress(text.encode(), 9, mtime=0))

    def control(self, name: str, data: bytes, mode: int) -> None:
        target = self.root / "DEBIAN" / name
        target.write_bytes(data)
        target.chmod(mode)

    def installed_kib(self) -> int:
        """Debian's Installed-Size: every file rounded up to a KiB, one KiB for everything else."""
        return sum(-(-path.stat().st_size // 1024) if regular else 1 for path, regular in self._contents())

    def md5sums(self) -> bytes:
        """Of every file but conffiles, which their owner may change."""
        lines = [
            f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(self.root)}\n"
            for path, regular in self._contents()
            if regular and path.relative_to(self.root).parts[0] != "etc"
        ]
        return "".join(lines).encode()

    def finish(self) -> None:
        """Plain modes for folders whatever the umask was, and one date for what was written here."""
        for path, _, names in os.walk(self.root, topdown=False):
            for name in names:
                file = os.path.join(path, name)
                if os.lstat(file).st_mtime > self._date:
                    os.utime(file, (self._date, self._date), follow_symlinks=False)
            os.chmod(path, 0o755)  # noqa: S103 - folders of a package are for everybody
            os.utime(path, (self._date, self._date))

    def _place(self, name: str) -> Path:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _contents(self) -> list[tuple[Path, bool]]:
        found = sorted(path for path in self.root.rglob("*") if path.relative_to(self.root).parts[0] != "DEBIAN")
        return [(path, path.is_file() and not path.is_symlink()) for path in found]
