"""Files and folders of the cache whose mode somebody changed, as another user than root meets them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from entries import key_of, put
from refit_agent.cache.locks import key_lock, lock_path, try_key_lock
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import clear, prune
from refit_agent.cache.verify import verify
from refit_agent.errors import CacheError, CacheUnwritable

if sys.platform == "win32" or os.geteuid() != 0:
    pytest.skip("becoming another user needs root", allow_module_level=True)

import fcntl

USER = 65534
#: Needed below by a user who may not be able to read them from the disk.
_IMPORTED = (filelock, shutil, subprocess)


@pytest.fixture
def store() -> Iterator[Store]:
    """A cache of that user's, with one engine, in a folder that everybody may look into: those of pytest are closed,
    and closed again by every other pytest that starts."""
    with tempfile.TemporaryDirectory(prefix="refit-agent-modes-") as folder:
        above = Path(folder)
        os.chmod(above, 0o755)
        if any(parent.stat().st_mode & 0o001 == 0 for parent in above.parents):
            pytest.skip(f"other users cannot get to {above}")
        root = above / "cache"
        store = Store(str(root))
        put(store, 1)
        with _unlocked(store):
            pass
        for path in (root, *root.rglob("*")):
            os.chown(path, USER, USER)
        yield store


@contextlib.contextmanager
def _unlocked(store: Store) -> Iterator[None]:
    with key_lock(store, key_of(1), 0):
        yield


def _as_user(work: Callable[[], object]) -> None:
    """Run it in a child that is that user; what it asserts counts here."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must never come back into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


KEY = key_of(1)


@pytest.mark.parametrize("mode", [0o000, 0o200])
def test_an_entry_that_cannot_be_read_is_damaged_and_makes_way(store: Store, mode: int) -> None:
    """By the look-up's words, and by verify."""
    os.chmod(f"{store.folder(KEY)}/entry.json", mode)

    def work() -> None:
        assert store.lookup(KEY) == "entry.json cannot be opened: Permission denied"
        (verdict,) = verify(store)
        assert verdict.set_aside
        assert store.lookup(KEY) is None
        put(store, 1)
        assert isinstance(store.lookup(KEY), tuple)

    _as_user(work)


def test_a_plan_that_cannot_be_read_is_found_by_verify(store: Store) -> None:
    """And set aside."""
    os.chmod(f"{store.folder(KEY)}/plan", 0)

    def work() -> None:
        (verdict,) = verify(store)
        assert verdict.fault == "plan: Permission denied" and verdict.set_aside

    _as_user(work)


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o300, 0o400, 0o500])
def test_a_folder_with_another_mode_can_be_set_aside(store: Store, mode: int) -> None:
    """A folder that cannot be written cannot be renamed into another one either."""
    os.chmod(f"{store.folder(KEY)}/plan", 0)
    os.chmod(store.folder(KEY), mode)

    def work() -> None:
        (verdict,) = verify(store)
        assert verdict.set_aside
        put(store, 1)
        assert isinstance(store.lookup(KEY), tuple)

    _as_user(work)


@pytest.mark.parametrize("mode", [0o400, 0o444, 0o200])
@pytest.mark.parametrize("folder", [0o700, 0o500])
def test_what_is_read_only_can_be_evicted_when_nobody_has_a_lease(store: Store, mode: int, folder: int) -> None:
    """As after ``chmod -R a-w``: the lease of a reader holds, and once it is over the entry goes."""
    name = f"{store.folder(KEY)}/entry.json"
    with open(name) as lease:
        fcntl.flock(lease, fcntl.LOCK_SH)
        os.chmod(name, mode)
        os.chmod(store.folder(KEY), folder)
        _as_user(lambda: _assert_equal(prune(store, 0), []))
    _as_user(lambda: _assert_equal(prune(store, 0), [KEY]))
    assert os.listdir(f"{store.root}/engines") == os.listdir(f"{store.root}/tmp") == []


@pytest.mark.parametrize("folder", ["engines", "tmp"])
def test_what_cannot_be_removed_is_not_said_to_be_in_use(store: Store, folder: str) -> None:
    """And an engine is not made in vain where it cannot be put."""
    os.chmod(f"{store.root}/{folder}", 0o500)

    def work() -> None:
        for remove in (clear, lambda store, failed: (prune(store, 0, failed), [])):
            failed: list[CacheError] = []
            assert remove(store, failed) == ([], [])
            assert [error.code for error in failed] == ["cache-unwritable"]
        with pytest.raises(CacheUnwritable, match=f"{folder}/[0-9a-f]+: Permission denied"):
            store.prepare()
        assert isinstance(store.lookup(KEY), tuple)

    _as_user(work)


def _assert_equal(one: object, other: object) -> None:
    assert one == other


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o200])
def test_a_lock_with_another_mode_is_taken_when_nobody_holds_it(store: Store, mode: int) -> None:
    """It gets its mode back, and stays the same file: somebody may hold it."""

    def work() -> None:
        with try_key_lock(store, KEY) as ours:
            assert ours

    with key_lock(store, KEY, 0):
        os.chmod(lock_path(store, KEY), mode)

        def refused() -> None:
            with try_key_lock(store, KEY) as ours:
                assert not ours

        _as_user(refused)
    os.chmod(lock_path(store, KEY), mode)
    _as_user(work)
