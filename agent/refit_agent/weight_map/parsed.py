"""What the parser's walk leaves behind: weights as they were registered, nodes as they were imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from refit_agent.weights.records import AttributeValue, Node, WeightRef

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One registration of a weight under a name, in parse order.

    The same tensor is registered again under another name when it leaves a constant If or a
    function, or enters a function as an argument.

    Attributes:
        name: the ONNX name it is registered under.
        key: key of its tensor in OnnxWeights, or its name where the mapping does not list it.
        dtype, count: of the ONNX tensor, before any import rule.
        nested: whether a subgraph or function registers it.
        order: position among all registrations of weights and tensors.
        fresh: whether no tensor or weight had this name before.
        ref: the tensor, or None for a number in an attribute of a Constant node.
        numbers: those numbers.
    """

    name: str
    key: str
    dtype: str
    count: int
    nested: bool
    order: int
    fresh: bool
    ref: WeightRef | None
    numbers: tuple[float, ...] | tuple[int, ...] = ()
    scalar: bool = False

    @property
    def identity(self) -> object:
        """Equal for two registrations of one tensor, different for two tensors.

        Names do not serve: two calls of a function give one name to two attribute tensors.
        """
        if self.ref is None:
            return (self.name, self.dtype, self.numbers)
        ref = self.ref
        return ref.key or (self.name, ref.file, ref.offset, ref.dtype, ref.shape)

    def array(self) -> npt.NDArray[Any]:
        """The tensor as ``WeightRef.array`` gives it; a new array for numbers in attributes."""
        if self.ref is not None:
            return self.ref.array()
        import numpy as np

        values = np.array(self.numbers, self.dtype)
        return values.reshape(()) if self.scalar else values


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """One node at the moment the parser imports it.

    Attributes:
        node: the node.
        index: its index in the node list of its own graph or function.
        inputs: for each input the weight that the parser sees there, or None for a tensor or "".
        attributes: values of its attributes, those of the function call filled in.
        nested: whether it is in a subgraph or function.
        in_function: whether it is in a function's body.
        calls_function: whether it is a call of one of the model's functions.
    """

    node: Node
    index: int
    inputs: tuple[Weight | None, ...]
    attributes: dict[str, AttributeValue]
    nested: bool
    in_function: bool
    calls_function: bool

    @property
    def layer_name(self) -> str:
        """What the parser calls the node's layer, before any suffix (section 6)."""
        return self.node.name or "node_of_" + (self.node.outputs[0] if self.node.outputs else "")

    def weight(self, position: int) -> Weight | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def number(self, name: str, default: float) -> float:
        value = self.attributes.get(name)
        return float(value) if isinstance(value, (int, float)) else default


@dataclass
class Walk:
    """Everything that the parser registers and imports, each in parse order.

    ``by_name`` holds the registrations of weights under each name; ``names`` every name of a tensor
    or weight; ``uses``, by a weight's identity, the nodes that it enters, those of subgraphs too.
    """

    visits: list[Visit] = field(default_factory=list)
    by_name: dict[str, list[Weight]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    uses: dict[object, list[Visit]] = field(default_factory=dict)
