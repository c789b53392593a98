"""What a reader of ONNX weights hands out: references to weights, and the graph around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Union

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt


class ArraySource(Protocol):
    """Turns a reference into an array; OnnxWeights implements it."""

    def read_array(self, ref: WeightRef) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Payload:
    """Where and how the bytes of a tensor are encoded.

    Attributes:
        form: "plain" (the bytes of the array, contiguous), "fields" (entries of the typed field
            ``number`` in the message ``[start, stop)``) or "none" (nothing that can be an array).
        start: offset of the bytes or of the message.
        stop: offset behind them.
        number: field number, for "fields".
        external: location as the model gives it, or None for a payload inside the model.
    """

    form: str
    start: int
    stop: int
    number: int = 0
    external: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WeightRef:
    """One tensor of an ONNX file, not read yet.

    Attributes:
        name: the tensor's own name; for a Constant node, the name of its output 0.
        key: its key in the OnnxWeights mapping; "" for a tensor in an attribute of another node,
            which the mapping does not list.
        scope: readable unique path of the graph or function that defines it, "" at top level.
        kind: "initializer", "constant" (Constant node), "sparse" or "attribute" (see ``key``); "tensor" in a
            safetensors file.
        file: the file that holds the payload: the model, or an external data file.
        offset: byte offset of the payload in ``file``; of its first chunk if there are several.
        nbytes: bytes of the decoded payload; for "sparse", of the values; for strings, of all of them.
        dtype: element type, lower case, like "float32" or "bfloat16".
        shape: dimensions; () for a scalar.
        count: number of elements.
        is_view: whether ``array()`` is a view straight into the file's memory map.

    Immutable; any thread may use it.
    """

    name: str
    key: str
    scope: str
    kind: str
    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    count: int
    is_view: bool
    payload: Payload = field(repr=False)
    source: ArraySource = field(repr=False)

    def array(self) -> npt.NDArray[Any]:
        """The tensor as a read-only numpy array of ``shape``.

        bfloat16 comes as uint16 bit patterns, the 8-bit floats as uint8; types below one byte come
        as a 1-D uint8 array of ``nbytes`` packed bytes, as ``raw_data`` stores them. A view (see
        ``is_view``) may be unaligned and shows the file as it is now; it keeps the memory map alive,
        also after OnnxWeights.close(). Any other array is a new copy on each call.

        Raises:
            WeightUnsupported: strings and sparse tensors.
            OnnxMalformed: the payload's entries do not agree with the shape.
            OnnxExternalMissing: the external file is gone or another one by now.
            ValueError: the OnnxWeights is closed.
        """
        return self.source.read_array(self)


def set_key(ref: WeightRef, key: str) -> None:
    """Give a new reference its mapping key; only the index does so, before it hands the reference out."""
    object.__setattr__(ref, "key", key)


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """A BatchNormalization node whose four parameters are constants.

    ``scale``, ``bias``, ``mean`` and ``var`` are the names of inputs 1 to 4 as the node gives them
    (look them up from ``scope`` outward); ``epsilon`` is the exact value of a float32; ``output`` is
    output 0; ``node`` may be "".
    """

    node: str
    scope: str
    scale: str
    bias: str
    mean: str
    var: str
    epsilon: float
    output: str


AttributeValue = Union[
    float,
    int,
    bytes,
    WeightRef,
    "Graph",
    tuple[float, ...],
    tuple[int, ...],
    tuple[bytes, ...],
    tuple[WeightRef, ...],
    tuple["Graph", ...],
    None,
]


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """One attribute of a node, or one default of a function.

    Attributes:
        name: its name.
        type: number from ``AttributeProto.AttributeType``; inferred where the file has none.
        value: float, int, bytes, WeightRef, Graph or a tuple of one of these; None for types and
            for a reference.
        ref: name of the function's attribute that gives the value at the call, or "".
    """

    name: str
    type: int
    value: AttributeValue
    ref: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node; ``inputs`` and ``outputs`` keep "" for those left out.

    ``constant`` is the tensor of a Constant node in any of its forms; None where it refers to a
    function's attribute, and for other nodes.
    """

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]
    overload: str = ""
    constant: WeightRef | None = None

    @property
    def is_standard(self) -> bool:
        """Whether the operator is one of ONNX's own domain."""
        return self.domain in ("", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A graph in file order; ``initializers`` holds the dense ones, then the sparse ones."""

    name: str
    scope: str
    initializers: dict[str, WeightRef]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A model-local function; ``attributes`` are those without a default, ``defaults`` the others."""

    domain: str
    name: str
    overload: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    attributes: tuple[str, ...]
    defaults: dict[str, Attribute]
    opsets: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class OnnxModel:
    """A model's graph and functions; functions by (domain, name, overload)."""

    ir_version: int
    opsets: dict[str, int]
    graph: Graph
    functions: dict[tuple[str, str, str], Function]
