"""A job that cannot be worked on, or whose end goes wrong, holds up no other."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bundles import MODEL, REAL, make_bundle
from refit_service import job as job_module
from refit_service import jobs
from refit_service.jobs import Job, Jobs
from refit_service.threads import in_thread

from .altered import talking_runtime
from .in_process import Parts, ended, joined, run, workers
from .in_process import until as soon
from .running import Running, read_answer, until


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Bundles with different engines."""
    return [make_bundle(tmp_path / f"b{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime for workers of this process that waits for the file "go", and counts its imports in "count"."""
    folder = talking_runtime(tmp_path / "waiting", "wait()")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_system_without_threads_fails_one_job_not_the_queue(
    monkeypatch: pytest.MonkeyPatch, three: list[Path]
) -> None:
    """Whoever waited for it is told, and the next one is made when there is a thread for it."""
    left = 1

    def sparse(work: Callable[[], Any], name: str) -> asyncio.Future[Any]:
        nonlocal left
        if left:
            left -= 1
            raise RuntimeError("can't start new thread")
        return in_thread(work, name)

    monkeypatch.setattr(jobs, "in_thread", sparse)

    async def test() -> None:
        parts = Parts()
        first = joined(parts, three[0])
        await ended(first)
        assert isinstance(first.error, RuntimeError)
        assert parts.ended[0].error is first.error
        second, again = joined(parts, three[1]), joined(parts, three[0])
        for waiter in (second, again):
            await ended(waiter)
            assert waiter.engine is not None
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


def test_a_fault_at_the_end_of_a_job_does_not_stop_the_next(three: list[Path]) -> None:
    """Such as a log that cannot be written."""

    async def test() -> None:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        parts = Parts()
        fault = ValueError("no log")

        def on_end(job: Job) -> None:
            parts.ended.append(job)
            if len(parts.ended) == 1:
                raise fault

        parts.jobs = Jobs(parts.leases, on_end)
        waiters = [joined(parts, bundle) for bundle in three]
        for waiter in waiters:
            await ended(waiter)
            assert waiter.engine is not None and waiter.lease is not None
        assert told == [fault]
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


def test_work_that_makes_way_and_is_given_up_at_once(
    evil_runtime: Callable[[str], Path], tmp_path: Path, three: list[Path]
) -> None:
    """It is not put back into the queue: nobody waits for it."""
    go = tmp_path / "go"
    evil_runtime(f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.02)\n" + REAL)

    async def test() -> None:
        parts = Parts()
        later = joined(parts, three[0], background=True)
        await soon(workers)
        sooner = joined(parts, three[1])
        parts.jobs.leave(later)
        parts.jobs.leave(later)
        go.touch()
        await ended(sooner)
        assert sooner.engine is not None
        assert parts.jobs.records() == ()
        assert [job.abandoned for job in parts.ended] == [True, False]
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


def test_background_work_ends_although_apps_come_and_go(
    monkeypatch: pytest.MonkeyPatch, waiting: Path, three: list[Path]
) -> None:
    """It makes way some times, and then not any more; nor is it done with the least priority when apps wait for it."""
    monkeypatch.setattr(job_module, "_MOST_LOST_S", 0.01)

    async def begun(times: int) -> psutil.Process:
        count = waiting / "count"
        await soon(lambda: count.exists() and count.stat().st_size == times)
        (worker,) = workers()
        return worker

    async def test() -> None:
        parts = Parts()
        later = joined(parts, three[0], background=True)
        own = psutil.Process().nice()
        for times in range(1, 4):
            worker = await begun(2 * times - 1)
            assert worker.nice() == min(19, own + 19)
            app = joined(parts, three[times % 2 + 1])
            await begun(2 * times)
            assert not worker.is_running()
            parts.jobs.leave(app)
        worker = await begun(7)
        assert worker.nice() == min(19, own + 5)
        app = joined(parts, three[1])
        await asyncio.sleep(0.5)
        assert worker.is_running()
        parts.ended.clear()
        (waiting / "go").touch()
        for waiter in (later, app):
            await ended(waiter)
            assert waiter.engine is not None
        assert [job.wish.bundle for job in parts.ended] == [str(three[0]), str(three[1])]
        assert (waiting / "count").read_text() == "x" * 8
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


def test_work_that_lost_little_goes_on_making_way(waiting: Path, three: list[Path]) -> None:
    """An app that starts asks for many engines, one after the other."""

    async def test() -> None:
        parts = Parts()
        later = joined(parts, three[0], background=True)
        for times in range(1, 6):
            await soon(lambda: later.job is not None and later.job is parts.jobs.running)
            await soon(workers)
            app = joined(parts, three[times % 2 + 1])
            await soon(lambda app=app: app.job is parts.jobs.running)
            parts.jobs.leave(app)
        (waiting / "go").touch()
        await ended(later)
        assert later.engine is not None
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


@pytest.mark.parametrize("told", [False, True])
def test_an_app_that_leaves_at_once(waiting: Path, three: list[Path], told: bool) -> None:
    """Work that has not yet been told to stop goes on; what has been told is begun anew."""

    async def test() -> None:
        parts = Parts()
        later = joined(parts, three[0], background=True)
        job = later.job
        assert job is not None
        await soon(lambda: (waiting / "count").exists())
        app = joined(parts, three[1])
        assert job.yields
        if told:
            ends = time.monotonic() + 5
            while not job.told and time.monotonic() < ends:  # without a pause: the loop must not hear of its end
                time.sleep(0.001)
            assert job.told
        parts.jobs.leave(app)
        assert not job.yields
        (waiting / "go").touch()
        await ended(later)
        assert later.engine is not None and later.error is None
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


def test_each_app_waits_as_long_for_what_is_nearly_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, three: list[Path]
) -> None:
    """Although another one waited before it, and gave up."""
    monkeypatch.setattr(jobs, "_FINISH_S", 1.0)
    nearly = talking_runtime(tmp_path / "nearly", 'tell("check")\nwait()')
    monkeypatch.syspath_prepend(str(nearly))

    async def test() -> None:
        loop = asyncio.get_running_loop()
        parts = Parts()
        later = joined(parts, three[0], background=True)
        job = later.job
        assert job is not None
        await soon(lambda: job.progress.fraction > 0.8)
        first = joined(parts, three[1])
        await asyncio.sleep(0.6)
        parts.jobs.leave(first)
        begun = loop.time()
        second = joined(parts, three[2])
        await asyncio.sleep(0.3)
        third = joined(parts, three[1])
        await soon(lambda: job.yields or job.begun is None, 5)
        assert loop.time() - begun >= 0.99
        (nearly / "go").touch()
        for waiter in (second, third, later):
            await ended(waiter)
            assert waiter.engine is not None
        await parts.jobs.stop(0, 5)
        parts.leases.close()

    run(test())


def test_a_storm_of_clients_that_come_and_go(service: Running, three: list[Path]) -> None:
    """Some give up, some have time, engines are evicted under way: who stays gets one, and nothing is left behind."""
    service.ask("GET", "/metrics")
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    before = process.num_fds()
    ends = time.monotonic() + 5

    def client(seed: int) -> list[str]:
        dice, told = random.Random(seed), list[str]()
        while time.monotonic() < ends:
            wish: dict[str, Any] = {"background": dice.random() < 0.5, "pid": os.getpid(), "ttl_s": 1}
            with service.begin(dice.choice(three), MODEL, **wish) as sock:
                if dice.random() < 0.5:
                    time.sleep(dice.random() * 0.2)
                    continue
                answer = read_answer(sock)
            last = answer.lines[-1]
            told.append(last.get("event", "hit"))
            service.ask("POST", "/v1/cache:prune", {"max_bytes": 0})
        return told

    with ThreadPoolExecutor(8) as pool:
        told = [event for events in pool.map(client, range(8)) for event in events]
    assert set(told) <= {"result", "hit"}
    assert told.count("result") > 5
    until(lambda: service.status["idle"])
    until(lambda: not service.workers(), 5)
    until(lambda: b"refit_agent_leases 0.0" in service.ask("GET", "/metrics").body)
    until(lambda: process.num_fds() <= before, 5)
    until(lambda: process.num_threads() == 1, 5)
    assert service.status["errors"] == []
