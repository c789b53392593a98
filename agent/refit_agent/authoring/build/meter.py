"""Progress of a build of several plans: one number that never goes back, the plan that it is about, and words."""

from __future__ import annotations

from collections.abc import Callable

from refit_agent.progress import Progress

OnProgress = Callable[[str, Progress], None]

#: Phase -> words, and the share of one plan's time at which it begins. Nearly all of it is the builder's own.
_PHASES = {
    "hash": ("hashing the model", 0.0),
    "canonicalize": ("writing the canonical model", 0.01),
    "zero": ("writing a copy without weights", 0.02),
    "start": ("starting the builder", 0.0),
    "parse": ("parsing the model", 0.01),
    "build": ("building the engine", 0.05),
    "write": ("writing the plan", 0.95),
    "list": ("asking the engine for its weights", 0.96),
    "map": ("finding the weights in the model", 0.98),
    "publish": ("hashing and moving into place", 1.0),
}


class BuildMeter:
    """Turns phases into `Progress`; the fraction is of all plans together and never goes back."""

    def __init__(self, callback: OnProgress | None, names: list[str]) -> None:
        self._callback = callback
        self._count = len(names)
        self._name = names[0]
        self._number = 0
        self._fraction = 0.0

    def next(self, name: str) -> None:
        """What follows is about the plan ``name``."""
        self._name = name
        self._number += 1

    def __call__(self, phase: str) -> None:
        """Report that ``phase`` begins."""
        text, share = _PHASES[phase]
        begun = max(0, self._number - 1)
        self._fraction = max(self._fraction, min(1.0, (begun + share) / self._count))
        if self._callback is not None:
            self._callback(self._name, Progress(phase=phase, text=text, fraction=round(self._fraction, 4)))
