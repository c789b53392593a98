"""Engines in the making: one job for each engine however many wait for it, one at a time, apps before warming.

Used by the event loop's thread alone, but for the job's own thread, which runs `ensure_engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from refit_agent.engine import Engine
from refit_agent.errors import ServiceStopping
from refit_agent.progress import Progress
from refit_agent.provision import ensure_engine
from refit_service.leases import LeaseBook, Process
from refit_service.lookup import Missing, Wish
from refit_service.protocol import JobRecord, LeaseRecord, ProgressEvent
from refit_service.threads import in_thread

_QUEUED = Progress(phase="queue", text="waiting for its turn", fraction=0.0)
#: Below this share of the work an estimate of the rest would be a guess.
_LEAST_FRACTION = 0.05


class Waiter:
    """One who waits for a job; ``lease`` is there when the job went well, unless ``ttl_s`` is 0."""

    __slots__ = ("background", "lease", "process", "ttl_s")

    def __init__(self, ttl_s: float, process: Process | None = None, *, background: bool = False) -> None:
        self.ttl_s = ttl_s
        self.process = process
        self.background = background
        self.lease: LeaseRecord | None = None


class Job:
    """One engine in the making. ``engine`` or ``error`` is there once it is ``done``."""

    def __init__(self, wish: Wish, missing: Missing, request_id: str) -> None:
        self.wish = wish
        self.request_id = request_id
        self.missing = missing
        self.since = time.time()
        self.waiters: list[Waiter] = []
        self.progress = _QUEUED
        self.begun: float | None = None
        self.done = False
        self.abandoned = False
        self.engine: Engine | None = None
        self.error: BaseException | None = None
        self.version = 0
        self._sleepers: set[asyncio.Future[None]] = set()

    @property
    def background(self) -> bool:
        """Whether no app waits for it."""
        return all(waiter.background for waiter in self.waiters)

    def changed(self) -> None:
        """Wake whoever watches. Only the newest progress is kept: a slow reader gets fewer lines, not older ones."""
        self.version += 1
        sleepers, self._sleepers = self._sleepers, set()
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def wait_change(self, seen: int, timeout_s: float) -> None:
        """Return when the job is done, has got beyond version ``seen``, or after ``timeout_s`` seconds."""
        if self.done or self.version != seen:
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            await asyncio.wait((sleeper,), timeout=timeout_s)
        finally:
            self._sleepers.discard(sleeper)

    def event(self) -> ProgressEvent:
        """The present progress as a line of the stream."""
        now = self.progress
        eta = None
        if self.begun is not None and _LEAST_FRACTION <= now.fraction < 1:
            eta = round((time.monotonic() - self.begun) / now.fraction * (1 - now.fraction), 1)
        return ProgressEvent(
            phase=now.phase, text=now.text, fraction=now.fraction, done=now.done, total=now.total, eta_s=eta
        )

    def record(self) -> JobRecord:
        """The job as the status shows it."""
        now = self.progress
        return JobRecord(
            key=self.missing.key,
            model=self.wish.model,
            engine=self.missing.engine,
            target=self.missing.target,
            phase=now.phase,
            fraction=now.fraction,
            done=now.done,
            total=now.total,
            waiters=len(self.waiters),
            background=self.background,
            since=self.since,
        )


class Jobs:
    """The queue. ``on_end`` is told of every job that ended, before anybody who waits for it."""

    def __init__(self, leases: LeaseBook, on_end: Callable[[Job], None]) -> None:
        self._leases = leases
        self._on_end = on_end
        self._flights: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._running: Job | None = None
        self._ended = asyncio.Event()
        self.stopping = False

    def records(self) -> tuple[JobRecord, ...]:
        """The running job, then those that wait."""
        running = [] if self._running is None else [self._running]
        return tuple(job.record() for job in [*running, *self._queue])

    @property
    def running(self) -> Job | None:
        """The one that is worked on."""
        return self._running

    def join(self, wish: Wish, missing: Missing, waiter: Waiter, request_id: str) -> Job:
        """Wait for the engine, with whoever waits for it already. Every `join` needs a `leave`. ``request_id``
        goes into the log lines of a job that begins with this.

        Raises:
            ServiceStopping.
        """
        if self.stopping:
            raise ServiceStopping()
        job = self._flights.get(missing.flight)
        if job is None:
            job = Job(wish, missing, request_id)
            self._flights[missing.flight] = job
            self._queue.append(job)
        job.waiters.append(waiter)
        self._start_next()
        return job

    def leave(self, job: Job, waiter: Waiter) -> None:
        """Wait no longer. When nobody does, the work is stopped."""
        if waiter in job.waiters:
            job.waiters.remove(waiter)
        if job.waiters or job.done or job.abandoned:
            return
        # From now on a new wish for the same engine is a new job: this one cannot be brought back.
        job.abandoned = True
        if self._flights.get(job.missing.flight) is job:
            del self._flights[job.missing.flight]
        if job in self._queue:
            self._queue.remove(job)

    async def stop(self, patience_s: float, deadline_s: float) -> bool:
        """Take no more work, give the running job ``patience_s`` seconds, then stop it; whether it has ended
        within ``deadline_s`` more. Those in the queue end at once."""
        self.stopping = True
        waiting, self._queue = self._queue, []
        for job in waiting:
            self._settle(job, ServiceStopping())
        if self._running is not None and not self._running.background:
            await self._wait_end(patience_s)
        if self._running is not None:
            self._running.abandoned = True
            await self._wait_end(deadline_s)
        return self._running is None

    async def _wait_end(self, limit_s: float) -> None:
        self._ended.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), limit_s)

    def _start_next(self) -> None:
        if self._running is not None or not self._queue:
            return
        job = next((job for job in self._queue if not job.background), self._queue[0])
        self._queue.remove(job)
        self._running = job
        job.begun = time.monotonic()
        future = in_thread(_work(job, asyncio.get_running_loop()), "refit-job")
        future.add_done_callback(lambda done: self._finish(job, done))

    def _finish(self, job: Job, done: asyncio.Future[Engine]) -> None:
        self._running = None
        error = done.exception()
        if error is not None and job.abandoned and self.stopping:
            error = ServiceStopping()
        self._settle(job, done.result() if error is None else error)
        self._ended.set()
        self._start_next()

    def _settle(self, job: Job, outcome: Engine | BaseException) -> None:
        if self._flights.get(job.missing.flight) is job:
            del self._flights[job.missing.flight]
        job.done = True
        if isinstance(outcome, Engine):
            job.engine = outcome
            # All at once, before any of them can end one: the last lease that ends closes the engine.
            for waiter in job.waiters:
                if waiter.ttl_s > 0:
                    waiter.lease = self._leases.grant(outcome.key, outcome, waiter.ttl_s, waiter.process)
            if not any(waiter.lease for waiter in job.waiters):
                outcome.close()
        else:
            job.error = outcome
        try:
            self._on_end(job)
        finally:
            job.changed()  # whatever happens there, nobody must wait for ever


def _work(job: Job, loop: asyncio.AbstractEventLoop) -> Callable[[], Engine]:
    """What the job's thread does."""
    told = False

    def tell() -> None:
        nonlocal told
        told = False
        job.changed()

    def on_progress(progress: Progress) -> None:
        nonlocal told
        job.progress = progress
        # One wake-up on its way is enough: a worker that reports without a pause must not flood the loop.
        if not told:
            told = True
            loop.call_soon_threadsafe(tell)

    def work() -> Engine:
        import structlog  # the first job has it imported in any case

        structlog.contextvars.bind_contextvars(request=job.request_id)
        wish = job.wish
        return ensure_engine(
            wish.bundle,
            wish.model,
            wish.profile,
            wish.target,
            on_progress,
            weights=wish.weights,
            deadline_s=wish.deadline_s,
            retry_failed=wish.retry_failed,
            background=wish.background,
            cancelled=lambda: job.abandoned,
            service=False,
        )

    return work
