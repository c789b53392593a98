from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from entries import key_of, leased, put
from refit_agent.cache import store as module
from refit_agent.cache.disk import write_error
from refit_agent.cache.store import Lease, Store
from refit_agent.errors import CacheInsecure, CacheUnwritable, DiskFull


def found(store: Store, key: str) -> bool:
    answer = store.lookup(key)
    if isinstance(answer, tuple):
        answer[2].close()
        return True
    return False


def test_what_was_published_is_found_with_a_lease_and_marked_as_used(store: Store) -> None:
    """The entry comes back as it was given, and its last use is now."""
    key = put(store, 1, used=1000.0)
    answer = store.lookup(key)
    assert isinstance(answer, tuple)
    entry, folder, lease = answer
    assert (entry.key, entry.plan, entry.size) == (key, "plan", 1000)
    assert Path(folder, "plan").stat().st_size == 1000
    assert Path(folder, "entry.json").stat().st_mtime > 1e9
    lease.close()
    assert os.listdir(f"{store.root}/tmp") == []


def test_nothing_is_found_in_a_cache_that_does_not_exist(store: Store) -> None:
    """And nothing is created by looking."""
    assert store.lookup(key_of(1)) is None
    assert list(store.list_keys()) == []
    assert not os.path.exists(store.root)


