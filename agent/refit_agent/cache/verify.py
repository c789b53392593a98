"""Read cached engines whole, and set aside those that are not what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from refit_agent.cache.disk import NOT_ITS_FAULT
from refit_agent.cache.entry import Entry
from refit_agent.cache.locks import try_key_lock
from refit_agent.cache.store import Store
from refit_agent.digest import hash_file
from refit_agent.errors import CacheUnwritable


class Verdict(NamedTuple):
    """What `verify` found about one entry; ``fault`` is "" for a sound one, ``set_aside`` where a damaged one is now, ""
    if it could not be moved: then it is still where look-ups find it."""

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
        verdict = _confirmed(store, key, fault) if fault else None if fault is None else Verdict(key, "", "")
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def _fault(store: Store, key: str, on_bytes: Callable[[int], None] | None = None) -> str | None:
    """What is wrong with an entry, "" if nothing, None if it is gone."""
    found = store.lookup(key, touch=False)
    if not isinstance(found, tuple):
        return found
    entry, folder, lease = found
    # Not leased while it is read, which may take minutes: nobody uses it, and room that it must make way for is wanted
    # now. What was removed or replaced meanwhile is seen when the fault is confirmed.
    lease.close()
    return _content_fault(entry, folder, on_bytes)


def _confirmed(store: Store, key: str, fault: str) -> Verdict | None:
    """The verdict on an entry that was found to have that fault, which is set aside; None if it is gone."""
    with try_key_lock(store, key) as ours:
        if not ours:  # somebody is making it anew, or no lock can be had
            return Verdict(key, fault, "")
        again = _fault(store, key)
        if again is None:
            return None
        if again != fault:  # another has taken its place, or was about to while it was read
            return Verdict(key, again, "")
        try:
            return Verdict(key, fault, store.quarantine(key))
        except CacheUnwritable:  # what is known of it must be told all the same
            return Verdict(key, fault, "")


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
