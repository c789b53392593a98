"""Read cached engines whole, and set aside those that are not what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from refit_agent.cache.entry import Entry
from refit_agent.cache.locks import try_key_lock
from refit_agent.cache.store import NOT_ITS_FAULT, Store
from refit_agent.digest import hash_file
from refit_agent.errors import CacheUnwritable


class Verdict(NamedTuple):
    """What `verify` found about one entry; ``fault`` is "" for a sound one."""

    key: str
    fault: str
    set_aside: str


def verify(
    store: Store, keys: Iterable[str] | None = None, on_bytes: Callable[[int], None] | None = None
) -> list[Verdict]:
    """Read every file of the entries whole and compare it with what was published.

    A damaged entry is moved to the quarantine, so that the next request makes it anew.

    Raises:
        CacheInsecure, CacheUnwritable: also if this process cannot open any more files, which is no damage.
    """
    verdicts: list[Verdict] = []
    for key in list(store.list_keys() if keys is None else keys):
        fault = _fault(store, key, on_bytes)
        if fault is not None:
            verdicts.append(Verdict(key, fault, _set_aside(store, key, fault) if fault else ""))
    return verdicts


def _fault(store: Store, key: str, on_bytes: Callable[[int], None] | None) -> str | None:
    """What is wrong with an entry, "" if nothing, None if it is gone."""
    found = store.lookup(key, touch=False)
    if not isinstance(found, tuple):
        return found
    entry, folder, lease = found
    try:  # leased meanwhile, so that it is one and the same entry from beginning to end
        return _content_fault(entry, folder, on_bytes)
    finally:
        lease.close()


def _set_aside(store: Store, key: str, fault: str) -> str:
    """Move a damaged entry to the quarantine, unless another has taken its place or is about to."""
    with try_key_lock(store, key) as ours:
        if not ours or _fault(store, key, None) != fault:
            return ""
        return store.quarantine(key)


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
