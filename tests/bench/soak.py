"""The service under load for a long time: does it keep its memory?

Clients ask without end: hits on kept connections, leases that are renewed, given back or forgotten, requests that are
refused, explanations, status; and now and then an engine is made, by a worker process of the service, and removed.
Resident memory is sampled all the while. The first part of the time is not counted: caches fill, and allocators take what they keep.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from bench.service_process import private_bytes, service
from refit_agent import ServiceClient, ensure_engine, paths
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.cache.store import Store
from refit_agent.client.messages import EnsureRequest
from refit_agent.errors import BundleError, NoSuchLease, ServiceUnreachable

LIMIT_BYTES = 5_000_000
_WARM_UP_SHARE, _MOST_WARM_UP_S = 0.25, 300.0
_SAMPLE_S = 1.0
_REMAKE_S = 10.0
_CLIENTS = 4
_LEASE_S = 600.0
#: The samples between which growth is looked for: single ones have a request or two in flight.
_AVERAGED = 10


class Sample(NamedTuple):
    """The service at one moment; ``at`` in seconds since the load began."""

    at: float
    resident: int
    private: int
    descriptors: int
    threads: int


class Soak(NamedTuple):
    """What was seen. ``growth`` is the most resident memory, averaged over ten samples, after the warm-up above the least of
    it before: a service that gives memory back and takes it again does not grow."""

    samples: list[Sample]
    requests: int
    unanswered: int
    remade: int
    growth: int
    warm_up_s: float

    def encoded(self) -> bytes:
        """As JSON, for a plot or a comparison."""
        return msgspec.json.format(msgspec.json.encode(self._asdict()), indent=0) + b"\n"

    @property
    def kept(self) -> bool:
        return self.growth <= LIMIT_BYTES


def soak(work: Path, minutes: float, tell: bool = True) -> Soak:
    """Load for that long. REFIT_AGENT_HOME is this process's own."""
    bundle, another = str(work / "demo"), str(work / "another")
    model = write_demo_bundle(bundle, width=4).models[0].name
    write_demo_bundle(another, width=4, seed=8)
    context = multiprocessing.get_context("fork")
    # Without a lock: a client that is killed while it holds one would leave this process waiting for ever.
    stop = context.RawValue("b", 0)
    counts = [context.Array("Q", 2) for _ in range(_CLIENTS)]
    with service() as process:
        ensure_engine(bundle, model, service=True).close()
        clients = [context.Process(target=_client, args=(bundle, model, n, stop, counts[n])) for n in range(_CLIENTS)]
        for client in clients:
            client.start()
        try:
            samples, remade = _watch(process, another, model, minutes * 60, tell)
        finally:
            stop.value = 1
            for client in clients:
                client.join(60)
        # A client that ended early would leave the service without load, and flat.
        assert all(client.exitcode == 0 for client in clients), "a client failed"
    requests, unanswered = (sum(count[n] for count in counts) for n in (0, 1))
    warm_up_s = min(minutes * 60 * _WARM_UP_SHARE, _MOST_WARM_UP_S)
    return Soak(samples, requests, unanswered, remade, growth_of(samples, warm_up_s), warm_up_s)


def growth_of(samples: list[Sample], warm_up_s: float) -> int:
    """The greatest rise of averaged resident memory after the warm-up."""
    resident = [s.resident for s in samples if s.at >= warm_up_s]
    count = min(_AVERAGED, len(resident))
    averages = [sum(resident[n : n + count]) / count for n in range(len(resident) - count + 1)]
    least, rise = averages[0], 0.0
    for value in averages:
        least = min(least, value)
        rise = max(rise, value - least)
    return int(rise)


def _watch(process: psutil.Process, bundle: str, model: str, seconds: float, tell: bool) -> tuple[list[Sample], int]:
    samples: list[Sample] = []
    remade, begun, told = 0, time.monotonic(), 0.0
    store = Store(paths.home().cache)
    while (at := time.monotonic() - begun) < seconds:
        now = Sample(at, process.memory_info().rss, private_bytes(process), process.num_fds(), process.num_threads())
        samples.append(now)
        if tell and at >= told:
            print(_words(now), flush=True)
            told += max(seconds / 20, 5.0)
        if at >= _REMAKE_S * (remade + 1):
            with ensure_engine(bundle, model, service=True) as engine:
                assert not engine.hit
            # As an eviction does it: whoever made it holds no lease any more.
            _until(lambda key=engine.key: store.remove(key))  # type: ignore[misc]
            remade += 1
        time.sleep(_SAMPLE_S)
    return samples, remade


def _until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not done():
        if time.monotonic() > ends:
            raise TimeoutError("the engine that was made is still leased")
        time.sleep(0.1)


def _words(now: Sample) -> str:
    return (
        f"{now.at:6.0f} s  resident {now.resident / 1e6:6.2f} MB  private {now.private / 1e6:6.2f} MB  "
        f"{now.descriptors} descriptors  {now.threads} threads"
    )


def _client(bundle: str, model: str, number: int, stop: Any, counts: Any) -> None:
    """Everything that an app can ask, over and over. ``counts`` gets what was answered, and rounds that were not."""
    turn = 0
    with ServiceClient() as client:
        while not stop.value:
            turn += 1
            try:
                counts[0] += _round(client, bundle, model, turn)
            except ServiceUnreachable:
                # A machine that others keep busy may leave it without an answer for ten seconds: no matter of memory.
                counts[1] += 1


def _round(client: ServiceClient, bundle: str, model: str, turn: int) -> int:
    """One of each; gives the number of requests."""
    for _ in range(20):
        client.ensure(EnsureRequest(bundle=bundle, model=model))
    found = client.ensure(EnsureRequest(bundle=bundle, model=model, ttl_s=_LEASE_S))
    if turn % 2:  # the others are forgotten, and lapse
        client.renew(found.lease.id)
        client.release(found.lease.id)
    for refused in (
        lambda: client.ensure(EnsureRequest(bundle=bundle, model=f"no such model {turn % 100}")),
        lambda: client.release("nonsense"),
    ):
        with contextlib.suppress(BundleError, NoSuchLease):
            refused()
    client.explain(bundle, model)
    client.status()
    if turn % 20:
        return 25 + 2 * (turn % 2)
    with ServiceClient() as another:  # a new connection now and then
        another.gpus()
    return 26


def report(found: Soak, minutes: float) -> str:
    """The outcome in words."""
    first = next(s for s in found.samples if s.at >= found.warm_up_s)
    last = found.samples[-1]
    return (
        f"{minutes:g} minutes, {found.requests:,} requests, {found.remade} engines made"
        f"{f', {found.unanswered} rounds without an answer in time' if found.unanswered else ''}\n"
        f"resident after {found.warm_up_s:.0f} s {first.resident / 1e6:.2f} MB, at the end {last.resident / 1e6:.2f} MB; "
        f"greatest rise {found.growth / 1e6:.2f} MB\n"
        f"descriptors {first.descriptors} then {last.descriptors}, threads {first.threads} then {last.threads}\n"
        f"bound {'kept' if found.kept else 'MISSED'}: at most {LIMIT_BYTES / 1e6:g} MB (ratio {found.growth / LIMIT_BYTES:.2f})"
    )
