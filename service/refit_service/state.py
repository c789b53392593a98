"""Everything that a request may need, made once for each service."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from refit_agent import __version__, paths
from refit_agent.cache.entry import ENTRY_NAME
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import default_quota
from refit_agent.cache.verify import Verdict
from refit_agent.errors import EntryDamaged, RefitAgentError, SettingInvalid
from refit_agent.settings import cache_quota
from refit_service.jobs import Job, Jobs
from refit_service.leases import LeaseBook
from refit_service.metrics import Gauges, Tally
from refit_service.page.on_demand import PageOnDemand
from refit_service.protocol import PROTOCOL, CacheUse, SeenError, Status
from refit_service.registry import Registry
from refit_service.warm import Warmer


class Service(NamedTuple):
    """The parts of one service."""

    home: paths.Home
    store: Store
    registry: Registry
    leases: LeaseBook
    jobs: Jobs
    warmer: Warmer
    tally: Tally
    started: float
    begun: float
    connections: Callable[[], int]
    report: Callable[[BaseException, str], None]
    page: PageOnDemand

    def status(self) -> Status:
        """The document of ``GET /v1/status``."""
        jobs = self.jobs.records()
        return Status(
            version=__version__,
            protocol=PROTOCOL,
            pid=os.getpid(),
            started=self.started,
            uptime_s=round(time.monotonic() - self.begun, 3),
            idle=not jobs,
            bundles=len(self.registry),
            jobs=jobs,
            warm=self.warmer.record(),
            cache=cache_use(self.store),
            errors=tuple(self.tally.errors),
        )

    def gauges(self) -> Gauges:
        """What the metrics show of this moment."""
        use = cache_use(self.store)
        jobs = self.jobs.records()
        running = 0 if self.jobs.running is None else 1
        return Gauges(
            cache_bytes=use.bytes,
            cache_entries=use.entries,
            workers=running,
            queued=len(jobs) - running,
            leases=len(self.leases),
            bundles=len(self.registry),
            connections=self.connections(),
        )


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)


def cache_use(store: Store) -> CacheUse:
    """How full the cache is, from the sizes of its files alone."""
    total, entries = 0, 0
    for key in store.list_keys():
        size, whole = _folder_size(store.folder(key))
        total += size
        entries += whole
    try:
        quota = cache_quota()
    except SettingInvalid:
        # Who asks must learn of the service all the same: `refit-agent uninstall` has to stop it.
        quota = None
    return CacheUse(bytes=total, entries=entries, quota=default_quota(store) if quota is None else quota)


def _folder_size(folder: str) -> tuple[int, bool]:
    size, whole = 0, False
    try:
        with os.scandir(folder) as items:
            for item in items:
                size += item.stat(follow_symlinks=False).st_size
                whole = whole or item.name == ENTRY_NAME
    except OSError:  # evicted while we look
        return 0, False
    return size, whole


def note_error(tally: Tally, error: BaseException) -> None:
    """Remember the error for status and metrics."""
    code = error.code if isinstance(error, RefitAgentError) else "internal"
    message = str(error) if isinstance(error, RefitAgentError) else type(error).__name__
    tally.failures[code] += 1
    tally.errors.append(SeenError(when=time.time(), code=code, message=message[:2000]))


def note_damage(tally: Tally, warmer: Warmer, verdict: Verdict) -> None:
    """An engine was found damaged: that is told, and another is made if a registered bundle needs it."""
    left = "" if verdict.set_aside else "; it could not be set aside, and is still found"
    note_error(tally, EntryDamaged(key=verdict.key, detail=verdict.fault + left))
    warmer.look_again()


def note_job(tally: Tally, store: Store, job: Job) -> None:
    """Count what a job that ended did; not the errors that nobody foresaw, which are reported one by one."""
    if job.damage:
        # Here, and not where it is seen: many may ask for the engine before it has been made anew.
        note_error(tally, EntryDamaged(key=job.missing.key, detail=job.damage))
    if job.error is not None:
        if not job.abandoned and isinstance(job.error, RefitAgentError):
            note_error(tally, job.error)
        return
    engine = job.engine
    if engine is None:
        return
    for attempt in engine.explanation.attempts:
        tally.failures[attempt.code] += 1
    if not engine.hit:
        with contextlib.suppress(RefitAgentError):  # it was made; only its times are lost
            found = store.lookup(engine.key, touch=False)
            if isinstance(found, tuple):
                found[2].close()
                tally.add_phases(found[0].seconds)
