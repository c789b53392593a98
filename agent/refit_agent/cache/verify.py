"""Read cached engines whole, and set aside those that are not what was published."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from refit_agent.cache.disk import NOT_ITS_FAULT
from refit_agent.cache.entry import ENTRY_NAME, Entry
from refit_agent.cache.locks import try_key_lock
from refit_agent.cache.store import Store
from refit_agent.digest import hash_file
from refit_agent.errors import CacheError, CacheInsecure, CacheUnwritable, DiskFull

#: How often an entry is read that is another every time it has been read.
_READ_TRIES = 3


class Verdict(NamedTuple):
    """What `verify` found about one entry; ``fault`` is "" for a sound one, ``set_aside`` where a damaged one is now, ""
    if it could not be moved: then it is still where look-ups find it. ``error`` is why nothing is known of one that could
    not be read now."""

    key: str
    fault: str
    set_aside: str
    error: CacheError | None = None


def verify(
    store: Store, keys: Iterable[str] | None = None, on_bytes: Callable[[int], None] | None = None
) -> list[Verdict]:
    """Read every file of the entries whole and compare it with what was published.

    A damaged entry is moved to the quarantine, so that the next request makes it anew. ``on_bytes`` is told of each piece
    that was read; what it raises ends all and goes to the caller.

    Raises:
        CacheInsecure: nothing below the folder can be trusted.
        CacheUnwritable: the entries cannot be listed.
    """
    verdicts: list[Verdict] = []
    for key in list(store.list_keys() if keys is None else keys):
        try:
            verdict = _verdict(store, key, on_bytes)
        except CacheInsecure:
            raise
        except CacheError as error:  # what is known of the others must be told all the same
            verdict = Verdict(key, "", "", error)
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def _verdict(store: Store, key: str, on_bytes: Callable[[int], None] | None) -> Verdict | None:
    """What is known of an entry after it was read; None if it is gone. A damaged one is set aside."""
    fault = ""
    for _ in range(_READ_TRIES):
        seen = _identity(store.folder(key))
        found = _fault(store, key, on_bytes)
        if not found:
            return None if found is None else Verdict(key, "", "")
        fault = found
        # It must be the entry that was read: another may have taken its place, or be about to. Told by names, numbers
        # and times, for reading it again would keep its maker, and room that it must make way for, waiting.
        with try_key_lock(store, key) as ours:
            if not ours:  # somebody is making it anew, or no lock can be had
                return Verdict(key, fault, "")
            if _identity(store.folder(key)) == seen:
                return Verdict(key, fault, _set_aside(store, key))
    return Verdict(key, fault, "")


def _fault(store: Store, key: str, on_bytes: Callable[[int], None] | None) -> str | None:
    """What is wrong with an entry, "" if nothing, None if it is gone."""
    found = store.lookup(key, touch=False)
    if not isinstance(found, tuple):
        return found
    entry, folder, lease = found
    # Not leased while it is read, which may take minutes: nobody uses it, and room that it must make way for is wanted
    # now. What was removed or replaced meanwhile is seen before it is set aside.
    lease.close()
    return _content_fault(entry, folder, on_bytes)


def _content_fault(entry: Entry, folder: str, on_bytes: Callable[[int], None] | None) -> str:
    for file in entry.files:
        try:
            digest, _ = hash_file(f"{folder}/{file.name}", on_bytes)
        except OSError as error:
            if error.errno in NOT_ITS_FAULT:
                raise CacheUnwritable(path=f"{folder}/{file.name}", detail=error.strerror) from error
            return f"{file.name}: {error.strerror}"
        if digest != file.sha256:
            return f"the content of {file.name} changed although its size and time did not"
    return ""


def _identity(folder: str) -> object:
    """What tells an entry's folder from any other that had its name or will have it."""
    told: list[object] = []
    with contextlib.suppress(OSError):  # a folder that cannot be listed is told by itself
        told.append(_facts(os.lstat(folder)))
        names = sorted(os.listdir(folder))
        # Each use of the engine sets the times of its entry.json.
        told += [(name, *_facts(os.lstat(f"{folder}/{name}"), times=name != ENTRY_NAME)) for name in names]
    return told


def _facts(status: os.stat_result, *, times: bool = True) -> tuple[int, ...]:
    facts = (status.st_dev, status.st_ino, status.st_size)
    return (*facts, status.st_mtime_ns, status.st_ctime_ns) if times else facts


def _set_aside(store: Store, key: str) -> str:
    """Where the entry is now; "" if it could not be moved, or is gone. The caller holds the key's lock."""
    with contextlib.suppress(CacheUnwritable, DiskFull):
        store.prepare()  # somebody may have deleted the quarantine
        return store.quarantine(key)
    return ""
