from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from entries import key_of, kill, leased, locked, put
from refit_agent.cache import upkeep
from refit_agent.cache.locks import key_lock, lock_path
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import clear, default_quota, list_entries, make_room, prune, sweep
from refit_agent.cache.verify import verify
from refit_agent.errors import DiskFull

ENDLESS = 1 << 60


def _size(store: Store) -> int:
    return sum(c.size for c in list_entries(store))


def test_entries_are_listed_least_recently_used_first(store: Store) -> None:
    """With size, last use and, for a damaged one, what is wrong."""
    second, first, third = put(store, 1, used=200.0), put(store, 2, used=100.0), put(store, 3, 5000, used=300.0)
    os.truncate(f"{store.folder(third)}/plan", 10)
    listed = list_entries(store)
    assert [c.key for c in listed] == [first, second, third]
    assert [c.last_used for c in listed] == [100.0, 200.0, 300.0]
    assert listed[0].size > 1000
    assert listed[0].entry is not None
    assert listed[2].fault == "plan has 10 bytes and should have 5000"


def test_room_is_made_from_what_was_not_used_for_longest(store: Store) -> None:
    """No more is removed than the quota asks for."""
    keys = [put(store, n, 1000, used=100.0 + n) for n in range(5)]
    quota = _size(store) + 500
    assert make_room(store, 500, quota) == []
    assert make_room(store, 501, quota) == keys[:1]
    assert make_room(store, 2500, quota) == keys[1:2]
    assert list(store.list_keys()).count(keys[2]) == 1
    found = store.lookup(keys[2])  # a use moves it to the end of the queue
    assert isinstance(found, tuple)
    found[2].close()
    assert make_room(store, 0, _size(store) - 1) == keys[3:4]


def test_an_engine_larger_than_the_quota_is_let_through(store: Store) -> None:
    """Refusing it would leave the app without any."""
    keys = [put(store, n, used=100.0 + n) for n in range(2)]
    assert make_room(store, 10_000, 100) == keys


@pytest.mark.parametrize("how", ["make_room", "prune", "clear"])
def test_what_another_process_uses_stays_until_that_process_is_killed(store: Store, how: str) -> None:
    """By every way that removes entries; the others go."""
    key, other = put(store, 1, used=100.0), put(store, 2, used=200.0)

    def remove() -> list[str]:
        if how == "make_room":
            return make_room(store, 1, 1)
        return prune(store, 0) if how == "prune" else clear(store)[0]

    with leased(store, key) as process:
        assert remove() == [other]
        assert list(store.list_keys()) == [key]
        if how == "clear":
            assert clear(store) == ([], [key])
        kill(process)
        assert remove() == [key]
    assert list(store.list_keys()) == []


def test_what_somebody_is_making_right_now_stays(store: Store) -> None:
    """Its maker has published it and has no lease yet."""
    key = put(store, 1)
    with key_lock(store, key, 0):
        assert make_room(store, 1, 1) == []
        assert clear(store) == ([], [key])
    assert clear(store) == ([key], [])


def test_evictions_leave_no_lock_files_behind(store: Store) -> None:
    """As many as there were engines would pile up otherwise."""
    put(store, 1)
    clear(store)
    assert os.listdir(f"{store.root}/locks") == []


def test_a_disk_that_is_too_small_is_known_before_anything_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An impossible wish does not cost the user the engines that are there."""
    keys = {put(store, n) for n in range(3)}
    with pytest.raises(DiskFull) as info:
        make_room(store, ENDLESS, ENDLESS * 2)
    assert set(store.list_keys()) == keys
    assert info.value.facts["needed_bytes"] == ENDLESS + upkeep.DISK_MARGIN_BYTES
    assert "cache prune" in info.value.hint


def test_a_disk_that_is_nearly_full_gets_its_room_from_the_cache(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quarantine goes first, then what was not used for longest, and no more."""
    keys = [put(store, n, 1 << 20, used=100.0 + n) for n in range(3)]
    store.quarantine(put(store, 9, 1 << 20))

    def free(path: str) -> int:
        held = sum(f.stat().st_size for f in Path(store.root).rglob("plan"))
        return (4 << 20) - held

    monkeypatch.setattr(upkeep, "free_bytes", free)
    monkeypatch.setattr(upkeep, "DISK_MARGIN_BYTES", 0)
    assert make_room(store, 1 << 20, ENDLESS) == []
    assert os.listdir(f"{store.root}/quarantine") == []
    assert make_room(store, 2 << 20, ENDLESS) == keys[:1]


def test_leftovers_of_killed_processes_are_swept_and_those_of_living_ones_are_not(store: Store) -> None:
    """Staging folders, worker logs, lock files and the quarantine."""
    key, busy = put(store, 1), key_of(2)
    with locked(store, key) as process:
        kill(process)
    for name in (key, busy):
        staging = store.stage(name)
        Path(staging, "plan").write_bytes(b"half")
        Path(staging + ".log").write_bytes(b"words")
    store.quarantine(put(store, 3))
    with locked(store, busy):
        gone = sweep(store)
        assert sorted(p.split(".")[0][-8:] for p in os.listdir(f"{store.root}/tmp")) == [busy[-8:]] * 2
        assert os.listdir(f"{store.root}/locks") == [f"{busy}.lock"]
    assert len(gone) == 3
    assert not any(os.path.lexists(path) for path in gone)
    assert os.listdir(f"{store.root}/quarantine") == []
    assert list(store.list_keys()) == [key]
    sweep(store)
    assert os.listdir(f"{store.root}/tmp") == []
    assert not os.path.exists(lock_path(store, busy))


def _half(store: Store, number: int, size: int, age_s: float = 0.0) -> Path:
    """What has come of an unfinished transfer."""
    store.prepare()
    path = Path(store.root, "partial", key_of(number))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_unfinished_transfers_count_and_go_like_entries(store: Store) -> None:
    """In the order of last use; one that somebody goes on with stays."""
    old, busy = _half(store, 1, 1000, age_s=3600), _half(store, 2, 1000, age_s=7200)
    entry = put(store, 3, used=time.time() - 60)
    quota = _size(store) + 2000
    with key_lock(store, key_of(2), 0):
        assert make_room(store, 0, quota) == [] and old.exists()
        assert make_room(store, 1, quota) == [] and not old.exists()
        assert make_room(store, 1001, quota) == [entry]
        assert prune(store, 0) == [] and clear(store) == ([], []) and busy.exists()
    assert prune(store, 0) == [] and not busy.exists()


def test_unfinished_transfers_are_swept_after_a_week_and_cleared_at_once(store: Store) -> None:
    """But not under the hands of somebody who goes on with one."""
    old, busy, new = (_half(store, n, 10, age_s=days * 86400) for n, days in ((1, 8), (2, 8), (3, 6)))
    with key_lock(store, key_of(2), 0):
        assert sweep(store) == [str(old)]
        assert busy.exists() and new.exists()
        clear(store)
        assert busy.exists() and not new.exists()
    assert sweep(store) == [str(busy)]
    assert os.listdir(f"{store.root}/locks") == []


def test_sweeping_a_cache_that_does_not_exist_does_nothing(store: Store) -> None:
    """And creates nothing."""
    assert sweep(store) == []
    assert prune(store, 0) == []
    assert clear(store) == ([], [])
    assert verify(store) == []
    assert not os.path.exists(store.root)


def test_the_default_quota_is_a_part_of_the_disk(store: Store) -> None:
    """Also before the cache exists."""
    assert 0 < default_quota(store) <= 32 << 30
