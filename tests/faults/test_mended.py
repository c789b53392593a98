"""What the matrix found, each by itself."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundles import MODEL, make_bundle
from entries import key_of
from refit_agent import ensure_engine
from refit_agent.cache import upkeep
from refit_agent.cache.disk import free_bytes, write_error
from refit_agent.cache.locks import key_lock, try_key_lock
from refit_agent.cache.store import Store
from refit_agent.errors import CacheUnwritable, DiskFull, WorkerCrashed
from refit_agent.failures import Failures
from refit_agent.state_file import drop_leftovers

from .scenes import estimate, size_of

KEY = key_of(1)
KILLED = WorkerCrashed(how="signal SIGKILL", phase="refit", log="")


def test_a_worker_that_was_killed_once_may_try_again_and_twice_may_not(tmp_path: Path) -> None:
    """Somebody ends it once; what is too large for the memory ends like this every time."""
    failures = Failures(str(tmp_path))
    failures.remember(KEY, KILLED)
    assert failures.recall(KEY) is None
    failures.remember(KEY, KILLED)
    assert isinstance(failures.recall(KEY), WorkerCrashed)
    failures.forget(KEY)
    failures.remember(KEY, KILLED)
    assert failures.recall(KEY) is None


def test_a_worker_that_crashes_by_itself_is_remembered_at_once(tmp_path: Path) -> None:
    failures = Failures(str(tmp_path))
    failures.remember(KEY, WorkerCrashed(how="signal SIGSEGV", phase="refit", log=""))
    assert failures.recall(KEY) is not None


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    for name, age in (("m.json", 9999), ("m.json.old", 9999), ("m.json.new", 1), ("other.old", 9999)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    drop_leftovers(str(tmp_path), "m.json.")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.json.new", "other.old"]
    drop_leftovers(str(tmp_path / "nothing"), "m")


def test_the_next_failure_takes_a_killed_writer_s_file_away(tmp_path: Path) -> None:
    failures = Failures(str(tmp_path))
    failures.remember(KEY, KILLED)
    left = tmp_path / "failures" / f"{KEY}.0a1b2c3d.tmp"
    left.touch()
    os.utime(left, (0, 0))
    failures.remember(KEY, KILLED)
    assert [p.name for p in (tmp_path / "failures").iterdir()] == [f"{KEY}.json"]


def test_an_unlock_that_fails_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done under the lock is done, and the lock is free although this process lives on."""
    cache = Store(str(tmp_path / "cache"))
    cache.prepare()
    real, failed = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN and not failed:
            failed.append(fd)
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with key_lock(cache, KEY, 0):
        pass
    assert failed
    with try_key_lock(cache, KEY) as ours:
        assert ours


def test_the_quota_holds_what_an_engine_takes_and_not_only_what_was_foreseen(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding and entry.json are known when it is made."""
    first, second = make_bundle(tmp_path / "first", seed=1), make_bundle(tmp_path / "second", seed=2)
    ensure_engine(first, MODEL, service=False).close()
    cache = Store(str(home / "cache"))
    quota = size_of(cache) + estimate(second)
    monkeypatch.setenv("REFIT_AGENT_CACHE_QUOTA", str(quota))
    with ensure_engine(second, MODEL, service=False) as engine:
        assert size_of(cache) <= quota
        assert list(cache.list_keys()) == [engine.key]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_folder_that_cannot_be_listed_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache = Store(str(tmp_path / "cache"))
    cache.prepare()

    def listdir(path: str) -> list[str]:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(upkeep, "os", SimpleNamespace(**{**vars(os), "listdir": listdir}))
    with pytest.raises(CacheUnwritable, match="tmp"):
        upkeep.sweep(cache)


def test_a_disk_that_does_not_say_how_large_it_is_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    def disk_usage(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(CacheUnwritable):
        free_bytes(str(tmp_path))
    with pytest.raises(CacheUnwritable):
        upkeep.default_quota(Store(str(tmp_path)))
    assert isinstance(write_error(OSError(errno.ENOSPC, "full"), str(tmp_path)), DiskFull)
