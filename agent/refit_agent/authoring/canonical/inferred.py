"""Element types and ranks of tensors: by ONNX's own shape inference, and a little further.

Inference gives up at the first Reshape whose shape it cannot compute, and exports of PyTorch are full of them.
But behind the next convolution the rank is that of its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.scopes import is_standard
from refit_agent.authoring.canonical.source import SMALL_BYTES
from refit_agent.authoring.canonical.values import Value, raw_bytes
from refit_agent.weights import wire_writer as pb
from refit_agent.weights.dtypes import TYPES


class Inferred(NamedTuple):
    """What is known about a tensor: its element type ("" if unknown) and its rank (None if unknown)."""

    dtype: str
    rank: int | None


_UNKNOWN = Inferred("", None)


def inferred_model(draft: Draft) -> ModelProto:
    """A copy of the draft's model, its nodes at the same places, with whatever inference finds out in value_info.

    Large weights take part with type and shape, small ones with their values.
    """
    model = ModelProto()
    model.CopyFrom(draft.model)
    for name, value in draft.weights.items():
        if value.nbytes <= SMALL_BYTES:
            data = pb.tensor(name, value.dtype, value.shape, bytes(raw_bytes(value.make())))
        else:
            data = pb.external_tensor(name, value.dtype, value.shape, "0", 0, value.nbytes)
        model.graph.initializer.add().ParseFromString(data)
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # noqa: BLE001 - it knows fewer models than ONNX Runtime; then only what the file says is known
        return model


#: Operators whose output has the element type and the rank of their first input.
_KEEPING = (
    "AveragePool", "BatchNormalization", "Ceil", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "LpPool", "MaxPool", "Mish", "Neg", "PRelu",
    "Pad", "Relu", "Resize", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh", "Transpose", "Upsample",
)  # fmt: skip


def tensor_behind(
    name: str, makers: Mapping[str, NodeProto], known: Mapping[str, Inferred], weights: Mapping[str, Value]
) -> Inferred:
    """Type and rank of a tensor, followed back through operators that keep them to one that is known.

    ``makers`` has the node of the same graph that makes each tensor.
    """
    for _ in range(len(makers) + 1):  # a graph can be a circle
        found = known.get(name, _UNKNOWN)
        maker = makers.get(name)
        if (found.dtype and found.rank is not None) or maker is None or maker.output[0] != name:
            return found
        if is_standard(maker, "Conv", "ConvTranspose") and len(maker.input) > 1 and maker.input[1] in weights:
            kernel = weights[maker.input[1]]
            return Inferred(kernel.dtype, len(kernel.shape))
        if not is_standard(maker, *_KEEPING):
            return found
        name = maker.input[0]
    return _UNKNOWN


def known_tensors(graph: GraphProto) -> dict[str, Inferred]:
    """What a graph says about its own tensors."""
    entries = [*graph.input, *graph.output, *graph.value_info]
    return {entry.name: _of(entry) for entry in entries}


def _of(entry: ValueInfoProto) -> Inferred:
    if not entry.type.HasField("tensor_type"):
        return _UNKNOWN
    tensor = entry.type.tensor_type
    dtype = TYPES[tensor.elem_type].name if tensor.elem_type in TYPES else ""
    return Inferred(dtype, len(tensor.shape.dim) if tensor.HasField("shape") else None)
