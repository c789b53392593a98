"""Entries of the cache as JSON documents: for `refit-agent cache list` and for the service."""

from __future__ import annotations

import os
import sys

from refit_agent.cache.entry import ENTRY_NAME
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import Cached, default_quota
from refit_agent.cache.verify import Verdict
from refit_agent.settings import cache_quota


def quota(store: Store) -> int:
    """The cache's limit in bytes, from the environment or by default."""
    wanted = cache_quota()
    return default_quota(store) if wanted is None else wanted


def is_leased(store: Store, key: str) -> bool | None:
    """Whether some process uses the entry; None where the system does not let us tell."""
    if sys.platform == "win32":
        return None
    from refit_agent.cache import _posix

    try:
        fd = os.open(os.path.join(store.folder(key), ENTRY_NAME), _posix.OPEN_FLAGS)
    except OSError:
        return False
    try:
        return not _posix.lock_exclusive(fd)
    finally:
        os.close(fd)


def entry_document(store: Store, cached: Cached) -> dict[str, object]:
    """One entry, with whether somebody uses it."""
    entry = cached.entry
    known: dict[str, object] = {} if entry is None else {
        "app": entry.app, "model": entry.model, "profile": entry.profile, "target": entry.target,
        "runtime": entry.runtime, "runtime_version": entry.runtime_version, "created": entry.created,
        "golden_error": entry.golden_error, "path": f"{store.folder(cached.key)}/{entry.plan}",
    }  # fmt: skip
    return {
        "key": cached.key,
        **known,
        "bytes": cached.size,
        "last_used": cached.last_used,
        "leased": is_leased(store, cached.key),
        "fault": cached.fault,
    }


def verdict_document(verdict: Verdict) -> dict[str, object]:
    """What is known of one entry that was read whole; ``unread`` is why it could not be."""
    return {
        "key": verdict.key,
        "ok": not verdict.fault and verdict.error is None,
        "fault": verdict.fault,
        "set_aside": verdict.set_aside,
        "unread": "" if verdict.error is None else str(verdict.error),
    }
