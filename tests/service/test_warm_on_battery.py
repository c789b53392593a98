"""Background work and the machine's power: stopped in the middle when the mains go, resumed when they are back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bundles import REAL
from refit_agent.cache.store import Store
from refit_service import idle, warm

from .in_process import Parts, ended, joined, run, until, workers

#: The runtime's import lasts until the file is there.
_WAIT = """
ends = time.monotonic() + 60
while not os.path.exists({!r}) and time.monotonic() < ends:
    time.sleep(0.02)
"""


@contextlib.asynccontextmanager
async def working(bundle: Path) -> AsyncIterator[Parts]:
    """Background work that has just begun to make the engine of ``bundle``."""
    parts = Parts()
    parts.registry.add(str(bundle))
    parts.warmer.start()
    try:
        yield parts
    finally:
        await parts.warmer.stop()
        assert await parts.jobs.stop(0.1, 10)
        parts.leases.close()
    assert parts.faults == []


def entries(home: Path) -> int:
    return len(list(Store(str(home / "cache")).list_keys()))


class Mains:
    """A laptop as the system describes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, kind in (("AC", "Mains"), ("BAT0", "Battery")):
            (folder / name).mkdir(parents=True)
            (folder / name / "type").write_text(f"{kind}\n")
        self.plug(True)

    def plug(self, there: bool) -> None:
        (self._folder / "AC/online").write_text(f"{there:d}\n")
        (self._folder / "BAT0/status").write_text("Charging\n" if there else "Discharging\n")


@pytest.fixture
def mains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mains:
    """Power that a test can cut, and looks at it that come soon."""
    monkeypatch.setattr(idle, "_SUPPLIES", str(tmp_path / "supplies"))
    monkeypatch.setattr(warm, "_WATCH_S", 0.1)
    monkeypatch.setattr(warm, "_PAUSE_S", 0.2)
    return Mains(tmp_path / "supplies")


@pytest.fixture
def go(evil_runtime: Callable[[str], Path], tmp_path: Path) -> Path:
    """The file that lets workers do their work."""
    file = tmp_path / "go"
    evil_runtime(_WAIT.format(str(file)) + REAL)
    return file


def test_work_stops_in_the_middle_when_the_mains_go(mains: Mains, go: Path, bundle: Path, home: Path) -> None:
    """The worker is gone, the status says why, nothing counts as a failure; it is done when the mains are back."""

    async def test() -> None:
        async with working(bundle) as parts:
            await until(workers)
            worker = workers()[0]
            assert parts.warming == ("working", "")
            mains.plug(False)
            await until(lambda: parts.warming == ("paused", "the machine runs on battery"))
            await until(lambda: not worker.is_running(), 5)
            await asyncio.sleep(1)
            assert workers() == []
            assert parts.jobs.records() == ()
            assert parts.warmer.record().failures == ()
            mains.plug(True)
            await until(workers)
            assert parts.warming == ("working", "")
            go.touch()
            await until(lambda: parts.warming == ("idle", "") and entries(home) == 1)
            assert parts.warmer.record().failures == ()

    run(test())


def test_on_battery_it_does_not_begin(mains: Mains, go: Path, bundle: Path, home: Path) -> None:
    """Unless the user wants that."""
    go.touch()
    mains.plug(False)

    async def test() -> None:
        async with working(bundle) as parts:
            await until(lambda: parts.warming == ("paused", "the machine runs on battery"))
            await asyncio.sleep(1)
            assert entries(home) == 0
            mains.plug(True)
            await until(lambda: entries(home) == 1)

    run(test())


def test_on_battery_it_works_if_it_is_to(
    mains: Mains, go: Path, bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REFIT_AGENT_WARM_ON_BATTERY=1."""
    monkeypatch.setenv("REFIT_AGENT_WARM_ON_BATTERY", "1")
    go.touch()
    mains.plug(False)

    async def test() -> None:
        async with working(bundle):
            await until(lambda: entries(home) == 1)

    run(test())


def test_an_app_that_waits_keeps_it_alive(mains: Mains, go: Path, bundle: Path, home: Path) -> None:
    """What an app has joined goes on, on battery too; when it has gone the work stops."""

    async def test() -> None:
        async with working(bundle) as parts:
            await until(workers)
            worker = workers()[0]
            waiters = [joined(parts, bundle), joined(parts, bundle)]
            await until(lambda: not worker.is_running(), 5)  # it is begun anew for the app
            await until(workers)
            worker = workers()[0]
            mains.plug(False)
            await asyncio.sleep(1)
            assert worker.is_running()
            assert parts.warming == ("working", "")
            parts.jobs.leave(waiters[0])
            await asyncio.sleep(0.5)
            assert worker.is_running()
            parts.jobs.leave(waiters[1])
            await until(lambda: not worker.is_running(), 5)
            await until(lambda: parts.warming == ("paused", "the machine runs on battery"))
            last = joined(parts, bundle)
            go.touch()
            await ended(last)
            assert last.engine is not None and last.lease is not None
            parts.jobs.leave(last)
            await until(lambda: parts.warming == ("idle", ""))
            assert entries(home) == 1

    run(test())
