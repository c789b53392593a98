"""The few faults of the matrix that every CI run can afford: some for every step, none of them left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from .deeds import kind_of
from .matrix import Point

#: Of each of these one for a step, where it has any. A kill in the middle of a write besides.
_WANTED = ("kill", "kill-parent", "torn", "disk", "error")


def subset(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Faults for each step: a kill of each process, a full or a read-only disk in turn, and another error."""
    chosen: dict[str, list[Point]] = {}
    ordered = sorted(points, key=lambda p: p.step)
    for number, (step, group) in enumerate(groupby(ordered, key=lambda p: p.step)):
        of_step = list(group)
        disk = ("full", "read-only")[number % 2]
        chosen[step] = [p for wanted in _WANTED if (p := _middle(of_step, wanted, disk)) is not None]
    return chosen


def _middle(points: Sequence[Point], wanted: str, disk: str) -> Point | None:
    """The one in the middle: neither the first call of a step nor its last, which belong to the neighbours as well."""
    fitting = [p for p in points if _word(p, disk) == wanted]
    return fitting[len(fitting) // 2] if fitting else None


def _word(point: Point, disk: str) -> str:
    kind = kind_of(point.fault.deed)
    return point.fault.deed if kind == "kill" else "disk" if kind == disk else kind
