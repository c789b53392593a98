"""Matching numbered engine names, in order, to the steps of the parse that may have made them.

Names are numbered in parse order, but the engine lists only those that the builder kept. So the
question is never "which assignment looks best" but "which assignments are possible": a name with
one possible origin is resolved, a name with several is ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refit_agent.weight_map.origins import Origin


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of the parse can have named: nothing (all dropped) or one name for each origin, in a row.

    Attributes:
        origins: one, or two whose names are neighbours.
        repeats: one origin that may have made any number of names.
    """

    origins: tuple[Origin] | tuple[Origin, Origin]
    repeats: bool = False


def possible_origins(
    names: Sequence[str],
    steps: Sequence[Step],
    fits: Callable[[Origin, str], bool],
    neighbours: Callable[[int], bool] = lambda _: True,
) -> list[tuple[Origin, ...]] | None:
    """For each name the origins that it has in at least one complete matching; None if there is none.

    A matching is complete if it explains every name; steps may stay unused.

    Args:
        names: in the order in which the parser made them.
        steps: in parse order.
        fits: whether an origin can be what a name stands for.
        neighbours: whether names j and j + 1 can come from neighbouring calls of the generator.
    """
    # Sets of positions are bits of an int: bit j of before[i] says that steps[:i] can explain names[:j].
    masks = [tuple(_mask(names, origin, fits) for origin in step.origins) for step in steps]
    together = sum(1 << j for j in range(len(names) - 1) if neighbours(j))
    starts = [m[0] if len(m) == 1 else m[0] & (m[1] >> 1) & together for m in masks]
    before = [1]
    for step, start in zip(steps, starts, strict=True):
        before.append(_advance(before[-1], start, step))
    after = [1 << len(names)]
    for step, start in zip(reversed(steps), reversed(starts), strict=True):
        after.append(_retreat(after[-1], start, step))
    after.reverse()
    if not after[0] & 1:
        return None
    found: list[list[Origin]] = [[] for _ in names]
    for i, (step, start) in enumerate(zip(steps, starts, strict=True)):
        reached, left = (before[i + 1], after[i]) if step.repeats else (before[i], after[i + 1])
        used = reached & start & (left >> len(step.origins))
        for j in _bits(used):
            for k, origin in enumerate(step.origins):
                found[j + k].append(origin)
    return [tuple(origins) for origins in found]


def _mask(names: Sequence[str], origin: Origin, fits: Callable[[Origin, str], bool]) -> int:
    return sum(1 << j for j, name in enumerate(names) if fits(origin, name))


def _advance(reached: int, start: int, step: Step) -> int:
    while True:
        more = reached | ((reached & start) << len(step.origins))
        if not step.repeats or more == reached:
            return more
        reached = more


def _retreat(reached: int, start: int, step: Step) -> int:
    while True:
        more = reached | ((reached >> len(step.origins)) & start)
        if not step.repeats or more == reached:
            return more
        reached = more


def _bits(mask: int) -> list[int]:
    return [j for j in range(mask.bit_length()) if mask >> j & 1]
