"""Ways to break the product in this process and in those that are forked from it, so that each check can be seen to
fail. Nothing here is used by a storm that is to hold."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from refit_agent import make
from refit_agent.cache import _posix, upkeep
from refit_agent.cache.store import Store


def _leases() -> None:
    """Evictions take what is leased."""
    _posix.lock_exclusive = lambda fd: True


def _locks() -> None:
    """Whoever misses an engine makes it, whoever else does, and nobody clears away what another works on."""

    @contextlib.contextmanager
    def no_lock(*_: object) -> Iterator[None]:
        yield

    make.key_lock = no_lock
    make.sweep = lambda *_, **__: []
    make._remove_leftovers = lambda *_: None


def _look_ups() -> None:
    """Now and then an engine that is there is not found, under the lock either."""
    sound = Store.lookup

    def lookup(store: Store, key: str, **options: Any) -> Any:
        found = sound(store, key, **options)
        if isinstance(found, tuple) and random.random() < 0.2:
            found[2].close()
            return None
        return found

    Store.lookup = lookup


def _contents() -> None:
    """Of half of the engines two bytes are others when they are published."""
    sound = Store.publish

    def publish(store: Store, staging: str, entry: Any) -> None:
        if random.random() < 0.5:
            path = f"{staging}/weights.bin"
            before = os.stat(path)
            with open(path, "r+b") as file:
                file.seek(100)
                file.write(b"\xaa\xaa")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        sound(store, staging, entry)

    Store.publish = publish


def _quota() -> None:
    """Nothing is ever evicted to make room."""
    make.make_room = lambda *_: []
    make.keep_quota = lambda *_: []


def _sweep() -> None:
    """What killed processes left is never deleted."""
    make.sweep = upkeep.sweep = lambda *_, **__: []
    make._remove_leftovers = lambda *_: None


def _stuck() -> None:
    """Whoever publishes never comes back; but for this process, which has to say so in the end."""
    sound, here = Store.publish, os.getpid()

    def publish(store: Store, staging: str, entry: Any) -> None:
        if os.getpid() != here:
            time.sleep(3600)
        sound(store, staging, entry)

    Store.publish = publish


def _half() -> None:
    """An engine is published as a folder that is filled afterwards."""
    sound = os.rename

    def publish(store: Store, staging: str, entry: Any) -> None:
        from refit_agent.cache.entry import encode_entry

        folder = store.folder(entry.key)
        os.mkdir(folder)
        for name in os.listdir(staging):
            sound(f"{staging}/{name}", f"{folder}/{name}")
        with open(f"{folder}/entry.json", "wb") as file:
            file.write(encode_entry(entry))

    Store.publish = publish


KINDS: dict[str, Callable[[], None]] = {
    "leases": _leases,
    "locks": _locks,
    "look-ups": _look_ups,
    "contents": _contents,
    "quota": _quota,
    "sweep": _sweep,
    "stuck": _stuck,
    "half": _half,
}
