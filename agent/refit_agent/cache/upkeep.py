"""Keep the cache within its quota and free of leftovers."""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from refit_agent.cache.disk import disk_bytes, free_bytes, write_error
from refit_agent.cache.entry import ENTRY_NAME, Entry, files_fault
from refit_agent.cache.locks import key_lock, remove_lock_file, try_key_lock
from refit_agent.cache.store import QUARANTINE, TEMPORARY, Store, inspect_entry
from refit_agent.errors import CacheBusy, CacheError, CacheUnwritable, DiskFull

#: Left free beyond what an engine needs, so that filling the cache never fills the disk.
DISK_MARGIN_BYTES = 256 << 20
#: What has come of unfinished transfers, one file for each key (see `refit_agent.fetch`).
PARTIAL = "partial"
_PARTIAL_KEPT_S = 7 * 86400.0


class Cached(NamedTuple):
    """One entry as the list shows it; ``entry`` is None when ``fault`` says why it cannot be read.

    ``size`` in bytes on disk, ``last_used`` in Unix time.
    """

    key: str
    entry: Entry | None
    size: int
    last_used: float
    fault: str


def list_entries(store: Store) -> list[Cached]:
    """All entries, least recently used first. Reads each entry.json, no plan."""
    found = [_inspect(store, key) for key in store.list_keys()]
    return sorted(found, key=lambda c: (c.last_used, c.key))


def _inspect(store: Store, key: str) -> Cached:
    folder = store.folder(key)
    size, last_used = _measure(folder)
    entry: Entry | str = ""
    try:
        entry = inspect_entry(folder, key)
        fault = entry if isinstance(entry, str) else files_fault(entry, folder)
    except CacheUnwritable as error:  # one that cannot be read now must not hide the others
        fault = str(error)
    return Cached(key, None if isinstance(entry, str) else entry, size, last_used, fault)


def _measure(folder: str) -> tuple[int, float]:
    """Bytes of an entry's files, and when it was last used. Reads none of them: each new engine asks it of all."""
    size, last_used = 0, 0.0
    try:
        with os.scandir(folder) as items:
            for item in items:
                status = item.stat(follow_symlinks=False)
                size += status.st_size
                if item.name == ENTRY_NAME:
                    last_used = status.st_mtime
    except NotADirectoryError:
        with contextlib.suppress(OSError):
            size = os.lstat(folder).st_size
    except OSError:
        pass  # it is gone, or cannot be read, which the entry will say
    return size, last_used


