"""What is set for one engine weight: a source, and the errors with which a source is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt


class Prototype(NamedTuple):
    """What the runtime says about a weight it asks for.

    ``dtype`` is named as in ``WeightRef.dtype``. Both are None where the runtime has no
    get_weights_prototype (8.6, 9.x).
    """

    dtype: str | None
    count: int | None  # type: ignore[assignment]  # hides tuple.count, as intended


@dataclass(frozen=True, slots=True, eq=False)
class WeightSource:
    """Where the content of one engine weight comes from.

    Attributes:
        engine_name: the name the plan asks for.
        transform: "identity", "cast", "batch-norm-scale", "batch-norm-bias", "constant-of-shape" or "fill".
        sources: keys of the ONNX tensors it is made from, in the order of the formula.
        dtype: element type of what is set; the prototype's, where there is one.
        count: number of elements.
        words: how it is made, in words.
        made_of: what identifies the tensors behind it, whatever their names.
    """

    engine_name: str
    transform: str
    sources: tuple[str, ...]
    dtype: str
    count: int
    words: str
    make: Callable[[], npt.NDArray[Any]] = field(repr=False)
    made_of: tuple[object, ...] = field(default=(), repr=False)

    def array(self) -> npt.NDArray[Any]:
        """A C-contiguous array with the bytes to set, in the storage form of ``dtype``.

        bfloat16 is uint16 bit patterns, 8-bit floats are uint8, types below one byte packed uint8.
        For "identity" this is the array of the ONNX tensor itself, in general a read-only view
        straight into the mapped file; otherwise a fresh array. Either must be kept alive until the
        refit is done.

        Raises:
            OnnxError: the tensor cannot be read any more.
        """
        return self.make()

    def explain(self) -> str:
        """One line in words, for people."""
        return f"{self.engine_name}: {self.words} ({self.dtype}, {self.count} elements)"


class RefusedError(Exception):
    """A name has no source; ``str()`` is the reason in words. Never leaves the package."""


class NoSourceError(RefusedError):
    """No rule gives the content of the weight."""


class MisfitError(RefusedError):
    """A rule gives a source, but with another type or count than the plan asks for."""


class SeveralSourcesError(RefusedError):
    """Rules give several sources with different bytes."""
