"""ConstantOfShape nodes whose shape is a weight: what they make is a weight as well."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.values import BY_NAME, Array, Value
from refit_agent.authoring.errors import ModelUnsupported

#: A file of a few bytes can ask for any number of zeros; one node may make this much, ...
MAX_BYTES = 16 << 20
#: ... and stays a node beyond it. All of them together may make this much; no real model comes near it.
MAX_TOTAL_BYTES = 1 << 30


class Fills:
    """Makes the weights, and keeps the sum of their sizes."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._total = 0

    def value(self, node: NodeProto, shape: Value) -> Value | None:
        """What the node makes of ``shape``; None if it has to stay a node, which is then noted.

        Raises:
            ModelUnsupported: the nodes make too much together. To leave just the last ones would give
                another result the next time, when the first ones are weights already.
        """
        label = node.name or node.output[0]
        if shape.dtype != "int64" or len(shape.shape) != 1 or shape.count > 32:
            return self._stay(label, "its shape is no short list of int64")
        dims = tuple(int(d) for d in shape.make())
        if any(d < 0 for d in dims):
            return self._stay(label, f"its shape is {dims}")
        dtype, one = self._element(node)
        if one.size != 1 or dtype == "string" or BY_NAME[dtype].bits < 8:
            return self._stay(label, f"its value is {one.size} elements of type {dtype}")
        nbytes = BY_NAME[dtype].byte_count(math.prod(dims))
        if nbytes > MAX_BYTES:
            return self._stay(label, f"it makes {nbytes} bytes")
        self._total += nbytes
        if self._total > MAX_TOTAL_BYTES:
            detail = f"its ConstantOfShape nodes make more than {MAX_TOTAL_BYTES} bytes"
            raise ModelUnsupported(path=self._draft.path, detail=detail)
        return Value(dtype, dims, lambda: np.full(dims, one.reshape(-1)[0]))

    def _stay(self, label: str, reason: str) -> Value | None:
        self._draft.notes.append(f"ConstantOfShape {label!r} stays a node: {reason}.")
        return None

    def _element(self, node: NodeProto) -> tuple[str, Array]:
        for attribute in node.attribute:
            if attribute.name == "value":
                if attribute.t.data_type == 8:
                    return "string", np.zeros(1)
                value = self._draft.source.value(attribute.t)
                return value.dtype, value.make()
        return "float32", np.zeros(1, np.float32)
