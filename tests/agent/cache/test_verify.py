from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from entries import put
from refit_agent.cache import verify as module
from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import Store
from refit_agent.cache.verify import verify
from refit_agent.errors import CacheUnwritable


def test_verification_finds_what_size_and_time_do_not_show(store: Store) -> None:
    """The damaged entry is set aside, the sound one stays."""
    sound, rotten = put(store, 1), put(store, 2)
    plan = Path(store.folder(rotten), "plan")
    status = plan.stat()
    plan.write_bytes(b"x" * status.st_size)
    os.utime(plan, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert isinstance(store.lookup(rotten), tuple), "a look-up does not see it"
    read: list[int] = []
    verdicts = {v.key: v for v in verify(store, on_bytes=read.append)}
    assert sum(read) == 2000
    assert verdicts[sound].fault == ""
    assert "content of plan changed" in verdicts[rotten].fault
    assert os.path.isdir(verdicts[rotten].set_aside)
    assert list(store.list_keys()) == [sound]


def test_verify_does_not_take_away_what_was_published_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found damaged, replaced by a sound one, and only then set aside: the sound one stays."""
    key = put(store, 1)
    monkeypatch.setattr(module, "_content_fault", lambda *_: faults.pop())
    faults = ["", "damaged"]
    (verdict,) = verify(store)
    assert (verdict.fault, verdict.set_aside) == ("", "")
    assert isinstance(store.lookup(key), tuple)


def test_a_process_that_is_out_of_descriptors_damages_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that cannot open a file must not take a sound engine away."""
    key = put(store, 1)

    def hash_file(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "hash_file", hash_file)
    with pytest.raises(CacheUnwritable, match="Too many open files"):
        verify(store)
    assert isinstance(store.lookup(key), tuple)


def test_room_can_be_made_from_what_is_being_read(store: Store) -> None:
    """Reading takes minutes, and nobody uses the engine; that it went meanwhile is no fault."""
    key = put(store, 1)
    removed: list[bool] = []
    verdicts = verify(store, on_bytes=lambda _: removed.append(store.remove(key)))
    assert removed[0] is True and store.lookup(key) is None
    assert all(verdict.fault == "" for verdict in verdicts)


@pytest.mark.parametrize("hindrance", ["lock", "rename"])
def test_what_cannot_be_set_aside_is_told(store: Store, monkeypatch: pytest.MonkeyPatch, hindrance: str) -> None:
    """On a disk that has become read-only neither a lock nor a rename can be had."""
    key = put(store, 1)
    Path(store.folder(key), "plan").write_bytes(b"")
    if hindrance == "rename":

        def quarantine(self: Store, key: str) -> str:
            raise CacheUnwritable(path=key, detail="Read-only file system")

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
        if str(path).endswith("/plan"):
            raise OSError(code, os.strerror(code))
        return real(path, **options)  # type: ignore[arg-type, call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", failing)
    for ask in (lambda: store.lookup(key), lambda: verify(store)):
        with pytest.raises(CacheUnwritable):
            ask()
    monkeypatch.undo()
    assert isinstance(store.lookup(key), tuple)
