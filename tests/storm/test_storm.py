"""A small storm holds, and each of its checks can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("the storm needs Linux: it has the kernel tell what is published", allow_module_level=True)

from entries import key_of, put
from refit_agent.cache.store import Store

from . import breakage, judge
from .board import Board
from .conductor import Outcome
from .folder_watch import FolderWatch
from .ground import Expected, Ground
from .workers import Start

ROOT = Path(__file__).parents[2]


def _storm(*options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.storm", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.stdout, done.stderr
    print(done.stderr)  # the seed, for whoever reads of a failure
    return done.returncode, json.loads(done.stdout)


def test_a_small_storm() -> None:
    """Eight processes, four engines, some seconds: every promise holds while callers and workers are killed."""
    code, report = _storm("--processes", "8", "--engines", "4", "--seconds", "6")
    assert (code, report["violations"]) == (0, [])
    assert report["refits_begun"] >= report["published"] >= 4 and report["evicted"] >= 1
    assert report["hits"] > 20 and report["compared_with_bytes"] > 40 and report["loaded_and_run"] >= 1
    assert report["callers_killed"] + report["workers_killed"] >= 3
    assert report["peak_bytes"] > report["narrow_quota"]


#: What is broken -> what is said of it.
SAID = {
    "leases": "taken away while it was leased",
    "locks": "at the same time",
    "look-ups": "which is published",
    "contents": "is not what it must be",
    "quota": "bytes in the cache after",
    "sweep": "left after a sweep, in tmp",
    "stuck": "is stuck",
    "half": "was created in place",
}


def test_every_breakage_is_tried() -> None:
    """None is forgotten."""
    assert SAID.keys() == breakage.KINDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAID)
def test_what_is_broken_is_noticed(kind: str) -> None:
    """In one of three storms at most: whether two processes meet is a matter of chance."""
    patience = "1" if kind == "stuck" else "60"
    for seed in ("1", "2", "3"):
        options = ("--processes", "12", "--engines", "4", "--seconds", "2.5", "--kills", "6", "--patience", patience)
        code, report = _storm(*options, "--seed", seed, "--break", kind)
        if any(SAID[kind] in line for line in report["violations"]):
            assert code == 1
            return
    raise AssertionError(report["violations"][:10])


# ---------------------------------------------------------------- the count of refits


class Seen:
    """A storm of one engine as it might have been seen."""

    def __init__(self, tmp_path: Path, *, there: bool) -> None:
        store = Store(str(tmp_path / "cache"))
        store.prepare()
        self.key = put(store, 1) if there else key_of(1)
        nothing = np.zeros(1)
        self.ground = Ground(tmp_path, store, tmp_path, {"m1": Expected(self.key, {}, nothing, nothing)})
        self.engines, self.quarantine = (FolderWatch(Path(store.root, n)) for n in ("engines", "quarantine"))
        self.board = Board(1)
        self.killed_callers: frozenset[int] = frozenset()
        self.killed_workers: frozenset[int] = frozenset()

    def broken(self, *starts: Start, came: int, went: int) -> list[str]:
        self.engines.came, self.engines.went = Counter({self.key: came}), Counter({self.key: went})
        outcome = Outcome(
            self.board, self.engines, self.quarantine, 1, self.killed_callers, self.killed_workers, 0, 0, 0.0
        )
        return judge._refits(self.ground, outcome, list(starts))

    def start(self, worker: int, maker: int = 1, other: int = 0, *, published: bool = False) -> Start:
        return Start(self.key, worker, maker, other, published)


def test_once_for_each_time_that_it_was_missing(tmp_path: Path) -> None:
    """Two refits for an engine that was evicted once; three are one too many, unless a kill cut one short."""
    seen = Seen(tmp_path, there=True)
    two, three = (seen.start(11), seen.start(12)), (seen.start(11), seen.start(12), seen.start(13, 2))
    assert seen.broken(*two, came=2, went=1) == []
    assert seen.broken(*three, came=2, went=1) == ["m1: 3 refits, 0 cut short, 2 published"]
    for seen.killed_callers, seen.killed_workers in ((frozenset({2}), frozenset()), (frozenset(), frozenset({13}))):
        assert seen.broken(*three, came=2, went=1) == []
        assert seen.broken(*three, came=3, went=2) == [], "killed when it had published"
    assert seen.broken(seen.start(11), came=2, went=1) == ["m1: 1 refits, 0 cut short, 2 published"]


def test_what_is_there_is_what_came_and_did_not_go(tmp_path: Path) -> None:
    """Whoever counts must not have lost count."""
    assert Seen(tmp_path / "a", there=False).broken(came=0, went=0) == []
    assert Seen(tmp_path / "b", there=True).broken(came=0, went=0) == ["m1: 0 times published, 0 times gone"]


def test_two_workers_at_one_engine(tmp_path: Path) -> None:
    """Only beside one that was killed, or whose caller was, and which is about to go."""
    seen = Seen(tmp_path, there=True)
    starts = (seen.start(11, 1), seen.start(12, 2, other=11))
    said = f"workers 12 and 11 make {seen.key[:12]} at the same time"
    assert said in seen.broken(*starts, came=2, went=1)
    seen.killed_callers = frozenset({1})
    assert seen.broken(*starts, came=1, went=0) == []
    seen.killed_callers = frozenset({2})
    assert said in seen.broken(*starts, came=1, went=0)


def test_a_worker_that_crashes_by_itself(tmp_path: Path) -> None:
    """More errors than kills."""
    seen = Seen(tmp_path, there=False)
    seen.board.add(0, "crashed")
    assert seen.broken(came=0, went=0) == ["1 workers crashed, 0 were killed"]
    seen.killed_workers = frozenset({7})
    assert seen.broken(came=0, went=0) == []


def test_the_kernel_tells_of_every_rename(tmp_path: Path) -> None:
    """Of entries that come and go, and of what is made or deleted in place."""
    store = Store(str(tmp_path / "cache"))
    store.prepare()
    engines, quarantine = (FolderWatch(Path(store.root, name)) for name in ("engines", "quarantine"))
    one, two = put(store, 1), put(store, 2)
    assert store.remove(one)
    put(store, 1)
    place = store.quarantine(two)
    for watch in (engines, quarantine):
        watch.read()
    assert (engines.came, engines.went, engines.strange) == ({one: 2, two: 1}, {one: 1, two: 1}, [])
    assert list(quarantine.came) == [Path(place).name]
    Path(store.root, "engines", "x").mkdir()
    Path(store.root, "engines", "x").rmdir()
    engines.read()
    assert engines.strange == ["x was created in place", "x was deleted in place"]
    for watch in (engines, quarantine):
        watch.close()
