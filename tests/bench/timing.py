"""Times of several ways that take turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds, in the order in which they were taken."""

    all: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def late(self) -> float:
        """The 99th percentile: what one of a hundred exceeds."""
        return sorted(self.all)[max(0, math.ceil(len(self.all) * 0.99) - 1)]


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Every way ``rounds`` times, one after the other; one more round before that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            took = seconds(way)
            if turn:
                found[name].append(took)
    return {name: Times(times) for name, times in found.items()}


def own_home(folder: Path) -> None:
    """Let this process and its children use a cache, a state and settings of their own below ``folder``."""
    kept = ("REFIT_AGENT_RUNTIMES", "REFIT_AGENT_PYTHON", "REFIT_AGENT_GPU_ENGINES", "REFIT_AGENT_GPU_MODELS")
    for name in [n for n in os.environ if n.startswith("REFIT_AGENT_") and n not in kept]:
        del os.environ[name]
    os.environ["REFIT_AGENT_HOME"] = str(folder / "home")
    os.environ["REFIT_AGENT_WARM"] = "0"
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    # Before the import: the libraries look when they are loaded.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
