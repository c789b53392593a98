"""The queue of engines in the making: one job for each engine however many wait for it, one job at a time.

What an app waits for goes before background work. If that is under way already it is stopped, and put back into the
queue: it may take minutes, and there is one GPU. If an app comes to want what is made in the background, it is begun
anew with an app's priority, which no worker can be given later. Used by the event loop's thread alone, but for the
job's own thread, which runs `work.make`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from refit_agent.engine import Engine
from refit_agent.errors import Cancelled, ServiceStopping
from refit_agent.progress import Progress
from refit_service.job import Job, Waiter
from refit_service.leases import LeaseBook
from refit_service.protocol import JobRecord
from refit_service.threads import in_thread
from refit_service.work import make

__all__ = ["Job", "Jobs", "Waiter"]

#: Background work that has got further may finish although an app waits, within some seconds if that waits for another
#: engine: what it has done would be lost.
_NEARLY_DONE = 0.8
_FINISH_S = 10.0


class Jobs:
    """The queue. ``on_end`` is told of every job that ended, before anybody who waits for it."""

    def __init__(self, leases: LeaseBook, on_end: Callable[[Job], None]) -> None:
        self._leases = leases
        self._on_end = on_end
        self._flights: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._running: Job | None = None
        self._timer: asyncio.TimerHandle | None = None
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

    def join(self, waiter: Waiter, request_id: str) -> Job:
        """Wait for the engine, with whoever waits for it already. Every `join` needs a `leave`. ``request_id``
        goes into the log lines of a job that begins with this.

        Raises:
            ServiceStopping.
        """
        if self.stopping:
            raise ServiceStopping()
        flight = waiter.missing.flight
        job = self._flights.get(flight)
        if job is None:
            job = self._flights[flight] = Job(waiter, request_id)
            self._queue.append(job)
        job.waiters.append(waiter)
        waiter.job = job
        self._start_next()
        self._make_way()
        return job

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer. When nobody does, the work is stopped."""
        job, waiter.job = waiter.job, None
        if job is None:
            return
        job.waiters.remove(waiter)
        if job.done:
            return
        if not job.waiters:
            # From now on a new wish for the same engine is a new job: this one cannot be brought back.
            job.abandoned = True
            self._forget_flight(job)
            if job in self._queue:
                self._queue.remove(job)
        self._make_way()  # perhaps it was the last app

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

    def _make_way(self) -> None:
        """Have the running job stopped, or not any more, as who waits now wants it. For whenever that changes."""
        if self._timer is not None:
            self._timer.cancel()
        job = self._running
        if job is None:
            return
        if not self._is_in_the_way(job):
            job.yields, job.spared_until = False, None
        elif not job.yields and job.progress.fraction > _NEARLY_DONE:
            loop = asyncio.get_running_loop()
            if job.spared_until is None:
                job.spared_until = loop.time() + _FINISH_S
            if loop.time() >= job.spared_until:
                job.yields = True
            else:
                self._timer = loop.call_at(job.spared_until, self._make_way)
        else:
            job.yields = True

    def _is_in_the_way(self, job: Job) -> bool:
        if job.background:
            return not job.stays and not all(other.background for other in self._queue)
        # An app has come to want it, and waits for a worker that gets what all others leave.
        return job.low and (job.yields or job.progress.fraction <= _NEARLY_DONE)

    def _start_next(self) -> None:
        while self._running is None and self._queue:
            job = next((job for job in self._queue if not job.background), self._queue[0])
            self._queue.remove(job)
            job.begin()
            try:
                self._start(job)
            except RuntimeError as error:  # no thread to be had now; the next one may have more luck
                self._settle(job, error)

    def _start(self, job: Job) -> None:
        on_progress = _reporter(job, asyncio.get_running_loop())
        wish, missing, deadline_s = job.wish._replace(background=job.low), job.missing, job.deadline_s

        def cancelled() -> bool:
            # What it has been told cannot be taken back.
            job.told = job.told or job.abandoned or job.yields
            return job.told

        def work() -> Engine:
            return make(wish, missing, deadline_s, job.request_id, on_progress, cancelled)

        future = in_thread(work, "refit-job")
        self._running = job
        future.add_done_callback(lambda done: self._finish(job, done))

    def _finish(self, job: Job, done: asyncio.Future[Engine]) -> None:
        self._running = None
        error = done.exception()
        try:
            if isinstance(error, Cancelled) and job.waiters and not self.stopping:
                job.put_back()
                self._queue.insert(0, job)
            elif error is not None and self.stopping and (job.abandoned or job.told):
                self._settle(job, ServiceStopping())
            else:
                self._settle(job, done.result() if error is None else error)
        finally:
            self._ended.set()
            self._start_next()

    def _settle(self, job: Job, outcome: Engine | BaseException) -> None:
        self._forget_flight(job)
        job.end(outcome)
        try:
            if isinstance(outcome, Engine):
                # All at once, before any of them can end one: the last lease that ends closes the engine.
                for waiter in job.waiters:
                    if waiter.engine is not None and waiter.ttl_s > 0:
                        waiter.lease = self._leases.grant(outcome.key, outcome, waiter.ttl_s, waiter.process)
                if not any(waiter.lease for waiter in job.waiters):
                    outcome.close()
            self._on_end(job)
        finally:
            job.changed()  # whatever happens there, nobody must wait for ever

    def _forget_flight(self, job: Job) -> None:
        if self._flights.get(job.missing.flight) is job:
            del self._flights[job.missing.flight]


def _reporter(job: Job, loop: asyncio.AbstractEventLoop) -> Callable[[Progress], None]:
    """What the job's thread tells its progress to."""
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

    return on_progress
