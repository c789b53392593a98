"""What the kernel tells of a folder: every name that comes and goes, also by the hand of a process that is killed."""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from pathlib import Path

_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _OVERFLOW = 0x40, 0x80, 0x100, 0x200, 0x4000
_HEAD = struct.Struct("iIII")


class FolderWatch:
    """Names that came by a rename, that went by one, and whatever else happened, which should not."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
        if self._fd < 0 or self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(folder))
        self.came: Counter[str] = Counter()
        self.went: Counter[str] = Counter()
        self.strange: list[str] = []

    def read(self) -> None:
        """Take what has happened since the last time; never waits."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                _, mask, _, length = _HEAD.unpack_from(data, at)
                at += _HEAD.size
                self._note(mask, data[at : at + length].rstrip(b"\0").decode())
                at += length

    def _note(self, mask: int, name: str) -> None:
        if mask & _MOVED_TO:
            self.came[name] += 1
        elif mask & _MOVED_FROM:
            self.went[name] += 1
        elif mask & _OVERFLOW:
            self.strange.append("the kernel lost count: read more often")
        else:
            self.strange.append(f"{name} was {'created' if mask & _CREATE else 'deleted'} in place")

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._fd)
