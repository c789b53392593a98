"""Many clients at once, every one a process of its own: each asks for an engine that is there, again and again."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple, TypeAlias

from bench.timing import Times

Results: TypeAlias = "Queue[tuple[float, float, list[float]]]"
#: Opens what a client needs, in its process, and gives its one action.
Opener = Callable[[], Callable[[], object]]


class Load(NamedTuple):
    """What all clients of one run saw: seconds of every hit, and hits a second in all."""

    times: list[float]
    per_s: float

    @property
    def late(self) -> float:
        return Times(self.times).late

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    def text(self) -> str:
        return f"median {self.median * 1e3:.2f} ms, 99 % {self.late * 1e3:.2f} ms, {self.per_s:.0f} hits/s in all"


class Typical(NamedTuple):
    """Of each figure of several rounds the median."""

    median: float
    late: float
    per_s: float


def typical_load(open_client: Opener, clients: int, pause_s: float, seconds: float, rounds: int) -> Typical:
    """Several rounds of `load`. A machine that stands still for 30 ms, as virtual ones do, makes more than a hundredth of
    one round's hits late; it is that round's misfortune alone."""
    found = [load(open_client, clients, pause_s, seconds) for _ in range(rounds)]
    return Typical(
        *(statistics.median(column) for column in zip(*((f.median, f.late, f.per_s) for f in found), strict=True))
    )


def load(open_client: Opener, clients: int, pause_s: float, seconds: float) -> Load:
    """``clients`` processes at once; hits a second from the first one's begin to the last one's end. ``pause_s`` is
    from one request of a client to its next, 0 for none."""
    context = multiprocessing.get_context("fork")
    out: Results = context.Queue()
    start = context.Barrier(clients)
    processes = [
        context.Process(target=_client, args=(open_client, pause_s, pause_s * n / clients, seconds, start, out))
        for n in range(clients)
    ]
    for process in processes:
        process.start()
    answers = [out.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    times = [t for _, _, some in answers for t in some]
    return Load(times, len(times) / (max(end for _, end, _ in answers) - min(begin for begin, _, _ in answers)))


def _client(open_client: Opener, pause_s: float, delay_s: float, seconds: float, start: Barrier, out: Results) -> None:
    """Hits for ``seconds``; with a pause at fixed times, whether or not the last answer was late."""
    times = []
    ask = open_client()
    ask()
    start.wait(120)
    begun = time.monotonic()
    due = begun + delay_s
    time.sleep(delay_s)
    while time.monotonic() < begun + seconds:
        # From when it was due, not from when it was sent: a late answer must not hide the next one's wait.
        asked = due if pause_s else time.monotonic()
        ask()
        now = time.monotonic()
        times.append(now - asked)
        due += pause_s
        if pause_s and due > now:
            time.sleep(due - now)
    out.put((begun, time.monotonic(), times))
