"""The matrix as a table, and what is wrong with it as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .deeds import kind_of
from .matrix import Result
from .steps import STEPS

COLUMNS = ("kill", "full", "read-only", "slow", "error")
LEAST_FAULTS = 300


def table(results: Sequence[Result]) -> str:
    """Faults that were injected, by step and kind, and how the requests ended."""
    counts = Counter((r.point.step, kind_of(r.point.fault.deed)) for r in results if r.fired)
    lines = [f"{'step':12}" + "".join(f"{c:>11}" for c in COLUMNS) + f"{'all':>9}"]
    for step in STEPS:
        row = [counts[step, column] for column in COLUMNS]
        lines.append(f"{step:12}" + "".join(f"{n:11}" for n in row) + f"{sum(row):9}")
    sums = [sum(counts[step, column] for step in STEPS) for column in COLUMNS]
    lines.append(f"{'all':12}" + "".join(f"{n:11}" for n in sums) + f"{sum(sums):9}")
    ends = Counter(r.outcome.how if r.outcome.how != "error" else r.outcome.code for r in results if r.fired)
    lines.append("the requests ended: " + ", ".join(f"{how} {number}" for how, number in ends.most_common()))
    missed = sum(not r.fired for r in results)
    lines.append(f"{sum(bool(r.violations) for r in results)} violated, {missed} not reached")
    return "\n".join(lines)


def problems(results: Sequence[Result], *, whole: bool) -> list[str]:
    """Every violation; of a ``whole`` matrix also steps without faults, and too few of them."""
    found = [f"{r.point.words}: {violation}" for r in results for violation in r.violations]
    if not whole:
        return found
    hit = {(r.point.step, kind_of(r.point.fault.deed)) for r in results if r.fired}
    for step in STEPS:
        missing = [column for column in ("kill", "full", "read-only", "slow") if (step, column) not in hit]
        found += [f"step '{step}' had no fault of the kind '{column}'" for column in missing]
    injected = sum(r.fired for r in results)
    if injected < LEAST_FAULTS:
        found.append(f"only {injected} faults were injected, at least {LEAST_FAULTS} must be")
    # A few calls depend on the time; if many are not reached any more, the table of calls is not true.
    if injected < 0.9 * len(results):
        found.append(f"only {injected} of {len(results)} faults were reached")
    return found
