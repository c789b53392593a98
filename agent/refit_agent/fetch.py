"""Weights that are not in the bundle but at a URL: fetched once, kept in the cache like an engine.

A fetched file is an entry of the cache: found by its SHA-256, leased while it is read, counted in the quota,
evicted when it was not used for longest, and checked by `cache verify`. What has come of an unfinished transfer
waits in ``partial/`` for the next try, in whatever process, for a week.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from refit_agent.bundle import Bundle
from refit_agent.cache.disk import write_error
from refit_agent.cache.entry import SCHEMA, Entry, EntryFile
from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import Lease, Store
from refit_agent.cache.upkeep import PARTIAL, make_room, sweep
from refit_agent.cache.verify import verify
from refit_agent.errors import (
    BundleFileMissing,
    Cancelled,
    EntryDamaged,
    FetchFailed,
    FetchForbidden,
    RefitError,
    WorkerCrashed,
    WorkerTimeout,
)
from refit_agent.keys import engine_key
from refit_agent.manifest import FileRef
from refit_agent.refit.launch import run_worker
from refit_agent.refit.messages import FetchJob, Located, Phase
from refit_agent.settings import fetch_protocols
from refit_agent.shown_url import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refit_agent.progress import ProgressMeter

_NAME = "weights"


class Fetching(NamedTuple):
    """On whose behalf: who is told of progress, and until when it may take."""

    store: Store
    meter: ProgressMeter
    cancelled: Callable[[], bool]
    deadline_s: float
    quota: int
    background: bool


def locate_weights(
    bundle: Bundle, refs: Sequence[FileRef], how: Fetching, leases: contextlib.ExitStack
) -> list[Located]:
    """Where the files are: in the bundle's folder, in the cache, or there after they have been fetched.

    Nothing is asked of the network while all are there. Fetched ones are leased until ``leases`` is closed.

    Raises:
        BundleError: as `Bundle.locate`, for a file without a URL.
        FetchError, CacheError, Cancelled.
    """
    found: dict[str, str] = {}
    missing: list[FileRef] = []
    for ref in refs:
        place = _here(bundle, ref, how.store, leases)
        if place is None:
            missing.append(ref)
        else:
            found[ref.path] = place
    total, done = sum(ref.size for ref in missing), 0
    ends = time.monotonic() + how.deadline_s  # for all of them together
    for ref in missing:
        entry, folder, lease = _fetch(bundle, ref, how, ends, done, total)
        leases.callback(lease.close)
        found[ref.path] = f"{folder}/{entry.plan}"
        done += ref.size
    return [Located(path=found[ref.path], ref=FileRef(path=ref.path, size=ref.size, sha256=ref.sha256)) for ref in refs]


def _facts(ref: FileRef) -> dict[str, str]:
    return {"fetched": ref.sha256, "size": str(ref.size)}


def _here(bundle: Bundle, ref: FileRef, store: Store, leases: contextlib.ExitStack) -> str | None:
    """The file's path, None if it has to be fetched."""
    try:
        return bundle.locate(ref)
    except BundleFileMissing:
        if ref.url is None:
            raise
    found = store.lookup(engine_key(_facts(ref)))
    if not isinstance(found, tuple):
        return None
    leases.callback(found[2].close)
    return f"{found[1]}/{found[0].plan}"


