"""What the pipeline asks of a runtime: the seam between what is common and what one engine format needs.

    image = unpack(...)                 the stripped plan's bytes
    opened = runtime.open(image)        an engine without its weights
    opened.wanted()                     the weights it asks for
    opened.sources(weights)             where each of them comes from
    opened.set_weight(name, ...)        each of them
    opened.refit()
    opened.write(folder)                the finished engine, on the disk
    runtime.run(path, inputs)           the check run, from the written file
    runtime.load(path)                  or only this, where an engine cannot be run by itself

A runtime lives in the worker process only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from refit_agent.refit.unpack import PlanImage
    from refit_agent.weight_map import Prototype, WeightSource
    from refit_agent.weights import OnnxWeights

    Array = npt.NDArray[np.generic]
else:
    Array = Any


class WrittenFile(NamedTuple):
    """A file of a finished engine, on the disk for good (fsync done). ``size`` in bytes."""

    name: str
    size: int
    sha256: str


class OpenedPlan(Protocol):
    """A stripped plan, opened. Not thread-safe; one use: after a failed refit it is thrown away.

    ``writes_from_sources`` says that `write` reads the plan image and the weights' arrays themselves,
    which must live until it returns; otherwise both may go once `refit` has returned.
    """

    writes_from_sources: bool

    def wanted(self) -> Mapping[str, Prototype]:
        """Every weight that must be set, with type and count where the runtime tells."""

    def sources(self, weights: OnnxWeights, explicit: Mapping[str, object] | None) -> dict[str, WeightSource]:
        """Where each wanted weight comes from: all of them, or an error that lists those without a source.

        ``explicit`` is the manifest's weight map, which goes before the runtime's own rules.
        """

    def set_weight(self, name: str, dtype: str, array: Array) -> None:
        """Set one weight from C-contiguous memory; the array is kept alive here as long as it is needed.

        Raises WeightsMismatch if the runtime refuses it.
        """

    def refit(self) -> None:
        """Put the weights that were set into the engine. Raises RefitRefused."""

    def write(self, folder: str, on_bytes: Callable[[int, int], None]) -> list[WrittenFile]:
        """Write the finished engine; the first file is the one to load. ``on_bytes`` gets (done, total)."""

    def close(self) -> None:
        """Free what the engine holds."""


class Runtime(Protocol):
    """One way to open plans, in this process."""

    name: str
    version: str

    def open(self, image: PlanImage) -> OpenedPlan:
        """Open a stripped plan. Raises PlanRefused or a DeviceError."""

    def notes(self) -> list[str]:
        """What the runtime warned of, in words that the parent logs."""

    def run(self, path: str, inputs: Mapping[str, Array] | None) -> dict[str, Array]:
        """Load a finished engine from ``path`` and run it once; outputs by name, in host memory.

        Without ``inputs`` it makes some up in the plan's own ranges, to see that the engine runs at all.
        """

    def load(self, path: str) -> None:
        """Load a finished engine from ``path`` and let it go. Raises PlanRefused or a DeviceError."""
