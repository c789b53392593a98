"""What a model holds: every tensor with its type, its size and whether it loses its values, and its external files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from refit_agent.authoring.stripping.rule import Rule
from refit_agent.authoring.stripping.tensors import FLOATS, Key, OnnxFile, Place, TensorWalk
from refit_agent.weights.records import WeightRef
from refit_agent.weights.wire import BYTES, Wire


@dataclass(frozen=True, slots=True)
class Tensor:
    """One place with what it holds.

    Attributes:
        place: where it stands.
        dtype: element type, as ``WeightRef.dtype``.
        shape: dimensions.
        nbytes: bytes of its values.
        ref: its reference; None for a list of numbers.
        stays: why it keeps its values; "" where it loses them.
    """

    place: Place
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    ref: WeightRef | None
    stays: str

    @property
    def name(self) -> str:
        """The plain name: of a Constant node's tensor, that of output 0."""
        return self.place.key[-1][2:]

    @property
    def external(self) -> str | None:
        """The location of its external data as the model gives it, or None."""
        return self.ref.payload.external if self.ref is not None else None


@dataclass(frozen=True, slots=True)
class Survey:
    """Attributes:
    tensors: by key, in file order.
    external: location as the model first gives it -> real path of the file.
    """

    tensors: dict[Key, Tensor]
    external: dict[str, str]


def survey(file: OnnxFile, rule: Rule) -> Survey:
    """Look at every tensor of a model, and check all of them.

    Raises:
        OnnxMalformed, OnnxUnsafePath, OnnxExternalMissing
    """
    walk = TensorWalk(file.wire)
    places = list(walk.places())
    tensors: dict[Key, Tensor] = {}
    external: dict[str, str] = {}
    for place in places:
        shape: tuple[int, ...]
        if place.number:
            count = list_count(file.wire, place)
            ref, shape = None, (count,)
            dtype, nbytes = ("float32", 4 * count) if place.number == FLOATS else ("int64", 8 * count)
        else:
            ref = file.ref(place)
            dtype, shape, nbytes = ref.dtype, ref.shape, ref.nbytes
            if ref.payload.external is not None:
                external.setdefault(ref.payload.external, str(ref.file))
        name = place.key[-1][2:]
        stays = rule.reason_to_stay(dtype, nbytes, place.role, quantizes=name in walk.quantization)
        tensors[place.key] = Tensor(place, dtype, shape, nbytes, ref, stays)
    return Survey(tensors, external)


def list_count(wire: Wire, place: Place) -> int:
    """The numbers in a list of `Place`."""
    count = 0
    for number, kind, value, end, at in wire.fields(place.start, place.stop):
        if number == place.number:
            if kind != BYTES:
                count += 1
            elif place.number == FLOATS:
                if (end - value) % 4:
                    wire.fail(at, "a list of floats is not a multiple of 4 bytes")
                count += (end - value) // 4
            else:
                count += count_varints(wire, value, end)
    return count


def count_varints(wire: Wire, start: int, stop: int) -> int:
    """The varints in a packed field: each ends with the only byte below 0x80."""
    if start < stop and wire.data[stop - 1] > 0x7F:
        wire.fail(start, "a varint is cut off")
    return sum(len(window.translate(None, _CONTINUED)) for window in _windows(wire, start, stop))


_CONTINUED = bytes(range(0x80, 0x100))
_WINDOW_BYTES = 1 << 20


def _windows(wire: Wire, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        end = min(start + _WINDOW_BYTES, stop)
        yield bytes(wire.data[start:end])
        start = end
