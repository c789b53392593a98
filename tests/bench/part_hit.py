"""Asking for an engine that is there: by the number of cached engines, and by the size of the model.

Beside it huggingface_hub's look-up of a file in a cache that was made here. The two do not do the same: that one
follows a name to a path; ours reads the app's manifest, ranks its engines for this machine, compares the entry's files
with what was published, and takes a lease. Every hit asks for another app's engine, in an order by chance.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.many_engines import START, HubCache, ManyEngines, hub_lookups
from bench.measured import OURS, Bound, Findings, Row, SizeUnit, Way
from bench.process_memory import growth, peak_of
from bench.timing import Times, in_turn, own_home
from refit_agent import ensure_engine, paths
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.cache.store import Store

PART = "hit"
BY_COUNT, BY_SIZE, NEW, MORE = "a hit", "a hit, by model size", "new process: import and hit", "making one more engine"
ALONE = f"{OURS}, the cache alone"
HIT_S = 0.3e-3
_COUNTS = (1, 10, 100, 1000, 10_000)
_SIZES = (1_000_000, 64_000_000, 1_000_000_000, 4_000_000_000)
_HITS = 3000
#: What may come and go with the allocator, which takes memory from the system a megabyte at a time.
_ALLOCATOR_BYTES = 2e6
_GROWTH = "what a hit, the second in its process, adds to it at its peak; of a new process the peak of the whole"


def measure(findings: Findings, work: Path, *, quick: bool) -> None:
    """All rows; those of huggingface_hub only where it is installed."""
    if not hub_lookups(str(work)):
        findings.leave(PART, "rows of huggingface_hub", "it is not installed (the extra `bench` brings it)")
    many, hub = ManyEngines(work), HubCache(work / "hub")
    counts = (1, 1000) if quick else _COUNTS
    makings: dict[int, float] = {}
    for count in counts:
        many.grow(count)
        hub.grow(count)
        findings.add(_by_count(many, hub, count, 600 if quick else _HITS))
        if count in (counts[0], counts[-1]):
            makings[count] = _making(work / f"more{count}", rounds=3 if quick else 9)
    findings.add(_new_process(many, hub, rounds=5 if quick else 15))
    for count, value in makings.items():
        findings.add(Row(part=PART, what=MORE, size=count, size_unit="engines", unit="s", memory=_GROWTH, ways=(Way(name=OURS, value=value),)))  # fmt: skip
    sizes = _SIZES[:2] if quick else _SIZES
    for size in sizes:
        own_home(work / f"size{size}")
        (work / f"size{size}").mkdir()
        large, other = ManyEngines(work / f"size{size}"), HubCache(work / f"size{size}" / "hub")
        large.grow(10, size)
        other.grow(10, size)
        findings.add(_by_size(large, other, size, 200 if quick else 1000))
    _bounds(findings, counts[-1])


def _hits(many: ManyEngines, hub: HubCache, hits: int) -> tuple[dict[str, Callable[[], object]], int]:
    """Each way's next hit, and how many are wanted: every way asks in an order of its own."""
    store = Store(paths.home().cache)
    bundles, keys = _shuffled(many.bundles), _shuffled(many.keys)
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: ensure_engine(next(bundles), many.model).close(),
        ALONE: lambda: store.lookup(next(keys)),
    }
    for name, look in hub_lookups(hub.root).items():
        repos = _shuffled(hub.repos)
        ways[name] = partial(_next, look, repos)
    return ways, hits


def _shuffled(names: Sequence[str]) -> itertools.cycle[str]:
    return itertools.cycle(random.Random(1).sample(names, len(names)))


def _next(look: Callable[[str], object], repos: Iterator[str]) -> object:
    return look(next(repos))


def _timed(many: ManyEngines, hub: HubCache, hits: int) -> dict[str, Times]:
    assert ensure_engine(many.bundles[-1], many.model).hit
    return in_turn(*_hits(many, hub, hits))


def _by_count(many: ManyEngines, hub: HubCache, count: int, hits: int) -> Row:
    return _row(BY_COUNT, count, "engines", _timed(many, hub, hits), _memory(many, hub))


def _by_size(many: ManyEngines, hub: HubCache, size: int, hits: int) -> Row:
    return _row(BY_SIZE, size, "B", _timed(many, hub, hits), _memory(many, hub))


def _row(what: str, size: int, unit: SizeUnit, times: dict[str, Times], memory: dict[str, int]) -> Row:
    ways = tuple(
        Way(name=name, value=found.median, late=found.late, private=memory.get(name)) for name, found in times.items()
    )
    return Row(part=PART, what=what, size=size, size_unit=unit, unit="s", memory=_GROWTH, ways=ways)


def _arguments(many: ManyEngines, hub: HubCache) -> list[str]:
    return [many.bundles[-1], many.model, hub.repos[-1], hub.root]


def _present(hub: HubCache) -> list[str]:
    return [OURS, *hub_lookups(hub.root)]


def _memory(many: ManyEngines, hub: HubCache) -> dict[str, int]:
    # Once before: what is imported late, and the machine's facts, are there from the second hit on.
    steps = {name: (f"{START[name][0]}\n{START[name][1]}", START[name][1]) for name in _present(hub)}
    return {name: growth(*step, *_arguments(many, hub)) for name, step in steps.items()}


def _new_process(many: ManyEngines, hub: HubCache, rounds: int) -> Row:
    commands = {name: [sys.executable, "-c", "\n".join(START[name]), *_arguments(many, hub)] for name in _present(hub)}
    times = in_turn({name: partial(subprocess.run, c, check=True) for name, c in commands.items()}, rounds)
    found = tuple(
        Way(name=name, value=times[name].median, private=peak_of(command).private) for name, command in commands.items()
    )
    return Row(
        part=PART, what=NEW, size=len(many.bundles), size_unit="engines", unit="s", memory=_GROWTH, ways=found
    )  # fmt: skip


def _making(work: Path, rounds: int) -> float:
    """Seconds that a new engine takes beside those that are there, its process included; the same small model each time."""
    work.mkdir()
    bundle = str(work / "demo")
    model = write_demo_bundle(bundle, seed=8).models[0].name
    store = Store(paths.home().cache)

    def make() -> None:
        with ensure_engine(bundle, model, service=False) as engine:
            assert not engine.hit
            key = engine.key
        assert store.remove(key)

    return in_turn({OURS: make}, rounds)[OURS].median


def _bounds(findings: Findings, most: int) -> None:
    row = next(r for r in findings.rows if r.what == BY_COUNT and r.size == most)
    findings.bounds.append(Bound(text=f"a hit with {most:,} engines", value=row.ways[0].value, limit=HIT_S, unit="s"))
    ours = [r.ways[0].private or 0 for r in findings.rows if r.what == BY_SIZE]
    findings.bounds.append(
        Bound(
            text="a hit: memory at any model size above that of the smallest model",
            value=float(max(ours) - ours[0]),
            limit=_ALLOCATOR_BYTES,
            unit="B",
        )
    )
