"""Leases that clients hold over HTTP: by id, with a time to live, and ended too when the client's process ends.

However many leases an engine has here, the cache sees one, so that a client that never gives any back costs
no file descriptors. Used by the event loop's thread alone; asleep while there are none.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

from refit_agent.errors import NoSuchLease, SettingInvalid
from refit_service.peers import open_process
from refit_service.protocol import LeaseRecord

#: More leases on one engine than clients can mean: the oldest go. They are small; a flood of them is not.
MOST_PER_ENGINE = 1024
_SHORTEST_SLEEP_S = 1.0


class Keeper(Protocol):
    """What keeps the engine from eviction until it is closed."""

    def close(self) -> None: ...


class Process:
    """A client's process, watched by one descriptor however many leases it has. Made before the engine is, so
    that its number cannot have gone to another process meanwhile. ``requests`` wait for a lease in its name."""

    __slots__ = ("ended", "fd", "leases", "pid", "requests")

    def __init__(self, pid: int) -> None:
        try:
            self.fd = open_process(pid)
        except (ProcessLookupError, PermissionError) as error:
            raise SettingInvalid(name="pid", value=pid, wanted="the number of a running process") from error
        self.pid = pid
        self.ended = False
        self.requests = 0
        self.leases: set[str] = set()


class _Lease:
    __slots__ = ("ends", "key", "process", "ttl_s")

    def __init__(self, key: str, ttl_s: float, ends: float, process: Process | None) -> None:
        self.key = key
        self.ttl_s = ttl_s
        self.ends = ends
        self.process = process


class LeaseBook:
    """All leases of this service. Times are the event loop's: a clock set back neither ends nor prolongs any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._leases: dict[str, _Lease] = {}
        self._by_key: dict[str, dict[str, None]] = {}
        self._keepers: dict[str, Keeper] = {}
        self._processes: dict[int, Process] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._leases)

    def process(self, pid: int) -> Process:
        """The process of that number, watched from now on; every call needs a `forget` when the request is over.

        Raises:
            SettingInvalid: there is none.
        """
        known = self._processes.get(pid)
        if known is None:
            known = self._processes[pid] = Process(pid)
            if known.fd is not None:
                self._loop.add_reader(known.fd, self._process_ended, known)
        known.requests += 1
        return known

    def forget(self, process: Process | None) -> None:
        """A request of the process is over: it is watched no longer than it has others, or leases."""
        if process is not None:
            process.requests -= 1
            self._unwatch_idle(process)

    def _unwatch_idle(self, process: Process) -> None:
        if not process.leases and not process.requests:
            self._unwatch(process)

    def _unwatch(self, process: Process) -> None:
        if self._processes.get(process.pid) is not process:
            return
        del self._processes[process.pid]
        if process.fd is not None:
            self._loop.remove_reader(process.fd)
            os.close(process.fd)

    def grant(self, key: str, keeper: Keeper, ttl_s: float, process: Process | None = None) -> LeaseRecord:
        """A new lease on the engine ``key``; ``keeper`` is closed when the engine's last lease has ended."""
        before = self._keepers.get(key)
        if before is not keeper:
            # The newest one is on what has the name now: a damaged entry may have been replaced meanwhile.
            self._keepers[key] = keeper
            if before is not None:
                before.close()
        name = os.urandom(12).hex()
        # At once, if the process ended while the engine was made.
        ends = self._loop.time() + (ttl_s if process is None or not process.ended else 0)
        self._leases[name] = _Lease(key, ttl_s, ends, process)
        siblings = self._by_key.setdefault(key, {})
        siblings[name] = None
        if process is not None:
            process.leases.add(name)
        if len(siblings) > MOST_PER_ENGINE:
            self.release(next(iter(siblings)))
        self._wake_at(ends)
        return LeaseRecord(id=name, ttl_s=ttl_s, expires=time.time() + ttl_s)

    def renew(self, name: str, ttl_s: float) -> LeaseRecord:
        """Let the lease hold for ``ttl_s`` seconds from now. Raises NoSuchLease."""
        lease = self._leases.get(name)
        if lease is None or lease.ends <= self._loop.time():
            raise NoSuchLease(lease=name)
        lease.ttl_s, lease.ends = ttl_s, self._loop.time() + ttl_s
        self._wake_at(lease.ends)
        return LeaseRecord(id=name, ttl_s=ttl_s, expires=time.time() + ttl_s)

    def release(self, name: str) -> None:
        """End the lease. Raises NoSuchLease."""
        lease = self._leases.pop(name, None)
        if lease is None:
            raise NoSuchLease(lease=name)
        if lease.process is not None:
            lease.process.leases.discard(name)
            self._unwatch_idle(lease.process)
        siblings = self._by_key[lease.key]
        del siblings[name]
        if not siblings:
            del self._by_key[lease.key]
            self._keepers.pop(lease.key).close()

    def release_if_there(self, name: str) -> None:
        """End the lease unless it has ended already."""
        if name in self._leases:
            self.release(name)

    def close(self) -> None:
        """End all leases."""
        for name in list(self._leases):
            self.release(name)
        for process in list(self._processes.values()):
            self._unwatch(process)
        if self._timer is not None:
            self._timer.cancel()

    def _process_ended(self, process: Process) -> None:
        process.ended = True
        # First, and whoever still waits in its name: a new process may get its number now.
        self._unwatch(process)
        for name in list(process.leases):
            self.release(name)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for name in [name for name, lease in self._leases.items() if lease.ends <= now]:
            if name in self._leases:
                self.release(name)
        if self._leases:
            # Not at once for the next one: a thousand leases that end one by one would be a thousand sweeps.
            soonest = min(lease.ends for lease in self._leases.values())
            self._wake_at(max(soonest, now + _SHORTEST_SLEEP_S))
