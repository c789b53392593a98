"""Engine names that are names of the model: initializers, Constant outputs, and their scoped duplicates.

Source: weight_naming sections 1, 3, 4, and 6 for zero points.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from refit_agent.weight_map.alignment import Step, possible_origins
from refit_agent.weight_map.origins import Filled, Origin, Stored
from refit_agent.weight_map.parsed import Walk, Weight
from refit_agent.weight_map.request import Readings, Request
from refit_agent.weight_map.sources import NoSourceError

_NUMBERED = re.compile(r"(.+)_(0|[1-9][0-9]*)", re.DOTALL)


def exact_origins(request: Request, name: str) -> tuple[Origin, ...]:
    """What carries exactly ``name``: every top-level weight of that name, or the first in any scope.

    More than one only where the parser itself gives several weights one name.
    """
    weights = _bare(request, name)
    if not weights:
        return ()
    split = _NUMBERED.fullmatch(name)
    if split and request.generation.scoped_suffixes:
        # A duplicate "w" met before a weight that is really called "w_17" may have taken that name.
        earlier = [d for d in _duplicates(request.walk, split[1]) if d.order < weights[0].order]
        weights = [*weights, *earlier]
    return tuple(origin for weight in weights for origin in _as_origins(request, weight))


def read_duplicates(request: Request, names: Sequence[str]) -> Readings:
    """``name_N`` for weights of subgraphs and functions whose plain name was taken (section 4).

    N is drawn from the shared counter, so only its order means something: ascending N is parse order.
    """
    readings = Readings()
    if not request.generation.scoped_suffixes:
        return readings
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        split = _NUMBERED.fullmatch(name)
        if split and _duplicates(request.walk, split[1]):
            groups.setdefault(split[1], []).append((int(split[2]), name))
    for base, numbered in groups.items():
        ordered = [name for _, name in sorted(numbered)]
        duplicates = _duplicates(request.walk, base)
        if len(ordered) > len(duplicates):
            reason = f"the plan asks for {len(ordered)} duplicates of {base!r}, and the model has {len(duplicates)}"
            readings.refuse(ordered, NoSourceError(reason))
            continue
        steps = [Step((Stored(d),)) for d in duplicates]
        found = possible_origins(ordered, steps, request.fits)
        if found is None:
            reason = f"types or counts contradict the order of the model's {len(duplicates)} duplicates of {base!r}"
            readings.contradict(request, ordered, [step.origins[0] for step in steps], reason)
            continue
        readings.origins.update(zip(ordered, found, strict=True))
    return readings


def _bare(request: Request, name: str) -> list[Weight]:
    weights = request.walk.by_name.get(name, [])
    return [w for w in weights if not w.nested or w.fresh or not request.generation.scoped_suffixes]


def _duplicates(walk: Walk, base: str) -> list[Weight]:
    return [w for w in walk.by_name.get(base, []) if w.nested and not w.fresh]


def _as_origins(request: Request, weight: Weight) -> list[Origin]:
    """The weight itself, or the float32 zeros that the parser puts in place of a zero point (section 6)."""
    uses = request.walk.uses.get(weight.identity, [])
    as_zero = [
        v for v in uses if v.node.op_type in ("QuantizeLinear", "DequantizeLinear") and _is_zero(v.inputs, weight)
    ]
    if not as_zero:
        return [Stored(weight)]
    zeros = Filled(0.0, weight.count, f"the float32 zeros that stand for the zero point {weight.key!r}")
    if len(as_zero) == len(uses) and request.generation.known and request.generation.version < (10, 0):
        return [zeros]
    return [Stored(weight), zeros]


def _is_zero(inputs: tuple[Weight | None, ...], weight: Weight) -> bool:
    positions = [i for i, w in enumerate(inputs) if w is not None and w.identity == weight.identity]
    return positions == [2]
