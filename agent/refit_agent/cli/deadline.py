"""The time that a whole command may take, however many engines it is for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from refit_agent.cli import stop
from refit_agent.errors import DeadlinePassed

#: The end of the time is kept for stopping what is at work then, cleaning up and saying so; of a short time a tenth.
_RESERVE_S = 0.5
#: From here on only whole seconds are given to an engine: that one call had a few milliseconds more than the one
#: before must not look like more time to those who remember what took too long.
_WHOLE_SECONDS_FROM = 10.0


class Deadline:
    """``seconds`` from now on; None for no end. Ends the work as `refit_agent.cli.stop` does."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds
        self._work_end = self._end - (0.0 if seconds is None else min(_RESERVE_S, seconds / 10))

    def for_work(self) -> float | None:
        """Seconds that the next engine may take, above 0; None where nothing limits it."""
        if self.seconds is None:
            return None
        left = max(self._work_end - self._clock(), 0.001)
        return math.floor(left) if _WHOLE_SECONDS_FROM <= left < math.inf else left

    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self._clock() >= self._work_end

    def requested(self) -> bool:
        """Whether the work is to stop: a signal came, or the time is over."""
        return stop.requested() or self._clock() >= self._end

    def check(self) -> None:
        """Raise Stopped if a signal came, DeadlinePassed if the time is over."""
        stop.check()
        if self._clock() >= self._end:
            raise self.passed("this engine was in the making")

    def passed(self, detail: str) -> DeadlinePassed:
        """The error to report for an engine; ``detail`` says how far it had come."""
        assert self.seconds is not None
        return DeadlinePassed(seconds=round(self.seconds, 3), detail=detail)
