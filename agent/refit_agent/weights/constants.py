"""The tensor that a Constant node makes, in each of its eight attribute forms.

Source: the Constant operator in the ONNX operator reference.
"""

from __future__ import annotations

from typing import cast

from refit_agent.weights.dtypes import FLOAT32, INT64, STRING, DataType
from refit_agent.weights.parts import FIELD_OF
from refit_agent.weights.records import Attribute, Payload, WeightRef
from refit_agent.weights.tensors import TensorReader
from refit_agent.weights.wire import VARINT

# The attributes a Constant node can have, with the field that holds each one.
_CONSTANT_FORMS = {
    "value": 5,
    "sparse_value": 22,
    "value_float": 2,
    "value_floats": 7,
    "value_int": 3,
    "value_ints": 8,
    "value_string": 4,
    "value_strings": 9,
}


def constant_ref(
    tensors: TensorReader, attribute: Attribute, start: int, stop: int, scope: str, name: str
) -> WeightRef | None:
    """The tensor that a Constant node's attribute makes; None where the call of a function gives it."""
    wire = tensors.wire
    form = _CONSTANT_FORMS.get(attribute.name)
    if form is None:
        wire.fail(start, f"the Constant {name!r} has the unknown attribute {attribute.name!r}")
    if attribute.ref:
        return None
    value = attribute.value
    if (attribute.type and FIELD_OF[attribute.type] != form) or value is None:
        wire.fail(start, f"the Constant {name!r} has a {attribute.name} of a wrong type")
    if isinstance(value, WeightRef):
        return value
    known = tensors.refs.get(start)
    if known is not None:
        return known
    dtype: DataType = {2: FLOAT32, 7: FLOAT32, 3: INT64, 8: INT64}.get(form, STRING)
    shape: tuple[int, ...] = (len(value),) if isinstance(value, tuple) else ()
    count = shape[0] if shape else 1
    nbytes = dtype.byte_count(count)
    if isinstance(value, bytes):
        nbytes = len(value)
    elif dtype is STRING:
        nbytes = sum(len(entry) for entry in cast("tuple[bytes, ...]", value))
    places = [(kind, v, e, at) for n, kind, v, e, at in wire.fields(start, stop) if n == form]
    payload = Payload("fields", start, stop, form)
    offset = start
    if places:
        kind, place, end, at = places[0]
        offset = at if kind == VARINT else place
        if dtype is FLOAT32 and len(places) == 1:
            payload = Payload("plain", place, end)
    elif count:
        wire.fail(start, f"the Constant {name!r} leaves its value out")
    if dtype is STRING:
        payload = Payload("none", offset, offset)
    made = tensors.refs[start] = tensors.make(
        name=name,
        scope=scope,
        kind="constant",
        dtype=dtype.name,
        shape=shape,
        count=count,
        nbytes=nbytes,
        payload=payload,
        offset=offset,
    )
    return made
