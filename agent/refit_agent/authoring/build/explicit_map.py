"""The explicit weight map of a finished plan: the naming rules applied once, here, and their result written down.

So the end user's machine never has to guess, whatever its version of the rules. An entry is kept only if
reading it gives the very source that the rules gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from refit_agent.weight_map import Prototype, WeightSource, resolve
from refit_agent.weight_map.explicit import read_explicit
from refit_agent.weight_map.families import generation_of
from refit_agent.weight_map.request import same_making
from refit_agent.weights import OnnxWeights


class WeightMap(NamedTuple):
    """``sources`` of all weights, in the engine's order; ``entries`` as the manifest has them; ``by_rule`` names the
    weights that no entry can express, which the naming rules must find again."""

    sources: dict[str, WeightSource]
    entries: dict[str, dict[str, Any]]
    by_rule: tuple[str, ...]


def make_weight_map(
    wanted: Mapping[str, Prototype], weights: OnnxWeights, *, builder: tuple[int, ...], rtx: bool
) -> WeightMap:
    """Where every weight of a plan comes from, and how the manifest says it.

    Raises:
        WeightsUncovered, WeightsMismatch, WeightsAmbiguous: the plan asks for something that the model does not
            have, or has more than once.
        OnnxError
    """
    sources = resolve(wanted, weights, builder=builder, rtx=rtx)
    drafts = {name: entry for name, source in sources.items() if (entry := explicit_entry(source)) is not None}
    read, _ = read_explicit(drafts, wanted, weights, generation_of(builder, rtx))
    entries = {name: drafts[name] for name in drafts if name in read and _same(read[name], sources[name])}
    # What was left to the rules must come out the same with the entries beside it.
    again = resolve(wanted, weights, builder=builder, rtx=rtx, explicit=entries)
    assert all(_same(again[name], source) for name, source in sources.items())
    return WeightMap(sources, entries, tuple(name for name in sources if name not in entries))


def explicit_entry(source: WeightSource) -> dict[str, Any] | None:
    """The entry of the manifest's map that says what ``source`` is; None if none of its forms does."""
    if source.transform in ("identity", "cast"):
        return {"from": source.sources[0]}
    if source.transform in ("batch-norm-scale", "batch-norm-bias"):
        scale, bias, mean, variance = source.sources
        return {
            "batch_norm": source.transform.removeprefix("batch-norm-"),
            "scale": scale,
            "bias": bias,
            "mean": mean,
            "variance": variance,
            "epsilon": source.made_of[-1],
        }
    return _fill_entry(source)


def _fill_entry(source: WeightSource) -> dict[str, Any] | None:
    from refit_agent.weight_map.batch_norm import widen

    if source.count == 0 or source.dtype not in ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64"):
        return None
    array = source.array().reshape(-1)
    if (array != array[0]).any():
        return None
    value = widen(array[:1], source.dtype)[0] if source.dtype in ("float16", "bfloat16") else array[0]
    number = value.item()
    if number in (float("inf"), float("-inf")):  # NaN is unlike itself, and was refused above
        return None
    return {"fill": number, "count": source.count, "dtype": source.dtype}


def _same(one: WeightSource, other: WeightSource) -> bool:
    """Whether both set the same bytes; they are compared only where the origins do not tell."""
    if (one.dtype, one.count) != (other.dtype, other.count):
        return False
    return same_making(one, other) or one.array().tobytes() == other.array().tobytes()
