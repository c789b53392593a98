"""The progress of a change to a bundle: phases in order, each with its share of the time."""

from __future__ import annotations

from refit_agent.progress import Progress, ProgressCallback


class Steps:
    """Reports the phases of one piece of work to ``callback``; used by one thread.

    ``ends`` are the phases in order with the share of the whole at which each ends, 0 to 1. What the callback
    raises ends the work: it is how a command is stopped.
    """

    def __init__(self, callback: ProgressCallback | None, **ends: float) -> None:
        self._callback = callback
        self._ends = ends
        self._phase = ""
        self._text = ""
        self._begin = self._end = 0.0
        self._done = self._total = 0

    def begin(self, phase: str, text: str, total: int = 0) -> None:
        """Enter ``phase``, which has ``total`` bytes to do (0: not known)."""
        self._phase, self._text = phase, text
        self._begin, self._end = self._end, max(self._end, self._ends.get(phase, self._end))
        self._done, self._total = 0, total
        self._report()

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self._done += count
        self._report()

    def _report(self) -> None:
        if self._callback is None:
            return
        share = min(1.0, self._done / self._total) if self._total else 0.0
        fraction = round(self._begin + (self._end - self._begin) * share, 4)
        self._callback(
            Progress(phase=self._phase, text=self._text, fraction=fraction, done=self._done, total=self._total)
        )
