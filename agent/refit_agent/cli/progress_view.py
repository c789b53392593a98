"""The progress of a command on standard error: a bar on a terminal, plain flushed lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Protocol

from refit_agent.cli.output import printable, size_text
from refit_agent.progress import Progress

#: Within a phase a line at most this often: often enough to see life, seldom enough for a log file.
LINE_EVERY_S = 2.0


class ProgressView(Protocol):
    """Shows the progress of one piece of work after another."""

    def show(self, label: str, progress: Progress) -> None:
        """Show one step of the work named ``label``."""

    def close(self) -> None:
        """Leave the screen as it should stay."""


def progress_view() -> ProgressView:
    """The view that fits standard error."""
    if sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb":
        from refit_agent.console import BarView

        return BarView()
    return LineView()


def detail_text(progress: Progress) -> str:
    """How far the phase is, in its own unit: "3.1 MiB of 4.2 MiB", "64 of 300 weights", or ""."""
    if progress.total <= 0:
        return ""
    if progress.phase == "refit":
        return f"{progress.done} of {progress.total} weights"
    return f"{size_text(progress.done)} of {size_text(progress.total)}"


class HighWater:
    """The fraction shown for each label: it never goes back, also when a second candidate starts anew."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def __call__(self, label: str, fraction: float) -> float:
        """The fraction to show."""
        self._shown[label] = max(fraction, self._shown.get(label, 0.0))
        return self._shown[label]


class LineView:
    """A line for every change of phase, and within one at most every two seconds."""

    def __init__(self) -> None:
        self._fraction = HighWater()
        self._phase = ("", "")
        self._when = 0.0

    def show(self, label: str, progress: Progress) -> None:
        """Print the step if it is news."""
        now = time.monotonic()
        fraction = self._fraction(label, progress.fraction)
        same = (label, progress.phase) == self._phase
        if same and now - self._when < LINE_EVERY_S and progress.fraction < 1.0:
            return
        self._phase, self._when = (label, progress.phase), now
        detail = detail_text(progress)
        line = f"{label}: {fraction:4.0%} {progress.text}" + (f", {detail}" if detail else "")
        with contextlib.suppress(OSError):  # nobody reads it any more: no reason to stop the work
            print(printable(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to do: lines stay."""
