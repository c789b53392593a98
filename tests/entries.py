"""Cache entries made by hand, and processes that hold leases and locks on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bundles import python
from refit_agent.cache.entry import SCHEMA, Entry, EntryFile
from refit_agent.cache.store import Store


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def rot(path: Path) -> None:
    """One bit of the file changes, and neither its size nor its time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def put(store: Store, number: int, size: int = 1000, *, used: float | None = None) -> str:
    """Publish an entry of ``size`` bytes, last used at ``used``; gives its key."""
    key = key_of(number)
    store.prepare()
    staging = store.stage(key)
    data = bytes([number]) * size
    plan = Path(staging, "plan")
    plan.write_bytes(data)
    file = EntryFile(name="plan", size=size, mtime_ns=plan.stat().st_mtime_ns, sha256=hashlib.sha256(data).hexdigest())
    entry = Entry(
        schema=SCHEMA,
        key=key,
        plan="plan",
        files=(file,),
        runtime="onnxruntime",
        runtime_version="1.0",
        target="cpu",
        app="org.example.test 1",
        model="m",
        profile=None,
        engine="p",
        created=0.0,
    )
    store.publish(staging, entry)
    if used is not None:
        os.utime(f"{store.folder(key)}/entry.json", (used, used))
    return key


_HOLD_LEASE = """
import sys, time
from refit_agent.cache.store import Store
found = Store(sys.argv[1]).lookup(sys.argv[2])
print("ready", flush=True)
time.sleep(600)
"""
_HOLD_LOCK = """
import sys, time
from refit_agent.cache.store import Store
from refit_agent.cache.locks import key_lock
with key_lock(Store(sys.argv[1]), sys.argv[2], 0):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def _held(code: str, store: Store, key: str) -> Iterator[subprocess.Popen[bytes]]:
    command, env = python(code, store.root, key)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def leased(store: Store, key: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Another process holds a lease on the entry; `kill` it to end it."""
    return _held(_HOLD_LEASE, store, key)


def locked(store: Store, key: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Another process holds the lock of the key."""
    return _held(_HOLD_LOCK, store, key)


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait()
