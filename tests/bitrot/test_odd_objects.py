"""Folders, links, pipes and sockets where the cache has files: nobody waits for them, follows them or stumbles."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from entries import key_of, put
from refit_agent.cache.locks import key_lock, try_key_lock
from refit_agent.cache.upkeep import clear, list_entries, make_room, sweep

from .victim import Victim

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="Windows has no such things"),
    pytest.mark.timeout(60),  # a pipe that somebody opens and waits for
]


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"x")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may be a hundred bytes long
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(here)


def _link(path: Path) -> None:
    target = path.parents[2] / "target"
    target.write_bytes(b"somebody's")
    path.symlink_to(target)


ODD: dict[str, Callable[[Path], None]] = {
    "empty folder": Path.mkdir,
    "folder": _folder,
    "pipe": os.mkfifo,
    "socket": _socket,
    "link": _link,
    "dangling link": lambda path: path.symlink_to("/nonexistent/x"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "garbage": lambda path: path.write_bytes(os.urandom(100_000)) and None,
}
NAMES = ("", "entry.json", "model.onnx", "weights.bin")


def _replace(victim: Victim, name: str, odd: str) -> None:
    path = victim.folder / name if name else victim.folder
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    ODD[odd](path)


def _target_is_as_it_was(victim: Victim) -> bool:
    targets = list(Path(victim.store.root).parent.rglob("target"))
    return all(target.read_bytes() == b"somebody's" for target in targets)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_in_place_of_an_entry_or_a_file_of_it(victim: Victim, name: str, odd: str) -> None:
    """It is damage to the look-up, the list and verify; the next request makes the engine anew."""
    _replace(victim, name, odd)
    fault = victim.look_up()
    assert fault
    (listed,) = list_entries(victim.store)
    assert listed.fault and listed.key == victim.key
    with victim.ask() as engine:
        assert not engine.hit
    assert len(victim.set_aside()) == 1
    with victim.ask() as engine:
        assert engine.hit
    _replace(victim, name, odd)
    assert victim.verify().set_aside
    assert victim.store.lookup(victim.key) is None
    sweep(victim.store)
    assert victim.set_aside() == []
    assert _target_is_as_it_was(victim)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_it_does_not_hold_up_eviction(victim: Victim, name: str, odd: str) -> None:
    """Neither of what lies beside it nor, if it takes room, its own; clearing removes it in any case."""
    _replace(victim, name, odd)
    sound = put(victim.store, 1)
    with key_lock(victim.store, key_of(2), 0):
        make_room(victim.store, 1, 0)
    assert sound not in victim.store.list_keys()
    sound = put(victim.store, 1)
    assert sorted(clear(victim.store)[0]) == sorted({sound, *victim.store.list_keys()})
    assert os.listdir(f"{victim.store.root}/tmp") == os.listdir(victim.locks) == []
    assert _target_is_as_it_was(victim)


@pytest.mark.parametrize("odd", ODD)
def test_in_place_of_a_lock(victim: Victim, odd: str) -> None:
    """The engine is made all the same, sweeping leaves no lock behind, and the lock locks."""
    lock = victim.locks / f"{victim.key}.lock"
    lock.unlink(missing_ok=True)
    shutil.rmtree(victim.folder)
    ODD[odd](lock)
    with victim.ask() as engine:
        assert not engine.hit
    lock.unlink(missing_ok=True)
    ODD[odd](lock)
    with try_key_lock(victim.store, victim.key) as ours:
        assert ours
        with try_key_lock(victim.store, victim.key) as twice:
            assert not twice
    sweep(victim.store)
    assert os.listdir(victim.locks) == []
    assert _target_is_as_it_was(victim)


@pytest.mark.parametrize("odd", ODD)
def test_publishing_over_it(victim: Victim, odd: str) -> None:
    """Whoever holds the lock has the last word."""
    victim.store.discard(victim.store.folder(key_of(1)))
    ODD[odd](Path(victim.store.folder(key_of(1))))
    found = victim.store.lookup(put(victim.store, 1))
    assert isinstance(found, tuple)
    found[2].close()
    assert len(victim.set_aside()) == (0 if odd == "empty folder" else 1)


def test_a_file_among_the_entries_counts(victim: Victim) -> None:
    """It takes room, though it is no entry."""
    _replace(victim, "", "garbage")
    assert make_room(victim.store, 0, 100_000) == []
    assert make_room(victim.store, 0, 99_999) == [victim.key]
    assert not victim.folder.exists()


def test_a_link_of_the_same_size_and_time(victim: Victim) -> None:
    """A link has both of its own; what it leads to may change unseen."""
    path = victim.folder / "model.onnx"
    status = path.stat()
    path.unlink()
    path.symlink_to("x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    assert victim.look_up() == "model.onnx is not a file"


def test_an_entry_that_is_published_while_it_is_looked_for_is_not_called_damaged(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the entry that is not there yet and its folder that is."""
    from refit_agent.cache import store as module

    away = victim.folder.with_name("away")
    victim.folder.rename(away)
    exists = module.os.path.lexists

    def published_now(path: str) -> bool:
        if away.exists():
            away.rename(victim.folder)
        return exists(path)

    monkeypatch.setattr(module.os.path, "lexists", published_now)
    assert victim.look_up() == ""
