"""float64 numbers rounded to float32, with a record of what that did to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refit_agent.authoring.canonical.report import Float64
from refit_agent.authoring.canonical.values import Array, Value
from refit_agent.authoring.errors import ModelUnsupported

#: Numbers below it lose more of themselves than rounding does, down to nothing.
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
#: Elements at a time: a weight of gigabytes must not be there three times over.
_PIECE = 1 << 20


class Narrowing:
    """Makes weights float32 when they are written.

    Attributes:
        changed: whether anything in the model became float32.
        errors: by name, the largest relative error among numbers in float32's normal range, and how
            many numbers other than 0 are below that range. Known once a weight was made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.changed = False
        self.weights: list[str] = []
        self.errors: dict[str, tuple[float, int]] = {}

    def of(self, name: str, value: Value) -> Value:
        """The weight as float32.

        Making it raises ModelUnsupported if a finite number is beyond float32's range.
        """
        self.changed = True
        return Value("float32", value.shape, lambda: self._make(name, value))

    def report(self) -> Float64 | None:
        """What rounding did, once all weights were made; None if there were none."""
        if not self.errors:
            return None
        name, (worst, _) = max(self.errors.items(), key=lambda item: item[1][0])
        return Float64(len(self.errors), worst, name, sum(count for _, count in self.errors.values()))

    def _make(self, name: str, value: Value) -> Array:
        numbers = value.make().reshape(-1)
        out = np.empty(numbers.shape, np.float32)
        largest, small = 0.0, 0
        for start in range(0, len(numbers), _PIECE):
            piece = np.ascontiguousarray(numbers[start : start + _PIECE])
            with np.errstate(all="ignore"):
                narrow = piece.astype(np.float32)
            if bool((np.isinf(narrow) & np.isfinite(piece)).any()):
                beyond = float(piece[np.isinf(narrow) & np.isfinite(piece)][0])
                detail = f"the float64 weight {name!r} has the number {beyond!r}, which float32 cannot hold"
                raise ModelUnsupported(path=self._path, detail=detail)
            error, count = _compare(piece, narrow)
            largest, small = max(largest, error), small + count
            out[start : start + _PIECE] = narrow
        self.errors[name] = (largest, small)
        return out.reshape(value.shape)


def _compare(before: npt.NDArray[np.float64], after: npt.NDArray[np.float32]) -> tuple[float, int]:
    size = np.abs(before)
    small = int(np.count_nonzero((size > 0) & (size < _SMALLEST_NORMAL)))
    normal = np.isfinite(before) & (size >= _SMALLEST_NORMAL)
    if not normal.any():
        return 0.0, small
    errors = np.abs(after[normal].astype(np.float64) - before[normal]) / size[normal]
    return float(errors.max()), small
