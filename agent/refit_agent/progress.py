"""Progress of a provisioning: one number that never goes back, and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One step. ``fraction`` is of the whole, 0 to 1, and never goes back; ``done`` of ``total`` belongs
    to the phase (bytes, or weights for "refit"; 0 of 0 where the runtime does not tell)."""

    phase: str
    text: str
    fraction: float
    done: int = 0
    total: int = 0


ProgressCallback: TypeAlias = Callable[[Progress], None]

#: Phase -> words, and the share of the time at which it begins (measured on bert_large_fp16).
_PHASES = {
    "wait": ("another process is making this engine", 0.0),
    "start": ("starting the worker", 0.0),
    "unpack": ("unpacking the plan", 0.05),
    "open": ("opening the plan", 0.10),
    "map": ("finding the weights", 0.50),
    "refit": ("putting the weights in", 0.52),
    "verify": ("checking the bundle's files", 0.72),
    "write": ("writing the engine", 0.75),
    "check": ("checking the result", 0.90),
    "publish": ("publishing", 0.98),
    "ready": ("ready", 1.0),
}
_ORDER = list(_PHASES)
#: What comes once for each plan, where an engine has several.
_OF_EACH_PLAN = _ORDER[_ORDER.index("unpack") : _ORDER.index("check")]
_FIRST, _LAST = _PHASES["unpack"][1], _PHASES["check"][1]
#: Where weights are fetched first, that takes this share of the whole, and all else the rest.
_FETCH_SHARE = 0.6


class ProgressMeter:
    """Turns phases into `Progress` for a callback; one per provisioning, used by one thread."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._fraction = 0.0
        self._fetched = False

    def __call__(self, phase: str, done: int = 0, total: int = 0, part: int = 0, parts: int = 1) -> None:
        """Report that ``phase`` has done ``done`` of ``total``, for plan number ``part`` of ``parts``."""
        if self._callback is None:
            return
        if phase == "fetch":
            self._fetched = True
            share = _FETCH_SHARE * min(1.0, done / total) if total else 0.0
            self._say(phase, "fetching the weights", share, done, total)
            return
        text, begin = _PHASES.get(phase, (phase, self._fraction))
        if phase in _PHASES and total > 0:
            following = _ORDER.index(phase) + 1
            end = _PHASES[_ORDER[following]][1] if following < len(_ORDER) else 1.0
            begin += (end - begin) * min(1.0, done / total)
        if parts > 1 and phase in _OF_EACH_PLAN:
            text += f" ({part + 1} of {parts})"
            begin = _FIRST + (part * (_LAST - _FIRST) + begin - _FIRST) / parts
        if self._fetched and phase in _PHASES:
            begin = _FETCH_SHARE + (1 - _FETCH_SHARE) * begin
        self._say(phase, text, begin, done, total)

    def _say(self, phase: str, text: str, fraction: float, done: int, total: int) -> None:
        self._fraction = max(self._fraction, fraction)
        if self._callback is not None:
            self._callback(Progress(phase=phase, text=text, fraction=round(self._fraction, 4), done=done, total=total))

    def relay(self, step: Progress) -> None:
        """Pass on what another process reported; the fraction does not go back here either."""
        if self._callback is None:
            return
        self._fraction = max(self._fraction, min(step.fraction, 1.0))
        self._callback(
            Progress(phase=step.phase, text=step.text, fraction=self._fraction, done=step.done, total=step.total)
        )
