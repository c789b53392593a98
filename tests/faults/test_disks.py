"""Real disks that fill up or become read-only while an engine is made: a tmpfs, mounted for the test."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundles import MODEL
from refit_agent import ensure_engine
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import sweep
from refit_agent.cache.verify import verify
from refit_agent.errors import CacheUnwritable, DiskFull
from refit_agent.progress import Progress

#: More than what an engine must leave free.
_SIZE = "size=290m"
PHASES = ("start", "unpack", "open", "map", "refit", "verify", "write", "check", "publish")


@pytest.fixture
def disk(mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk of its own for cache and state."""
    place = mounted(_SIZE)
    monkeypatch.setenv("REFIT_AGENT_HOME", str(place / "home"))
    return place


def at(phase: str, act: Callable[[], None]) -> Callable[[Progress], None]:
    """A progress callback that acts once, when the phase begins."""
    todo = [act]

    def on_progress(step: Progress) -> None:
        if step.phase == phase and todo:
            todo.pop()()

    return on_progress


def fill(ballast: Path) -> None:
    """Take every byte that is left."""
    with ballast.open("wb", buffering=0) as file:
        size = 64 << 20
        while size:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 2


def require_clean(disk: Path) -> None:
    """One sound entry, and nothing that was in the making."""
    store = Store(str(disk / "home" / "cache"))
    assert [v.fault for v in verify(store)] == [""]
    assert not os.listdir(f"{store.root}/tmp")
    sweep(store)
    assert not os.listdir(f"{store.root}/locks")
    assert not os.listdir(f"{store.root}/quarantine")


@pytest.mark.parametrize("phase", PHASES)
def test_a_disk_that_fills_up_costs_the_engine_and_nothing_else(bundle: Path, disk: Path, phase: str) -> None:
    """Whenever it happens: it is told, nothing of it can be seen, and with room again it is made."""
    ballast = disk / "ballast"
    with pytest.raises(DiskFull):
        ensure_engine(bundle, MODEL, progress=at(phase, lambda: fill(ballast)), service=False)
    assert not os.listdir(disk / "home" / "cache" / "engines")
    assert not os.listdir(disk / "home" / "cache" / "tmp")
    ballast.unlink()
    with ensure_engine(bundle, MODEL, service=False) as engine:
        assert not engine.hit
    require_clean(disk)


@pytest.fixture
def read_only(disk: Path) -> Iterator[Callable[[bool], None]]:
    """Makes the cache's disk read-only, and writable again.

    By a second mount of the cache over itself: what is open stays as it is, and everything opened from then on
    finds a disk that cannot be written. The kernel refuses to make a disk read-only on which a file is being written.
    """
    cache = disk / "home" / "cache"
    mounted: list[Path] = []

    def change(yes: bool) -> None:
        if yes:
            subprocess.run(["mount", "--bind", str(cache), str(cache)], check=True)
            mounted.append(cache)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(cache)], check=True)
        elif mounted:
            subprocess.run(["umount", "-l", str(mounted.pop())], check=True)

    yield change
    change(False)


@pytest.mark.parametrize("phase", PHASES)
def test_a_disk_that_becomes_read_only_costs_the_engine_and_nothing_else(
    bundle: Path, disk: Path, read_only: Callable[[bool], None], phase: str
) -> None:
    """What cannot be deleted then goes with the next engine."""
    with pytest.raises(CacheUnwritable):
        ensure_engine(bundle, MODEL, progress=at(phase, lambda: read_only(True)), service=False)
    assert not os.listdir(disk / "home" / "cache" / "engines")
    assert os.listdir(disk / "home" / "cache" / "tmp"), "it was not read-only"
    read_only(False)
    with ensure_engine(bundle, MODEL, service=False) as engine:
        assert not engine.hit
    require_clean(disk)
