"""Step 5: which weights lie in the data file, where, and in which order.

In the graph stay only tensors below 1 KiB that are read while a graph is parsed, not computed with:

- integers other than 8 and 4 bit, and booleans: shapes, axes, starts, counts, conditions, and
  tensors of no elements (in external data a length of 0 means the whole file to TensorRT's parser);
- floating-point numbers at the inputs of PARSED_INPUTS, such as the scales of a Resize: shape
  inference needs their values and does not look into external data.

Everything else is external, whatever its size. Small tensors begin at a multiple of 64 bytes, those
from 1 MiB on at a multiple of 64 KiB, which is what Windows can map a file from; zeros lie between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, TensorProto

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.scopes import all_graphs, all_nodes, in_reading_order, is_standard, uses
from refit_agent.authoring.canonical.values import Value

INLINE_BYTES = 1024
ALIGNMENT = 64
LARGE_BYTES, LARGE_ALIGNMENT = 1 << 20, 1 << 16
_PARSED = frozenset({"int16", "int32", "int64", "uint16", "uint32", "uint64", "bool"})
#: Operator -> positions of inputs whose floating-point values are read while a graph is parsed.
PARSED_INPUTS = {
    "Clip": (1, 2),
    "Dropout": (1,),
    "MelWeightMatrix": (3, 4),
    "NonMaxSuppression": (3, 4),
    "OneHot": (1,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies in the data file, in bytes."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every weight goes.

    Attributes:
        graph_order: all names, as the initializers stand in the graph: in the order of their first use.
        places: those in the data file, in the order of the file.
        unknown: names of the wanted order that are no weights in the data file.
    """

    graph_order: tuple[str, ...]
    places: dict[str, Place]
    unknown: tuple[str, ...]


def drop_unused(draft: Draft) -> list[str]:
    """Drop the weights that nothing reads, and what value_info says about tensors that are gone; gives the names."""
    used = uses(draft.graph)
    dropped = [name for name in draft.weights if not used[name]]
    for name in dropped:
        del draft.weights[name]
    for graph in all_graphs(draft.graph):
        _prune_value_info(graph)
    return dropped


def _prune_value_info(graph: GraphProto) -> None:
    made = {name for node in graph.node for name in node.output}
    kept = [entry for entry in graph.value_info if entry.name in made]
    if len(kept) != len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)


def lay_out(draft: Draft, order: Sequence[str] | None) -> Layout:
    """Places for all weights of the draft: those named in ``order`` first, then by their first use."""
    used = dict.fromkeys(name for name in in_reading_order(draft.graph) if name in draft.weights)
    used.update(dict.fromkeys(draft.weights))  # what only annotations name comes last
    parsed = _parsed_floats(draft.graph)
    external = {
        name: draft.weights[name].nbytes for name in used if not _is_inline(draft.weights[name], name in parsed)
    }
    return Layout(tuple(used), places(external, order or ()), unknown_names(external, order or ()))


def places(sizes: Mapping[str, int], order: Iterable[str]) -> dict[str, Place]:
    """Places for weights of the given sizes: those in ``order`` first, the others in the order they come in."""
    first = dict.fromkeys(name for name in order if name in sizes)
    found: dict[str, Place] = {}
    end = 0
    for name in [*first, *(name for name in sizes if name not in first)]:
        step = LARGE_ALIGNMENT if sizes[name] >= LARGE_BYTES else ALIGNMENT
        offset = -(-end // step) * step
        found[name] = Place(offset, sizes[name])
        end = offset + sizes[name]
    return found


def unknown_names(sizes: Mapping[str, int], order: Iterable[str]) -> tuple[str, ...]:
    """The names in ``order`` that have no size, each once."""
    return tuple(dict.fromkeys(name for name in order if name not in sizes))


def _is_inline(value: Value, parsed: bool) -> bool:
    if value.nbytes == 0:
        return True
    return value.nbytes < INLINE_BYTES and (value.dtype in _PARSED or parsed)


def _parsed_floats(graph: GraphProto) -> set[str]:
    """Names at the inputs of PARSED_INPUTS, in all scopes: names of weights are unique."""
    found: set[str] = set()
    for node in all_nodes(graph):
        if is_standard(node) and node.op_type in PARSED_INPUTS:
            found.update(node.input[i] for i in PARSED_INPUTS[node.op_type] if i < len(node.input))
    return found


def place_in(tensor: TensorProto, location: str, place: Place) -> None:
    """Make ``tensor`` a reference to its place in the file ``location``."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(place.offset)), ("length", str(place.nbytes))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = TensorProto.EXTERNAL