def default_quota(store: Store) -> int:
    """Bytes the cache may take when nobody said otherwise: a fifth of the disk, at most 32 GiB."""
    return min(32 << 30, disk_bytes(store.root) // 5)


class _Holding(NamedTuple):
    """What takes room and may go: an entry, or what has come of an unfinished transfer."""

    last_used: float
    key: str
    size: int
    partial: bool


def _holdings(store: Store) -> list[_Holding]:
    """All of them, least recently used first."""
    measured = ((key, *_measure(store.folder(key))) for key in store.list_keys())
    entries = [_Holding(last_used, key, size, partial=False) for key, size, last_used in measured]
    return sorted(entries + _partials(store))


def _partials(store: Store) -> list[_Holding]:
    found: list[_Holding] = []
    for name in _listdir(f"{store.root}/{PARTIAL}"):
        with contextlib.suppress(OSError):
            status = os.lstat(f"{store.root}/{PARTIAL}/{name}")
            found.append(_Holding(status.st_mtime, name, status.st_size, partial=True))
    return found


def _let_go(store: Store, holding: _Holding, failed: list[CacheError] | None = None) -> bool:
    return _drop_partial(store, holding.key) if holding.partial else _evict(store, holding.key, failed)


def make_room(store: Store, needed_bytes: int, quota_bytes: int) -> list[str]:
    """Remove the least recently used entries until ``needed_bytes`` more fit in quota and disk.

    Unfinished transfers count, and go, like entries. What is leased stays, and what somebody is making or fetching:
    whoever goes on with a transfer asks for the missing bytes only. Gives the keys of the entries removed. A single engine
    larger than the quota is let through, since refusing it would leave the app without any.

    Raises:
        DiskFull: the disk itself is too small for it even then.
    """
    removed: list[str] = []
    holdings = _holdings(store)
    total = sum(h.size for h in holdings)
    short = free_bytes(store.root) < needed_bytes + DISK_MARGIN_BYTES
    if short or total + _quarantined_bytes(store) + needed_bytes > quota_bytes:
        _empty_quarantine(store)  # before any engine that is sound
    free = free_bytes(store.root)
    if free + total < needed_bytes + DISK_MARGIN_BYTES:
        # Known before any engine has been removed in vain.
        raise DiskFull(path=store.root, free_bytes=free, needed_bytes=needed_bytes + DISK_MARGIN_BYTES)
    for holding in holdings:
        short_of_disk = free_bytes(store.root) < needed_bytes + DISK_MARGIN_BYTES
        if total + needed_bytes <= quota_bytes and not short_of_disk:
            break
        if _let_go(store, holding):
            total -= holding.size
            if not holding.partial:
                removed.append(holding.key)
    free = free_bytes(store.root)
    if free < needed_bytes + DISK_MARGIN_BYTES:
        raise DiskFull(path=store.root, free_bytes=free, needed_bytes=needed_bytes + DISK_MARGIN_BYTES)
    return removed


def sweep(store: Store, *, quarantine: bool = True) -> list[str]:
    """Delete what killed processes left behind: staging folders and lock files that nobody holds.

    Unfinished transfers too that nobody went on with for a week: half a model is gigabytes. Also empties the quarantine, unless told otherwise. Gives the paths that were deleted. Never touches a published entry.
    """
    gone: list[str] = []
    names = _listdir(f"{store.root}/{TEMPORARY}")
    by_key: dict[str, list[str]] = {}
    for name in names:
        by_key.setdefault(name.split(".", 1)[0], []).append(f"{store.root}/{TEMPORARY}/{name}")
    for name in _listdir(f"{store.root}/locks"):
        by_key.setdefault(name.removesuffix(".lock"), [])
    for holding in _partials(store):
        if time.time() - holding.last_used > _PARTIAL_KEPT_S:
            by_key.setdefault(holding.key, []).append(f"{store.root}/{PARTIAL}/{holding.key}")
    for key, folders in by_key.items():
        with try_key_lock(store, key) as ours:
            if not ours:
                continue  # somebody is making this engine right now
            for folder in folders:
                store.discard(folder)
            gone.extend(folder for folder in folders if not os.path.lexists(folder))
            remove_lock_file(store, key)
    return gone + (_empty_quarantine(store) if quarantine else [])


def _quarantined_bytes(store: Store) -> int:
    total = 0
    for folder, _, names in os.walk(f"{store.root}/{QUARANTINE}"):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total


def _empty_quarantine(store: Store) -> list[str]:
    paths = [f"{store.root}/{QUARANTINE}/{name}" for name in _listdir(f"{store.root}/{QUARANTINE}")]
    for path in paths:
        store.discard(path)
    return [path for path in paths if not os.path.lexists(path)]


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise write_error(error, path) from error


def prune(store: Store, quota_bytes: int, failed: list[CacheError] | None = None) -> list[str]:
    """Sweep leftovers and evict until the cache is within ``quota_bytes``; gives the keys evicted.

    ``failed`` gets why others could not be, which nobody uses.
    """
    sweep(store)
    return keep_quota(store, 0, quota_bytes, failed)


def keep_quota(
    store: Store, incoming_bytes: int, quota_bytes: int, failed: list[CacheError] | None = None
) -> list[str]:
    """Evict the least recently used entries until ``incoming_bytes`` more fit in the quota; gives their keys.

    As `make_room`, for bytes that are on the disk already. ``failed`` as for `prune`.
    """
    removed: list[str] = []
    holdings = _holdings(store)
    total = sum(h.size for h in holdings) + incoming_bytes
    for holding in holdings:
        if total <= quota_bytes:
            break
        if _let_go(store, holding, failed):
            total -= holding.size
            if not holding.partial:
                removed.append(holding.key)
    return removed


def _evict(store: Store, key: str, failed: list[CacheError] | None = None) -> bool:
    """Remove one entry, unless it is leased or its maker has not handed it out yet. One that cannot be removed must not
    keep the others from making room: why is added to ``failed``."""
    try:
        with key_lock(store, key, 0):
            removed = store.remove(key)
            if removed:
                remove_lock_file(store, key)
            return removed
    except CacheBusy:
        return False
    except (CacheUnwritable, DiskFull) as error:
        if failed is not None:
            failed.append(error)
        return False


def _drop_partial(store: Store, key: str) -> bool:
    """Delete what has come of one transfer, unless somebody is going on with it."""
    with try_key_lock(store, key) as ours:
        if not ours:
            return False
        path = f"{store.root}/{PARTIAL}/{key}"
        store.discard(path)
        remove_lock_file(store, key)
        return not os.path.lexists(path)


def clear(store: Store, failed: list[CacheError] | None = None) -> tuple[list[str], list[str]]:
    """Remove every entry and unfinished transfer; gives the entries' keys: those removed, and those in use, which stay.

    ``failed`` gets why others could not be removed.
    """
    sweep(store)
    for name in _listdir(f"{store.root}/{PARTIAL}"):
        _drop_partial(store, name)
    removed: list[str] = []
    kept: list[str] = []
    failures: list[CacheError] = [] if failed is None else failed
    for key in store.list_keys():
        before = len(failures)
        if _evict(store, key, failures):
            removed.append(key)
        elif len(failures) == before:
            kept.append(key)
    return removed, kept
