"""One engine in the making, and those who wait for it. Used by the event loop's thread alone."""

from __future__ import annotations

import asyncio
import time

from refit_agent.engine import Engine
from refit_agent.errors import CacheBusy, ServiceStopping, WorkerTimeout
from refit_agent.progress import Progress
from refit_service.leases import Process
from refit_service.lookup import Missing, Wish
from refit_service.protocol import JobRecord, LeaseRecord, ProgressEvent

_QUEUED = Progress(phase="queue", text="waiting for its turn", fraction=0.0)
#: Below this share of the work an estimate of the rest would be a guess.
_LEAST_FRACTION = 0.05
#: Background work that has made way so often, and has lost so much of its time by that, does not any more: apps that
#: come and go would keep it from its end for ever. Both, since an app that starts asks for many engines in a row.
_MOST_TIMES = 3
_MOST_LOST_S = 60.0


class Waiter:
    """One who waits for a job: what for, and for how long the lease is to hold.

    Once the job is done there is ``engine``, with a ``lease`` on it unless ``ttl_s`` is 0, or ``error``. Or there
    is neither: the job worked on another's question, and what came of it is no answer to this one's. Ask again then.
    """

    __slots__ = ("asked", "engine", "error", "job", "lease", "missing", "process", "ttl_s", "wish")

    def __init__(self, wish: Wish, missing: Missing, ttl_s: float, process: Process | None = None) -> None:
        self.wish = wish
        self.missing = missing
        self.ttl_s = ttl_s
        self.process = process
        self.asked = time.monotonic()
        self.job: Job | None = None
        self.engine: Engine | None = None
        self.error: BaseException | None = None
        self.lease: LeaseRecord | None = None


class Job:
    """One engine in the making. ``engine`` or ``error`` is there once it is ``done``.

    Wishes for one engine may be different questions: of other bundles, for other targets, with other second
    choices. One of them is worked on, ``wish``; the others have an answer if their engine comes of it.
    """

    def __init__(self, waiter: Waiter, request_id: str) -> None:
        self.wish, self.missing = waiter.wish, waiter.missing
        self.deadline_s = waiter.wish.deadline_s
        self.request_id = request_id
        #: What is wrong with the engine in the cache that this one is to replace.
        self.damage = waiter.missing.damage
        self.since = time.time()
        self.waiters: list[Waiter] = []
        self.progress = _QUEUED
        self.begun: float | None = None
        self.done = False
        self.abandoned = False
        #: It is to make way for another, and to begin anew later.
        self.yields = False
        #: Its thread knows that it is to stop.
        self.told = False
        #: Until when it may finish although an app waits for another, on the loop's clock; None while none does.
        self.spared_until: float | None = None
        #: Its worker has the least priority.
        self.low = False
        #: It has made way often enough.
        self.stays = False
        self._times, self._lost_s = 0, 0.0
        self.engine: Engine | None = None
        self.error: BaseException | None = None
        self.version = 0
        self._sleepers: set[asyncio.Future[None]] = set()

    @property
    def background(self) -> bool:
        """Whether no app waits for it."""
        return all(waiter.wish.background for waiter in self.waiters)

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

    def begin(self) -> None:
        """It is its turn. An app's wish goes first, for its priority; the worker has as long as anybody would wait."""
        first = next((waiter for waiter in self.waiters if not waiter.wish.background), self.waiters[0])
        self.wish, self.missing = first.wish, first.missing
        self.deadline_s = max(waiter.wish.deadline_s for waiter in self.waiters)
        # Nor is it done with what others leave once apps have to wait for its end.
        self.low = first.wish.background and not self.stays
        self.begun = time.monotonic()
        self.yields = self.told = False
        self.spared_until = None
        self.changed()

    def put_back(self) -> None:
        """It has made way, and waits for its turn again."""
        self._times += 1
        self._lost_s += 0.0 if self.begun is None else time.monotonic() - self.begun
        self.stays = self._times >= _MOST_TIMES and self._lost_s >= _MOST_LOST_S
        self.begun = None
        self.progress = _QUEUED
        self.changed()

    def end(self, outcome: Engine | BaseException) -> None:
        """It is over: everybody who waits gets what is an answer to him. `changed` has still to be called."""
        self.done = True
        if isinstance(outcome, Engine):
            self.engine = outcome
        else:
            self.error = outcome
        for waiter in self.waiters:
            if isinstance(outcome, Engine):
                if outcome.key == waiter.missing.key or self._answers(waiter):
                    waiter.engine = outcome
            elif isinstance(outcome, ServiceStopping) or (
                self._answers(waiter) and not self._too_hasty(waiter) and not self._came_later(waiter)
            ):
                waiter.error = outcome

    def _answers(self, waiter: Waiter) -> bool:
        """Whether whatever came of this job, a second choice or an error, is what would have come of his own."""
        asked, worked_on = (wish._replace(deadline_s=0, background=False) for wish in (waiter.wish, self.wish))
        return asked == worked_on and waiter.missing.manifest == self.missing.manifest

    def _too_hasty(self, waiter: Waiter) -> bool:
        """Whether it was given up at the deadline of others, when he wants to wait for longer."""
        return isinstance(self.error, (WorkerTimeout, CacheBusy)) and waiter.wish.deadline_s > self.deadline_s

    def _came_later(self, waiter: Waiter) -> bool:
        """Whether it may be due to weights that are not the ones he asked for: their external data, which the flight
        does not name, may have been replaced since it was begun."""
        return waiter.wish.weights is not None and self.begun is not None and waiter.asked > self.begun
