from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundles import python
from entries import key_of, kill, locked
from refit_agent.cache import locks
from refit_agent.cache.locks import key_lock, lock_path, remove_lock_file, try_key_lock
from refit_agent.cache.store import Store
from refit_agent.errors import CacheBusy, CacheUnwritable

KEY = key_of(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "cache"))
    store.prepare()
    return store


def test_a_lock_is_one_process_s_at_a_time_and_free_after_kill_9(store: Store) -> None:
    """A lock file that is left behind by a killed process holds nobody up."""
    with locked(store, KEY) as process:
        with try_key_lock(store, KEY) as ours:
            assert not ours
        with try_key_lock(store, key_of(2)) as ours:
            assert ours, "other keys are free"
        kill(process)
        assert os.path.exists(lock_path(store, KEY))
        with try_key_lock(store, KEY) as ours:
            assert ours


def test_waiting_ends_after_the_time_allowed(store: Store) -> None:
    """The error says for how long and which lock."""
    with locked(store, KEY):
        start = time.monotonic()
        with pytest.raises(CacheBusy, match=KEY), key_lock(store, KEY, 0.2):
            pass
        assert 0.2 <= time.monotonic() - start < 2


def test_waiting_ends_when_the_holder_is_killed(store: Store) -> None:
    """Whoever waits is told that it waits, and gets the lock."""
    told: list[float] = []
    with locked(store, KEY) as process:
        threading.Timer(0.2, process.kill).start()
        with key_lock(store, KEY, 10, lambda: told.append(time.monotonic())):
            assert process.wait() == -9
    assert len(told) > 2


def test_whoever_waits_can_give_up(store: Store) -> None:
    """What the callback raises ends the wait and leaves the lock alone."""

    def give_up() -> None:
        raise KeyboardInterrupt

    with locked(store, KEY) as process:
        with pytest.raises(KeyboardInterrupt), key_lock(store, KEY, 10, give_up):
            pass
        kill(process)
    with try_key_lock(store, KEY) as ours:
        assert ours


def test_threads_of_one_process_exclude_one_another(store: Store) -> None:
    """The lock is not one of the process but of whoever holds it."""
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with key_lock(store, KEY, 30):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


_COUNT = """
import os, sys
from refit_agent.cache.locks import key_lock, remove_lock_file
from refit_agent.cache.store import Store
store = Store(sys.argv[1])
for _ in range(60):
    with key_lock(store, sys.argv[2], 60):
        flag = os.open(sys.argv[3], os.O_CREAT | os.O_EXCL)
        os.close(flag)
        os.unlink(sys.argv[3])
        remove_lock_file(store, sys.argv[2])
"""


def test_deleting_the_lock_file_under_the_lock_lets_nobody_in_twice(store: Store, tmp_path: Path) -> None:
    """A waiter on the deleted file starts over with the new one."""
    command, env = python(_COUNT, store.root, KEY, tmp_path / "inside")
    processes = [subprocess.Popen(command, env=env) for _ in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    with key_lock(store, KEY, 0):
        remove_lock_file(store, KEY)
    remove_lock_file(store, KEY)
    assert not os.path.exists(lock_path(store, KEY))


def test_an_error_in_the_body_goes_to_the_caller_as_it_is(store: Store) -> None:
    """Also one that looks like the lock's own."""
    for error in (ValueError("x"), CacheBusy(seconds=1, path="inner")):
        with pytest.raises(type(error)) as info, try_key_lock(store, KEY):
            raise error
        assert info.value is error
    with try_key_lock(store, KEY) as ours:
        assert ours


def test_a_lock_that_cannot_be_made_is_an_error_of_the_cache(tmp_path: Path) -> None:
    """Here a file stands in the place of the folder."""
    root = tmp_path / "cache"
    root.mkdir()
    (root / "locks").write_bytes(b"")
    with pytest.raises(CacheUnwritable), key_lock(Store(str(root)), KEY, 0):
        pass


def test_of_several_that_make_way_at_once_one_holds_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each saw the odd object; the second must not delete the lock that the first one took in its place."""
    os.mkdir(lock_path(store, KEY))
    inside: list[None] = []
    most: list[int] = []

    def slowly(name: str) -> os.stat_result:
        seen = os.lstat(name)
        time.sleep(0.05)  # between the look and what is done about it
        return seen

    def hold() -> None:
        with contextlib.suppress(CacheBusy, CacheUnwritable), key_lock(store, KEY, 0):
            inside.append(None)
            most.append(len(inside))
            time.sleep(0.4)
            inside.pop()

    monkeypatch.setattr(locks, "os", SimpleNamespace(**{**vars(os), "lstat": slowly}))
    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
