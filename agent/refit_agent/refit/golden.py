"""The check run: golden inputs in, outputs compared. Knows nothing of any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from refit_agent.errors import BundleFileMismatch, GoldenMismatch
from refit_agent.refit.messages import Located
from refit_agent.runtimes.base import Array


def load_arrays(files: Mapping[str, Located]) -> dict[str, Array]:
    """The ``.npy`` files by tensor name. Never unpickles. Raises BundleFileMismatch for what is no array."""
    arrays: dict[str, Array] = {}
    for name, file in files.items():
        try:
            with open(file.path, "rb") as stream:
                # Not numpy.load: it takes archives too, and gives then what is no array.
                array = np.lib.format.read_array(stream, allow_pickle=False)
                _require_stated_shape(stream)
                arrays[name] = array
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise BundleFileMismatch(path=file.path, detail=f"it is not a .npy array: {error}") from error
    return arrays


def _require_stated_shape(stream: BinaryIO) -> None:
    """NumPy before 2.3 takes a negative dimension for "whatever is there"."""
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if any(d < 0 for d in read(stream)[0]):
        raise ValueError("a dimension is negative")


def relative_error(got: Array, expected: Array) -> float:
    """``norm(got - expected) / norm(expected)`` in float64; nan if anything is not finite where it should be."""
    difference = got.astype(np.float64) - expected.astype(np.float64)
    scale = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    return float(np.linalg.norm(difference.ravel())) / (scale or 1.0)


def compare(got: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> float:
    """The largest relative error over all expected outputs.

    Raises:
        GoldenMismatch: an output is missing, has another shape, holds a NaN, or is further off than
            ``tolerance``.
    """
    worst = 0.0
    for name, reference in expected.items():
        if name not in got:
            raise GoldenMismatch(output=name, detail="is missing")
        if got[name].shape != reference.shape:
            detail = f"has the shape {got[name].shape} in place of {reference.shape}"
            raise GoldenMismatch(output=name, detail=detail)
        error = relative_error(got[name], reference)
        # Written so that a NaN fails: every comparison with NaN is false.
        if not error <= tolerance:
            detail = f"differs from the expected one by {error:.3g} (relative L2), and {tolerance:g} is allowed"
            raise GoldenMismatch(output=name, detail=detail)
        worst = max(worst, error)
    return worst


def require_no_nan(got: Mapping[str, Array]) -> None:
    """Raise GoldenMismatch if any output holds a NaN. Infinities may be meant: masks are made of them."""
    for name, array in got.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise GoldenMismatch(output=name, detail="holds a NaN")
