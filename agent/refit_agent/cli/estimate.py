"""How far a command with several pieces of work is, and how long it will still take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: An estimate is given from here on: before it, what was seen is start-up, which says little of the rest.
_HONEST_SHARE, _HONEST_S = 0.15, 1.0
#: News counts fully once this many seconds' worth of it has come, see `Estimate._note`.
_SMOOTH_S = 3.0
#: The weight of a piece that was thought to cost nothing and is worked on all the same.
_SURPRISE = 1e8


class Remaining(NamedTuple):
    """``seconds`` were left at ``when`` (monotonic time)."""

    when: float
    seconds: float

    def at(self, now: float) -> float | None:
        """What is left of it; None when it has run out, since then nobody knows."""
        left = self.seconds - (now - self.when)
        return left if left >= 0 else None


class Estimate:
    """Percentage and remaining seconds of pieces of work, done one after another, from what each will cost.

    A piece that costs 0 is one that is expected to take no time. For one thread; times are monotonic seconds.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = [*costs]
        self._fractions = [0.0] * len(costs)
        self._over = [False] * len(costs)
        self._began: float | None = None
        self._spent = 0.0
        self._percent = 0.0
        self._remaining: Remaining | None = None

    @property
    def percent(self) -> float:
        """0 to 100 with one decimal, rounded down; never less than before, 100 when every piece is over."""
        return self._percent

    @property
    def remaining(self) -> Remaining | None:
        """The seconds left; None while too little was seen to say."""
        return self._remaining

    def advance(self, number: int, fraction: float, now: float) -> None:
        """Piece ``number``, from 0, is done to ``fraction``."""
        if self._began is None:
            self._began = now
        self._costs[number] = self._costs[number] or _SURPRISE
        if fraction > self._fractions[number]:
            self._fractions[number] = min(fraction, 1.0)
            self._note(now)

    def finish(self, number: int, now: float, *, worked: bool) -> None:
        """Piece ``number`` is over; without ``worked`` it turned out to be no work, and its time counts for none."""
        if worked and self._began is not None:
            self._spent += now - self._began
        if not worked:
            self._fractions[number] = 0.0
        self._began = None
        self._over[number] = True
        self._note(now)

    def _note(self, now: float) -> None:
        parts = zip(self._costs, self._fractions, self._over, strict=True)
        whole = sum(self._costs)
        if all(self._over):
            self._percent = 100.0
        elif whole > 0:
            share = sum(cost * (1.0 if over else fraction) for cost, fraction, over in parts) / whole
            self._percent = max(self._percent, math.floor(share * 1000 + 1e-6) / 10)
        else:
            self._percent = max(self._percent, math.floor(1000 * sum(self._over) / len(self._over)) / 10)
        self._remaining = self._guess(now)

    def _guess(self, now: float) -> Remaining | None:
        """By the pace so far, which moves the last estimate the more, the longer ago that was: it must not jump."""
        parts = [*zip(self._costs, self._fractions, self._over, strict=True)]
        done = sum(cost * fraction for cost, fraction, _ in parts)
        left = sum(cost * (1 - fraction) for cost, fraction, over in parts if not over)
        if left <= 0:
            return Remaining(now, 0.0)
        spent = self._spent + (0.0 if self._began is None else now - self._began)
        if spent < _HONEST_S or done < _HONEST_SHARE * (done + left):
            return None
        fresh = spent * left / done
        before = self._remaining
        told = None if before is None else before.at(now)
        if before is None or told is None:
            return Remaining(now, fresh)
        weight = 1 - math.exp((before.when - now) / _SMOOTH_S)
        return Remaining(now, told + weight * (fresh - told))
