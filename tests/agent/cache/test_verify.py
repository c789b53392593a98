from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from entries import put, rot
from refit_agent.cache import verify as module
from refit_agent.cache.locks import key_lock, try_key_lock
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import list_entries, prune
from refit_agent.cache.verify import Verdict, verify
from refit_agent.errors import CacheError, CacheUnwritable, DiskFull


def _rot(store: Store, key: str) -> None:
    rot(Path(store.folder(key), "plan"))


def test_verification_finds_what_size_and_time_do_not_show(store: Store) -> None:
    """The damaged entry is set aside, the sound one stays."""
    sound, rotten = put(store, 1), put(store, 2)
    _rot(store, rotten)
    assert isinstance(store.lookup(rotten), tuple), "a look-up does not see it"
    read: list[int] = []
    verdicts = {v.key: v for v in verify(store, on_bytes=read.append)}
    assert sum(read) == 2000
    assert verdicts[sound].fault == ""
    assert "content of plan changed" in verdicts[rotten].fault
    assert os.path.isdir(verdicts[rotten].set_aside)
    assert list(store.list_keys()) == [sound]


def test_verify_does_not_take_away_what_was_published_meanwhile(store: Store) -> None:
    """Read, found damaged, replaced by a sound one, and only then set aside: the sound one stays."""
    key = put(store, 1)
    _rot(store, key)
    replaced: list[str] = []

    def replace(count: int) -> None:
        if not replaced:
            assert store.remove(key)
            replaced.append(put(store, 1))

    assert verify(store, on_bytes=replace) == [Verdict(key, "", "")]
    assert replaced == [key] and isinstance(store.lookup(key), tuple)
    assert os.listdir(f"{store.root}/quarantine") == []


def test_what_is_another_each_time_is_left_where_it_is(store: Store) -> None:
    """Somebody replaces it again and again: that is told, and ends."""
    key = put(store, 1)
    _rot(store, key)
    times = 0

    def replace(count: int) -> None:
        nonlocal times
        times += 1
        assert store.remove(key)
        put(store, 1)
        _rot(store, key)

    (verdict,) = verify(store, on_bytes=replace)
    assert times == 3 and "content of plan changed" in verdict.fault and verdict.set_aside == ""


def test_a_damaged_entry_is_read_once_and_holds_up_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its maker nor room that it must make way for waits until gigabytes have been read."""
    key = put(store, 1)
    _rot(store, key)
    read: list[bool] = []
    real = module.hash_file

    def hash_file(path: str, on_bytes: object) -> object:
        with try_key_lock(store, key) as free:
            read.append(free)
        return real(path, on_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "hash_file", hash_file)
    (verdict,) = verify(store)
    assert read == [True] and verdict.set_aside


def test_a_use_while_it_is_read_changes_nothing(store: Store) -> None:
    """Each look-up notes when it was."""
    key = put(store, 1)
    _rot(store, key)

    def use(count: int) -> None:
        found = store.lookup(key)
        assert isinstance(found, tuple)
        found[2].close()

    (verdict,) = verify(store, on_bytes=use)
    assert verdict.set_aside


def test_a_process_that_is_out_of_descriptors_damages_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that cannot open a file must not take a sound engine away."""
    key = put(store, 1)

    def hash_file(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "hash_file", hash_file)
    (verdict,) = verify(store)
    assert verdict[:3] == (key, "", "") and "Too many open files" in str(verdict.error)
    assert isinstance(store.lookup(key), tuple)


@pytest.mark.parametrize("folders", [["quarantine"], ["locks"], ["quarantine", "locks", "tmp"]])
def test_folders_that_somebody_deleted_are_made_anew(store: Store, folders: list[str]) -> None:
    """The cache is safe to delete, in parts too."""
    key = put(store, 1)
    _rot(store, key)
    for folder in folders:
        shutil.rmtree(f"{store.root}/{folder}")
    (verdict,) = verify(store)
    assert os.path.isdir(verdict.set_aside) and store.lookup(key) is None


def test_on_a_full_disk_damage_is_told_all_the_same(mounted: Callable[[str], Path]) -> None:
    """Where not even a lock can be made; the others are told too, and what is there can be listed."""
    store = Store(str(mounted("nr_inodes=40,mode=700")))
    rotten, sound = put(store, 1), put(store, 2)
    _rot(store, rotten)
    shutil.rmtree(f"{store.root}/locks")
    Path(store.root, "locks").mkdir()
    with contextlib.suppress(OSError):
        for number in range(40):
            Path(store.root, f"full{number}").touch()
    verdicts = {verdict.key: verdict for verdict in verify(store)}
    assert "content of plan changed" in verdicts[rotten].fault and verdicts[rotten].set_aside == ""
    assert verdicts[sound] == (sound, "", "", None)
    failed: list[CacheError] = []
    assert prune(store, 0, failed) == [] and {error.code for error in failed} == {"disk-full"}


def test_room_can_be_made_from_what_is_being_read(store: Store) -> None:
    """Reading takes minutes, and nobody uses the engine; that it went meanwhile is no fault."""
    key = put(store, 1)
    removed: list[bool] = []
    verdicts = verify(store, on_bytes=lambda _: removed.append(store.remove(key)))
    assert removed[0] is True and store.lookup(key) is None
    assert all(verdict.fault == "" for verdict in verdicts)


@pytest.mark.parametrize(
    "hindrance",
    ["lock", CacheUnwritable(path="x", detail="Read-only"), DiskFull(path="x", free_bytes=0, needed_bytes=1)],
)
def test_what_cannot_be_set_aside_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, hindrance: str | CacheError
) -> None:
    """On a disk that is full or has become read-only neither a lock nor a rename can be had."""
    key = put(store, 1)
    Path(store.folder(key), "plan").write_bytes(b"")
    if isinstance(hindrance, CacheError):

        def quarantine(self: Store, key: str) -> str:
            raise hindrance

        monkeypatch.setattr(Store, "quarantine", quarantine)
    with key_lock(store, key, 0) if hindrance == "lock" else contextlib.nullcontext():
        (verdict,) = verify(store)
    assert verdict.key == key and "plan has 0 bytes" in verdict.fault and verdict.set_aside == ""


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM])
def test_a_file_server_that_does_not_answer_damages_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:  # fmt: skip
    """Neither for a check nor for a look-up."""
    key = put(store, 1)
    real = os.stat

    def failing(path: object, **options: object) -> os.stat_result:
        if str(path) == f"{store.folder(key)}/plan":
            raise OSError(code, os.strerror(code))
        return real(path, **options)  # type: ignore[arg-type, call-overload, no-any-return]

    other = put(store, 2)
    _rot(store, other)
    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(CacheUnwritable):
        store.lookup(key)
    verdicts = {verdict.key: verdict for verdict in verify(store)}
    assert isinstance(verdicts[key].error, CacheUnwritable) and verdicts[key].fault == ""
    assert verdicts[other].set_aside, "what is known of the others is told all the same"
    (listed,) = list_entries(store)
    assert os.strerror(code) in listed.fault and listed.entry is not None
    monkeypatch.undo()
    assert isinstance(store.lookup(key), tuple)
