"""The last answers of `detect`, kept in ``<state>/machine.json`` and believed only if nobody else could
have written them.

Several answers, because an installer, a service and an app on one machine may differ in
CUDA_VISIBLE_DEVICES or in their search path, and would otherwise take turns at forgetting.
"""

from __future__ import annotations

import os
import stat
import sys

import msgspec

from refit_agent.machine import Machine

FILE = "machine.json"
#: Answers kept, newest first.
KEPT = 8
_MOST_BYTES = 1 << 20


class _Answer(msgspec.Struct, frozen=True):
    fingerprint: str
    machine: Machine


_decoder = msgspec.json.Decoder(list[_Answer])


def recall(state: str, fingerprint: str) -> Machine | None:
    """The machine as it was described under ``fingerprint``, or None.

    A file that is missing, damaged, not a plain file, another user's or writable by others is as good
    as none. Never raises OSError. Reads a few kilobytes; safe from any thread and process.
    """
    for answer in _load(state):
        if answer.fingerprint == fingerprint:
            return answer.machine
    return None


def remember(state: str, fingerprint: str, machine: Machine | None) -> bool:
    """Put the answer on disk (None: take it off), and say whether that was possible.

    Atomic: a reader sees the old file or the new one. Of two processes that write at once one answer
    may be lost, and is asked for again. The folder is made with mode 0700 if there is none.
    """
    kept = [a for a in _load(state) if a.fingerprint != fingerprint]
    if machine is not None:
        kept.insert(0, _Answer(fingerprint, machine))
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
        if not _ours(os.stat(state), writable_by=stat.S_IWOTH):
            return False
        from refit_agent.state_file import replace_file  # readers do not need it

        replace_file(os.path.join(state, FILE), msgspec.json.encode(kept[:KEPT]))
    except OSError:
        # A read-only or full disk costs time at the next start, never the engine.
        return False
    return True


def _load(state: str) -> list[_Answer]:
    flags = os.O_RDONLY
    if sys.platform != "win32":
        # O_NONBLOCK: a FIFO in this place must not hold the caller for ever.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    else:
        flags |= os.O_BINARY
    try:
        fd = os.open(os.path.join(state, FILE), flags)
    except OSError:
        return []
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > _MOST_BYTES:
            return []
        if not _ours(seen, writable_by=stat.S_IWGRP | stat.S_IWOTH):
            return []
        return _decoder.decode(os.read(fd, seen.st_size))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    finally:
        os.close(fd)


def _ours(seen: os.stat_result, writable_by: int) -> bool:
    if sys.platform == "win32":
        # The state folder lies in the user's profile; its access list is not looked at.
        return True
    return seen.st_uid == os.geteuid() and not seen.st_mode & writable_by
