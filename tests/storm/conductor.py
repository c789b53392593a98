"""Begins the storm, kills, turns the quota, and ends it."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from refit_agent.cache.upkeep import list_entries

from . import caller
from .board import Board
from .folder_watch import FolderWatch
from .ground import Ground

_TICK_S = 0.005
_SAMPLE_S = 0.5
#: Turns of the quota in a storm, beginning with room for everything.
_TURNS = 6


class Plan(NamedTuple):
    """How much of it. ``patience_s`` is for how long a caller may wait for one engine."""

    processes: int
    seconds: float
    kills_a_second: float
    patience_s: float
    seed: int


class Outcome(NamedTuple):
    """What was seen. ``killed`` are processes; ``came`` and ``went`` count published entries by key."""

    board: Board
    engines: FolderWatch
    quarantine: FolderWatch
    callers: int
    killed_callers: frozenset[int]
    killed_workers: frozenset[int]
    narrow_quota: int
    peak_bytes: int
    seconds: float


class _Conductor:
    def __init__(self, ground: Ground, plan: Plan) -> None:
        self._ground, self._plan = ground, plan
        self._rng = random.Random(plan.seed)
        self._board = Board(plan.processes)
        self._slots: dict[int, int] = {}
        self._begun = 0
        self._killed_callers: set[int] = set()
        self._killed_workers: set[int] = set()
        self._peak = 0
        # One wait for the lock and one for the worker; then it should have been given up, which is a violation too.
        self._stuck_s = 2 * plan.patience_s + 2
        self._watches = [FolderWatch(Path(ground.store.root, name)) for name in ("engines", "quarantine")]

    def run(self) -> Outcome:
        sizes = [expected.size for expected in self._ground.models.values()]
        # The files of an entry are counted with entry.json; half of the engines fit, and the largest one in any case.
        wide, narrow = 1 << 40, max(max(sizes) + 8192, sum(sizes) // 2)
        self._board.quota = wide
        for slot in range(self._plan.processes):
            self._begin(slot)
        start = time.monotonic()
        next_kill, next_sample = start + self._pause(), start
        while (now := time.monotonic()) < start + self._plan.seconds:
            turn = int((now - start) / self._plan.seconds * _TURNS)
            self._board.quota = narrow if turn % 3 else wide
            for watch in self._watches:
                watch.read()
            self._reap()
            if now >= next_kill:
                self._kill()
                next_kill = now + self._pause()
            if now >= next_sample:
                self._peak = max(self._peak, sum(cached.size for cached in list_entries(self._ground.store)))
                self._look_for_stuck()
                next_sample = now + _SAMPLE_S
            time.sleep(_TICK_S)
        self._board.stop()
        self._end()
        for watch in self._watches:
            watch.read()
        engines, quarantine = self._watches
        return Outcome(
            self._board,
            engines,
            quarantine,
            self._begun,
            frozenset(self._killed_callers),
            frozenset(self._killed_workers),
            narrow,
            self._peak,
            time.monotonic() - start,
        )

    def _pause(self) -> float:
        rate = self._plan.kills_a_second
        return self._rng.expovariate(rate) if rate > 0 else float("inf")

    def _begin(self, slot: int) -> None:
        self._begun += 1
        seed = f"{self._plan.seed} {slot} {self._begun}"
        self._board.alive(slot)
        pid = os.fork()
        if pid:
            self._slots[pid] = slot
            return
        code = 1
        try:
            for watch in self._watches:
                watch.close()
            caller.run(self._ground, self._board, slot, seed, self._plan.patience_s)
            code = 0
        except BaseException:  # noqa: BLE001 - a child must never come back into the conductor
            self._ground.complain(f"a caller broke down: {traceback.format_exc()}")
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            slot = self._slots.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code != 0 and pid not in self._killed_callers:
                self._ground.complain(f"caller {pid} ended with {code} by itself")
            if not self._board.stopping:
                self._begin(slot)

    def _kill(self) -> None:
        """A worker, the caller of a worker, or any caller."""
        workers = [(worker, maker) for maker in self._slots for worker in _children(maker)]
        lot = self._rng.choice(("worker", "maker", "any"))
        if lot == "any" or not workers:
            victim = self._rng.choice(list(self._slots))
        else:
            worker, victim = self._rng.choice(workers)
            if lot == "worker":
                if _kill_child(worker, victim):
                    self._killed_workers.add(worker)
                return
        self._killed_callers.add(victim)
        os.kill(victim, signal.SIGKILL)  # our own child: its number is its own until we have waited for it

    def _look_for_stuck(self) -> None:
        for pid, slot in list(self._slots.items()):
            if self._board.silent_s(slot) > self._stuck_s:
                self._give_up(pid, slot)

    def _give_up(self, pid: int, slot: int) -> None:
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        where = (self._ground.notes / f"stuck-{slot}").read_text()
        self._ground.complain(f"caller {pid} is stuck: {where}")
        self._killed_callers.add(pid)
        os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        ends = time.monotonic() + self._stuck_s
        while self._slots and time.monotonic() < ends:
            self._reap()
            for watch in self._watches:
                watch.read()
            time.sleep(_TICK_S)
        for pid, slot in list(self._slots.items()):
            self._give_up(pid, slot)
        while self._slots:
            self._reap()
            time.sleep(_TICK_S)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill_child(pid: int, parent: int) -> bool:
    """Kill it if it is still that process's child; whether it was."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The handle is this process's for good; a number that was given to another one shows in its parent.
        if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != parent:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def run(ground: Ground, plan: Plan) -> Outcome:
    """The storm, from the first process to the last."""
    return _Conductor(ground, plan).run()