def _fetch(
    bundle: Bundle, ref: FileRef, how: Fetching, ends: float, before: int, total: int
) -> tuple[Entry, str, Lease]:
    """The file as an entry of the cache; ``before`` of ``total`` bytes of all files have come already."""
    assert ref.url is not None
    url, facts = ref.url, _facts(ref)
    key, scheme = engine_key(facts), urlsplit(url).scheme
    allowed = fetch_protocols()
    if scheme not in allowed:
        raise FetchForbidden(path=ref.path, scheme=scheme, allowed=", ".join(sorted(allowed)) or "none")
    store = how.store
    store.prepare()
    with key_lock(store, key, max(0.0, ends - time.monotonic()), lambda: _wait(how)):
        found = store.lookup(key)
        if isinstance(found, tuple):
            return found
        if found is not None:
            from refit_agent.logs import get_logger

            words = get_logger("refit_agent.fetch")
            words.warning("cached weights are damaged", key=key, detail=found, moved_to=store.quarantine(key))
        partial = _partial(store, key)
        sweep(store, quarantine=False)  # transfers that nobody went on with; ours is under the lock
        # What has come already is counted as held, so that quota and disk are asked for the whole file once.
        make_room(store, max(0, ref.size - _size(partial)), how.quota)
        staging = store.stage(key)
        log = f"{staging}.log"
        try:
            job = FetchJob(
                staging=os.path.dirname(partial),
                target=partial,
                url=url,
                size=ref.size,
                sha256=ref.sha256,
                background=how.background,
            )
            left = max(0.0, ends - time.monotonic())
            run_worker(job, log, left, lambda event: _tell(how, event, before, total), how.cancelled)
            store.publish(staging, _entry(bundle, ref, key, facts, partial, staging))
        except Cancelled:
            raise
        except RefitError as error:
            raise _failed(error, ref, how, _size(partial)) from error
        finally:
            store.discard(staging)
            store.discard(log)
        found = store.lookup(key)
    if not isinstance(found, tuple):
        raise EntryDamaged(key=key, detail=found or "it vanished after it was published")
    return found


def _failed(error: RefitError, ref: FileRef, how: Fetching, come: int) -> FetchFailed:
    """A worker that was too slow, or died, as trouble of the source: a RefitError is remembered as the engine's."""
    from refit_agent.refit.transfer import scrubbed  # it imports what speaks HTTP

    assert ref.url is not None
    facts: dict[str, object] = {}
    if isinstance(error, WorkerTimeout):
        why = f"it took longer than {round(how.deadline_s, 3)} s"
        facts["hint"] = "Try again, or allow more time with --deadline: what has come already is kept."
    elif isinstance(error, WorkerCrashed):
        # Without its last words: there may be a secret of the URL in them.
        why = f"the worker ended with {error.facts.get('how', '?')}"
    else:
        why = scrubbed(str(error), ref.url).rstrip(".")
        if "hint" in error.facts:
            facts["hint"] = error.hint
    detail = f"{why}; {come} of {ref.size} bytes have come; the next try goes on from there"
    return FetchFailed(url=shown(ref.url), detail=detail, **facts)


def forget_fetched(store: Store, path: str) -> bool:
    """Set aside the fetched file at ``path`` if it is damaged; whether locating it once more may bring a sound one.

    For a file that is not what its entry says although its size and time are: no look-up finds that, so every try
    would fail on it. False for a path that is no fetched file of the cache. The caller holds no lease on it.
    """
    folder, name = os.path.split(path)
    key = os.path.basename(folder)
    if name != _NAME or folder != store.folder(key):
        return False
    found = store.lookup(key, touch=False)
    if isinstance(found, tuple):
        found[2].close()
        if "fetched" not in found[0].facts:
            return False
    # Read again: another process may have put a sound one in its place by now, which must stay.
    for verdict in verify(store, [key]):
        if verdict.error is not None:
            raise verdict.error
    return True


def _wait(how: Fetching) -> None:
    if how.cancelled():
        raise Cancelled()
    how.meter("wait")


def _tell(how: Fetching, event: Phase, before: int, total: int) -> None:
    how.meter(event.phase, before + event.done, total)


def _partial(store: Store, key: str) -> str:
    folder = f"{store.root}/{PARTIAL}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
    return f"{folder}/{key}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _entry(bundle: Bundle, ref: FileRef, key: str, facts: dict[str, str], partial: str, staging: str) -> Entry:
    """Move the whole file into the staging folder, and describe it there."""
    try:
        os.rename(partial, f"{staging}/{_NAME}")
        status = os.stat(f"{staging}/{_NAME}")
    except OSError as error:
        raise write_error(error, partial) from error
    if status.st_size != ref.size:
        raise FetchFailed(url=ref.path, detail=f"{status.st_size} bytes came, {ref.size} were wanted")
    app = bundle.manifest.app
    file = EntryFile(name=_NAME, size=ref.size, mtime_ns=status.st_mtime_ns, sha256=ref.sha256)
    return Entry(
        schema=SCHEMA,
        key=key,
        plan=_NAME,
        files=(file,),
        runtime="fetched",
        runtime_version="",
        target="weights",
        app=f"{app.id} {app.version}",
        model=ref.path,
        profile=None,
        engine=ref.path,
        created=time.time(),
        facts=facts,
    )
