"""Whether what was promised held: of each engine, of the folders that are left, and of the quota."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from refit_agent import ensure_engine
from refit_agent.cache import upkeep
from refit_agent.cache.verify import verify
from refit_agent.errors import RefitAgentError

from .conductor import Outcome
from .ground import Ground, require_golden
from .workers import Start, read_starts

#: A process that was killed is gone soon, not at once.
_LAST_BREATH_S = 10.0


class Report(NamedTuple):
    """Numbers for people, and every promise that was broken."""

    numbers: dict[str, object]
    violations: list[str]


def judge(ground: Ground, outcome: Outcome) -> Report:
    """Everything that can be said once all callers have ended. Asks for each engine once more, in quiet."""
    starts = read_starts(ground.notes)
    noted = ground.notes / "violations"
    violations = noted.read_text().splitlines() if noted.exists() else []
    violations += _refits(ground, outcome, starts)
    left = _left(ground)
    violations += _leftovers(ground, outcome, left, starts)
    violations += _in_quiet(ground, outcome)
    board, engines = outcome.board, outcome.engines
    numbers: dict[str, object] = {
        "seconds": round(outcome.seconds, 1),
        "requests": board.total("requests"),
        "hits": board.total("hits"),
        "refits_begun": len(starts),
        "published": engines.came.total(),
        "evicted": engines.went.total(),
        "callers": outcome.callers,
        "callers_killed": len(outcome.killed_callers),
        "workers_killed": len(outcome.killed_workers),
        "worker_crashed_errors": board.total("crashed"),
        "compared_with_bytes": board.total("compared"),
        "loaded_and_run": board.total("loaded"),
        "pruned": board.total("pruned"),
        "verified": board.total("verified"),
        "left_by_the_killed": len(left["tmp"]),
        "narrow_quota": outcome.narrow_quota,
        "peak_bytes": outcome.peak_bytes,
    }
    return Report(numbers, violations)


def _refits(ground: Ground, outcome: Outcome, starts: list[Start]) -> list[str]:
    """Each engine was made once for each time that it was missing, and again only where a kill had cut it short."""
    broken: list[str] = []
    killed = outcome.killed_callers | outcome.killed_workers
    maker_of = {start.worker: start.maker for start in starts}
    for start in starts:
        if start.published:
            broken.append(f"worker {start.worker} makes {start.key[:12]}, which is published")
        # One that was killed with its caller may take a moment to be gone.
        if start.other and start.other not in killed and maker_of.get(start.other) not in killed:
            broken.append(f"workers {start.worker} and {start.other} make {start.key[:12]} at the same time")
    begun, cut_short = Counter(s.key for s in starts), Counter(s.key for s in starts if {s.worker, s.maker} & killed)
    engines = outcome.engines
    for name, expected in ground.models.items():
        key = expected.key
        came, went = engines.came[key], engines.went[key]
        if not begun[key] - cut_short[key] <= came <= begun[key]:
            broken.append(f"{name}: {begun[key]} refits, {cut_short[key]} cut short, {came} published")
        if came - went != os.path.exists(ground.store.folder(key)):
            broken.append(f"{name}: {came} times published, {went} times gone")
    known = {expected.key for expected in ground.models.values()}
    broken += [f"{key} was published, which nobody asked for" for key in engines.came.keys() - known]
    broken += [f"engines: {text}" for text in engines.strange]
    broken += [f"a sound engine was called damaged: {name}" for name in outcome.quarantine.came]
    if outcome.board.total("crashed") > len(outcome.killed_workers):
        broken.append(f"{outcome.board.total('crashed')} workers crashed, {len(outcome.killed_workers)} were killed")
    return broken


def _left(ground: Ground) -> dict[str, list[str]]:
    folders = {name: Path(ground.store.root, name) for name in ("tmp", "locks", "quarantine", "partial")}
    return {name: sorted(os.listdir(folder)) if folder.exists() else [] for name, folder in folders.items()}


def _leftovers(ground: Ground, outcome: Outcome, left: dict[str, list[str]], starts: list[Start]) -> list[str]:
    """Only the killed leave anything, and a sweep takes all of it."""
    broken = []
    for name in left["tmp"]:
        maker = int(name.split(".")[1].split("-")[0])
        if maker not in outcome.killed_callers:
            broken.append(f"left by {maker}, which was not killed: {name}")
    broken += [f"left in the quarantine: {name}" for name in left["quarantine"]]
    broken += [f"worker {s.worker} outlived its caller" for s in starts if not _is_gone(s, ground)]
    upkeep.sweep(ground.store)
    broken += [f"left after a sweep, in {folder}: {name}" for folder, names in _left(ground).items() for name in names]
    return broken


def _is_gone(start: Start, ground: Ground) -> bool:
    """Whether the worker has ended; a moment after its caller at the latest."""
    home = os.fsencode(ground.notes.parent / "home")
    ends = time.monotonic() + _LAST_BREATH_S
    while True:
        try:
            if home not in Path(f"/proc/{start.worker}/environ").read_bytes():
                return True  # its number is another process's by now
        except OSError:
            return True
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)


def _in_quiet(ground: Ground, outcome: Outcome) -> list[str]:
    """What is there is sound, and nobody holds it; each engine can be had once more, within the quota."""
    broken = [f"verify: {verdict.fault}" for verdict in verify(ground.store) if verdict.fault]
    _, kept = upkeep.clear(ground.store)
    broken += [f"{key} is leased, and all have ended" for key in kept]
    os.environ["REFIT_AGENT_CACHE_QUOTA"] = str(outcome.narrow_quota)
    for name, expected in ground.models.items():
        try:
            with ensure_engine(ground.bundle, name, retry_failed=True, service=False) as engine:
                require_golden(engine.path, expected)
        except (RefitAgentError, AssertionError) as error:
            broken.append(f"{name}, in quiet: {error}")
        total = sum(cached.size for cached in upkeep.list_entries(ground.store))
        # Room was made for what the manifest says, which does not know how large entry.json will be.
        if total > outcome.narrow_quota + 4096:
            broken.append(f"{total} bytes in the cache after {name} was made, {outcome.narrow_quota} are allowed")
    upkeep.prune(ground.store, outcome.narrow_quota)
    total = sum(cached.size for cached in upkeep.list_entries(ground.store))
    if total > outcome.narrow_quota:
        broken.append(f"{total} bytes in the cache after pruning, {outcome.narrow_quota} are allowed")
    return broken
