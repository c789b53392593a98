"""Step 6: the two files. Weights are made, written and forgotten one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import BinaryIO

from onnx import ModelProto, TensorProto

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.layout import Layout, Place, place_in
from refit_agent.authoring.canonical.scopes import all_tensors
from refit_agent.authoring.canonical.values import raw_bytes
from refit_agent.authoring.errors import ModelUnsupported
from refit_agent.weights import wire_writer as pb

_PIECE_BYTES = 16 << 20
#: protobuf's own limit for one message.
_LARGEST_GRAPH = (1 << 31) - 1

OnBytes = Callable[[int, int], None]


def write_model(
    draft: Draft, layout: Layout, folder: str, name: str, data_name: str, on_bytes: OnBytes = lambda _done, _total: None
) -> None:
    """Write the draft as ``name`` and, if any weight is external, ``data_name`` into ``folder``. Ends the draft.

    ``on_bytes`` gets the bytes of the data file that are written, and their number.

    Raises:
        ModelUnsupported: see ``replace_float64``; or what has to stay in the graph is more than 2 GB.
        OSError: the disk is full or cannot be written.
    """
    _restore(draft)
    graph = draft.graph
    for tensor_name in layout.graph_order:
        value = draft.weights[tensor_name]
        tensor = graph.initializer.add()
        place = layout.places.get(tensor_name)
        if place is None:
            raw = bytes(raw_bytes(value.make()))
            tensor.ParseFromString(pb.tensor(tensor_name, value.dtype, value.shape, raw))
        else:
            tensor.ParseFromString(pb.tensor_head(tensor_name, value.dtype, value.shape))
            place_in(tensor, data_name, place)
    weights = draft.weights
    if layout.places:
        path = os.path.join(folder, data_name)
        write_data(path, layout.places, lambda wanted: raw_bytes(weights[wanted].make()), on_bytes)
    write_graph(os.path.join(folder, name), draft.model, draft.path)


def _restore(draft: Draft) -> None:
    """Put the bytes back into tensors that stay in attributes, in sparse tensors or in foreign graphs."""
    total = 0
    for tensor in all_tensors(draft.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            total += draft.source.value(tensor).nbytes
            if total > _LARGEST_GRAPH:
                raise ModelUnsupported(path=draft.path, detail="attributes and sparse tensors are more than 2 GB")
            draft.source.restore(tensor)


def write_data(
    path: str,
    places: Mapping[str, Place],
    raw: Callable[[str], memoryview],
    on_bytes: OnBytes = lambda _done, _total: None,
) -> None:
    """Write a new data file, zeros between the weights, and wait until it is on the disk."""
    total = max((place.offset + place.nbytes for place in places.values()), default=0)
    with open(path, "xb", buffering=0) as file:
        end = 0
        for name, place in places.items():
            _write_all(file, memoryview(bytes(place.offset - end)))
            data = raw(name)
            if len(data) != place.nbytes:
                raise AssertionError(f"{name!r} has {len(data)} bytes in place of {place.nbytes}")
            _write_all(file, data)
            end = place.offset + place.nbytes
            on_bytes(end, total)
        os.fsync(file.fileno())


def write_graph(path: str, model: ModelProto, source: str) -> None:
    """Write a graph to a new file, the same bytes for the same graph; ``source`` names the model in errors."""
    size = model.ByteSize()
    if size > _LARGEST_GRAPH:
        raise ModelUnsupported(path=source, detail=f"without its weights it has {size} bytes, more than protobuf takes")
    with open(path, "xb") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.flush()
        os.fsync(file.fileno())


def _write_all(file: BinaryIO, data: memoryview) -> None:
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        while piece:
            piece = piece[file.write(piece) :]