def test_the_folders_are_the_user_s_alone(store: Store) -> None:
    """Also under a umask that gives everything to everybody."""
    before = os.umask(0)
    try:
        put(store, 1)
    finally:
        os.umask(before)
    for name in ("", "/engines", "/locks", "/tmp", "/quarantine", f"/engines/{key_of(1)}"):
        assert os.stat(store.root + name).st_mode & 0o777 == 0o700, name
    assert Path(store.root, "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


def _entry_json(folder: Path, **changes: object) -> None:
    path = folder / "entry.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


FILE = {"size": 1000, "mtime_ns": 0, "sha256": ""}
DAMAGE = {
    "cut short": (lambda f: os.truncate(f / "plan", 999), "999 bytes and should have 1000"),
    "touched": (lambda f: os.utime(f / "plan", (5, 5)), "changed after it was published"),
    "no plan": (lambda f: os.unlink(f / "plan"), "plan: No such file"),
    "garbage": (lambda f: (f / "entry.json").write_bytes(b"\x00garbage"), "entry.json cannot be read"),
    "empty": (lambda f: (f / "entry.json").write_bytes(b""), "entry.json cannot be read"),
    "nested": (lambda f: (f / "entry.json").write_bytes(b"[" * 500_000), "entry.json cannot be read"),
    "no entry": (lambda f: os.unlink(f / "entry.json"), "entry.json is missing"),
    "link": (
        lambda f: (os.rename(f / "entry.json", f / "e"), os.symlink("e", f / "entry.json")),
        "entry.json cannot be opened",
    ),
    "other key": (lambda f: _entry_json(f, key="0" * 64), "belongs to 000"),
    "schema": (lambda f: _entry_json(f, schema=99), "schema 99"),
    "no such plan": (lambda f: _entry_json(f, plan="other"), "does not list its plan"),
    "outside": (lambda f: _entry_json(f, plan="../x", files=[{"name": "../x", **FILE}]), "outside its folder"),
    "backslash": (lambda f: _entry_json(f, plan="a\\x", files=[{"name": "a\\x", **FILE}]), "outside its folder"),
    "nul": (lambda f: _entry_json(f, plan="a\0", files=[{"name": "a\0", **FILE}]), "outside its folder"),
    "plan is a link": (
        lambda f: (os.rename(f / "plan", f.parent / "p"), os.symlink("../p", f / "plan")),
        "plan is not a file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_told_from_a_missing_one_and_makes_way(store: Store, damage: str) -> None:
    """The look-up says what is wrong; once set aside, the same key can be published again."""
    key = put(store, 1)
    act, says = DAMAGE[damage]
    act(Path(store.folder(key)))
    answer = store.lookup(key)
    assert isinstance(answer, str)
    assert says in answer
    place = store.quarantine(key)
    assert place.startswith(f"{store.root}/quarantine/{key}")
    assert os.path.isdir(place)
    assert store.lookup(key) is None
    put(store, 1)
    assert found(store, key)


def test_publishing_over_what_is_damaged_sets_it_aside(store: Store) -> None:
    """Whoever holds the lock has the last word."""
    key = put(store, 1)
    os.truncate(f"{store.folder(key)}/plan", 3)
    put(store, 1)
    assert found(store, key)
    assert len(os.listdir(f"{store.root}/quarantine")) == 1


def test_running_out_of_descriptors_does_not_make_an_entry_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound engine is not thrown away because a host app has too many files open."""
    key = put(store, 1)

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.os, "open", full)
    with pytest.raises(CacheUnwritable, match="Too many open files"):
        store.lookup(key)
    monkeypatch.undo()
    assert found(store, key)


def test_look_ups_leave_no_descriptor_behind(store: Store) -> None:
    """Neither hits that were closed or dropped, nor damaged entries."""
    good, bad = put(store, 1), put(store, 2)
    os.truncate(f"{store.folder(bad)}/plan", 1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        found(store, good)
        store.lookup(good)
        store.lookup(bad)
        store.lookup(key_of(3))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lease_closes_its_own_descriptor_once_only(tmp_path: Path) -> None:
    """However many threads close it: the number may be another file's by the second time."""
    for _ in range(50):
        lease = Lease(os.open(tmp_path, os.O_RDONLY))
        errors: list[BaseException] = []
        barrier = threading.Barrier(4)

        def close(
            lease: Lease = lease, barrier: threading.Barrier = barrier, errors: list[BaseException] = errors
        ) -> None:
            barrier.wait()
            try:
                lease.close()
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_leased_entry_is_not_removed_until_every_lease_is_over(store: Store) -> None:
    """Leases of this process count, one by one."""
    key = put(store, 1)
    one, other = store.lookup(key), store.lookup(key)
    assert isinstance(one, tuple)
    assert isinstance(other, tuple)
    assert not store.remove(key)
    one[2].close()
    one[2].close()
    assert not store.remove(key)
    other[2].close()
    assert store.remove(key)
    assert store.lookup(key) is None
    assert store.remove(key), "a missing one counts as removed"
    assert os.listdir(f"{store.root}/tmp") == []


def test_a_lease_is_on_the_entry_that_is_there_and_not_on_one_that_was_just_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eviction and a new publication may come between the opening and the lock."""
    key = put(store, 1)
    lock, turns = module._platform.lock_shared, []

    def replaced_first(fd: int) -> bool:
        if not turns:
            turns.append(fd)
            assert store.remove(key)
            put(store, 1)
        return lock(fd)

    monkeypatch.setattr(module._platform, "lock_shared", replaced_first)
    answer = store.lookup(key)
    assert isinstance(answer, tuple)
    assert turns
    assert not store.remove(key)
    answer[2].close()
    assert store.remove(key)


def test_a_lease_of_another_process_ends_with_kill_9(store: Store) -> None:
    """The kernel drops it; no file has to be cleaned up."""
    key = put(store, 1)
    with leased(store, key) as process:
        assert not store.remove(key)
        assert found(store, key), "others may use it meanwhile"
        process.kill()
        process.wait()
        assert store.remove(key)


@pytest.mark.parametrize("damage", ["no entry", "link", "garbage"])
def test_damaged_entries_and_stray_files_can_be_removed(store: Store, damage: str) -> None:
    """A file that somebody's file manager left among the engines does not block eviction."""
    key = put(store, 1)
    DAMAGE[damage][0](Path(store.folder(key)))
    assert store.remove(key)
    Path(store.root, "engines", ".DS_Store").write_bytes(b"x")
    assert store.remove(".DS_Store")
    assert list(store.list_keys()) == []
    assert os.listdir(f"{store.root}/tmp") == []


def test_what_macos_says_of_a_socket_is_that_there_is_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux says something else of it; an entry with one in the place of its file can be removed on both."""
    key = put(store, 1)

    def refuse(name: str) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported on socket", name)

    monkeypatch.setattr(module, "_open_to_claim", refuse)
    assert store.remove(key)
    assert list(store.list_keys()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="giving files away needs root")
def test_a_cache_of_another_user_is_not_trusted(store: Store) -> None:
    """Neither looked into nor written to; the message names both users and the remedy."""
    key = put(store, 1)
    os.chown(store.root, 12345, -1)
    for act in (lambda: store.lookup(key), store.prepare):
        with pytest.raises(CacheInsecure, match="belongs to user 12345, and this process runs as user 0") as info:
            act()
        assert "chown" in info.value.hint


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o770])
def test_a_cache_that_others_may_write_is_not_trusted(store: Store, mode: int) -> None:
    """An engine from there could be anybody's."""
    key = put(store, 1)
    os.chmod(store.root, mode)
    with pytest.raises(CacheInsecure, match=f"mode {mode:o}"):
        store.lookup(key)
    os.chmod(store.root, 0o755)
    assert found(store, key)


def test_a_file_in_the_cache_s_place_is_refused(tmp_path: Path) -> None:
    """Whether it stands in the place of the cache or of a folder above it."""
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        store = Store(str(root))
        with pytest.raises(CacheUnwritable) as info:
            store.lookup(key_of(1))
        assert str(root) in str(info.value)
        with pytest.raises(CacheUnwritable):
            store.prepare()


def test_errors_of_the_system_become_errors_of_the_cache() -> None:
    """A full disk says how much is free, anything else what happened where."""
    full = write_error(OSError(errno.ENOSPC, "No space left on device"), "/")
    assert isinstance(full, DiskFull)
    assert "free, and more is needed" in str(full)
    assert isinstance(write_error(OSError(errno.EDQUOT, "Quota exceeded"), "/"), DiskFull)
    other = write_error(OSError(errno.EROFS, "Read-only file system", "/cache/x"), "/cache")
    assert str(other) == "The cache cannot be used at /cache/x: Read-only file system."


def test_a_file_that_a_file_server_withholds_is_not_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delegation or an oplock: another try finds it; while it lasts it is an error, and no reason to make it anew."""
    key = put(store, 1)
    real, refusals = os.open, [2]

    def withheld(path: str, *rest: int) -> int:
        if str(path).endswith("entry.json") and refusals[0]:
            refusals[0] -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", path)
        return real(path, *rest)

    monkeypatch.setattr(module.os, "open", withheld)
    assert found(store, key)
    refusals[0] = 1000
    with pytest.raises(CacheUnwritable, match="open for itself"):
        store.lookup(key)
    assert store.remove(key) is False


def test_a_machine_that_is_out_of_memory_is_not_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is as good a place for it to show as opening."""
    key = put(store, 1)

    def short(fd: int, size: int) -> bytes:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "read", short)
        with pytest.raises(CacheUnwritable, match="Cannot allocate"):
            store.lookup(key)
    assert found(store, key)


def test_a_link_among_the_engines_changes_no_mode_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when it is set aside nor when it is evicted."""
    put(store, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "entry.json").write_text("{}")
    (elsewhere / "entry.json").chmod(0o444)
    key = key_of(2)
    os.symlink(elsewhere, store.folder(key))

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.os, "rename", refused)
    for act in (store.quarantine, store.remove):
        with pytest.raises(CacheUnwritable):
            act(key)
    with pytest.raises(PermissionError):
        real = os.open
        monkeypatch.setattr(
            module.os, "open", lambda path, *rest: refused() if "entry" in str(path) else real(path, *rest)
        )
        module._open_to_claim(f"{store.folder(key)}/entry.json")
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert (elsewhere / "entry.json").stat().st_mode & 0o777 == 0o444
