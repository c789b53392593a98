"""The parts of a service in this process, where a test can reach what it must change; jobs and workers are real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import psutil

from bundles import MODEL
from refit_agent import paths
from refit_service.jobs import Job, Jobs, Waiter
from refit_service.leases import LeaseBook
from refit_service.lookup import Missing, Wish, look_up
from refit_service.registry import Registry
from refit_service.warm import Warmer


class Parts:
    """What a service consists of but for its connections. Made in a running event loop."""

    def __init__(self) -> None:
        home = paths.home()
        self.registry = Registry(home.state)
        self.ended: list[Job] = []
        self.faults: list[BaseException] = []
        self.leases = LeaseBook(asyncio.get_running_loop())
        self.jobs = Jobs(self.leases, self.ended.append)
        self.warmer = Warmer(self.registry, self.jobs, home.state, lambda error, _: self.faults.append(error))

    @property
    def warming(self) -> tuple[str, str]:
        """What the status says of it."""
        record = self.warmer.record()
        return record.state, record.reason


def joined(parts: Parts, bundle: Path, *, background: bool = False) -> Waiter:
    """One who waits for the engine of the bundle from now on."""
    wish = Wish(str(bundle), MODEL, background=background)
    missing = look_up(wish)
    assert isinstance(missing, Missing)
    waiter = Waiter(wish, missing, 60)
    parts.jobs.join(waiter, "test")
    return waiter


async def ended(waiter: Waiter) -> None:
    """Wait for the end of what it waits for, and leave."""
    job = waiter.job
    assert job is not None
    while not job.done:
        await job.wait_change(job.version, 1)


async def until(condition: Callable[[], object], seconds: float = 15) -> None:
    """As the one for threads."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while not condition():
        assert loop.time() < ends, "it did not happen"
        await asyncio.sleep(0.02)


def workers() -> list[psutil.Process]:
    """Children of this process."""
    return psutil.Process().children()


def run(test: Coroutine[None, None, None]) -> None:
    """Run a test that is a coroutine, in a minute at most."""

    async def limited() -> None:
        await asyncio.wait_for(test, 60)

    asyncio.run(limited())
