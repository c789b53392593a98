"""BatchNormalization and ConstantOfShape names of TensorRT 10 and later, by running the parser's own generator.

Source: weight_naming section 2 (exact name generator) and section 0. The generator's set and
counter are private to the family, so the k-th name depends on the model alone, not on what the
builder kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from refit_agent.weight_map.families import FAMILIES, NODE_INDEX, REFITTABLE
from refit_agent.weight_map.origins import Origin, of_batch_norm, of_constant_of_shape
from refit_agent.weight_map.parsed import Visit
from refit_agent.weight_map.request import Readings, Request
from refit_agent.weight_map.sources import NoSourceError, RefusedError, SeveralSourcesError

_INDEXED = re.compile(NODE_INDEX + r"_(0|[1-9][0-9]*)_(scale|bias)_weight")


def generated_names(base: str) -> Iterator[str]:
    """base, base_0, base_1, ...: what the generator gives in a set that holds nothing else."""
    yield base
    count = 0
    while True:
        yield f"{base}_{count}"
        count += 1


def read_numbered(request: Request, names: Sequence[str]) -> Readings:
    """Names of the families tmp_batch_norm_weight and tmp_refittable_weight."""
    readings = Readings()
    generation = request.generation
    present = {base: [n for n in names if _belongs(n, base)] for base in FAMILIES}
    for base, members in present.items():
        if not members:
            continue
        if base not in generation.folds:
            readings.refuse(members, NoSourceError(f"{generation.label} is not known to name weights {base}_N"))
        elif len(generation.folds) > 1 and all(present[b] for b in generation.folds):
            readings.refuse(members, SeveralSourcesError("the plan mixes the names of two parser generations"))
        else:
            _read_family(request, base, members, readings)
    return readings


def _read_family(request: Request, base: str, members: Sequence[str], readings: Readings) -> None:
    simulated, replaceable = _simulate(request, base)
    error = _contradiction(request, base, simulated, replaceable)
    if error is not None:
        readings.refuse(members, error)
        return
    readings.origins.update((name, (simulated[name],)) for name in members)


def _simulate(request: Request, base: str) -> tuple[dict[str, Origin], bool]:
    """Every name that the parser handed out, and whether it may have skipped some of those nodes."""
    names = generated_names(base)
    simulated: dict[str, Origin] = {}
    replaceable = False
    for visit in request.walk.visits:
        origins: tuple[Origin, ...] = ()
        if visit.node.op_type == "BatchNormalization":
            folded = of_batch_norm(visit)
            if folded is not None and not _fell_back(request, visit):
                origins = folded
        elif visit.node.op_type == "ConstantOfShape" and base == REFITTABLE:
            origins = (of_constant_of_shape(visit),)
        replaceable = replaceable or (visit.in_function and bool(origins))
        simulated.update(zip((next(names) for _ in origins), origins, strict=True))
    return simulated, replaceable


def _contradiction(request: Request, base: str, simulated: dict[str, Origin], replaceable: bool) -> RefusedError | None:
    """Why the numbering cannot be trusted as a whole, if anything speaks against it.

    One name too many or too few in the simulation shifts all later ones, and equal counts would hide it.
    """
    mentioned = [n for n in request.wanted if _belongs(n, base) and n not in request.walk.by_name]
    beyond = [n for n in mentioned if n not in simulated]
    if beyond:
        return NoSourceError(
            f"the plan counts up to {beyond[-1]!r}, and the model's nodes give only {len(simulated)} such names"
        )
    for name in mentioned:
        pinned = request.explicit.get(name)
        if pinned is not None and pinned.transform.startswith("batch-norm") and not request.fits(simulated[name], name):
            return SeveralSourcesError(f"the explicit map and the parser's numbering disagree about {name!r}")
    if request.generation.version < (10, 7):
        return None
    mixed = _may_mix_types(request)
    if not mixed and any(_fell_back(request, v) for v in request.walk.visits):
        return SeveralSourcesError("the plan asks for parameters that the parser should have folded")
    # From 10.7 on a strongly typed network does not fold a BatchNormalization of mixed types, and a
    # plugin may replace a function's body. Neither shows in the plan's header; the last names do.
    order = list(simulated)
    spare = len(order) - 1 - max(order.index(n) for n in mentioned)
    if spare >= 2 and mixed:
        return SeveralSourcesError(
            "the plan lacks the last names of the family, and some BatchNormalization may not have been folded"
        )
    if spare >= 1 and replaceable:
        return SeveralSourcesError(
            "the plan lacks the last names of the family, and a plugin may have replaced a function"
        )
    return None


def _fell_back(request: Request, visit: Visit) -> bool:
    """Whether the plan asks for a parameter that only this BatchNormalization uses: then it was not folded (10.7 on)."""
    folded = of_batch_norm(visit) if visit.node.op_type == "BatchNormalization" else None
    if folded is None or request.generation.version < (10, 7):
        return False
    return any(
        p.name in request.wanted and all(v is visit for v in request.walk.uses[p.identity])
        for p in folded[0].parameters
    )


def _may_mix_types(request: Request) -> bool:
    halves = ("float16", "bfloat16")
    if any(w.dtype in halves for weights in request.walk.by_name.values() for w in weights):
        return True
    return any(v.node.op_type == "Cast" and v.attributes.get("to") in (10, 16) for v in request.walk.visits)


def read_indexed(request: Request, names: Sequence[str]) -> Readings:
    """node_trt_batch_norm_<index>_scale_weight: 10.0 early access, index in the node's own graph.

    Two graphs may hold a BatchNormalization at one index; then the name has both origins.
    """
    readings = Readings()
    for name in names:
        match = _INDEXED.fullmatch(name)
        if match is None:
            continue
        if NODE_INDEX not in request.generation.folds:
            reason = f"{request.generation.label} is not known to name weights {NODE_INDEX}_N"
            readings.refuse([name], NoSourceError(reason))
            continue
        at_index = [
            v for v in request.walk.visits if v.node.op_type == "BatchNormalization" and v.index == int(match[1])
        ]
        folded = [f for f in map(of_batch_norm, at_index) if f is not None]
        if folded:
            readings.origins[name] = tuple(f[0] if match[2] == "scale" else f[1] for f in folded)
        else:
            readings.refuse([name], NoSourceError(f"no foldable BatchNormalization is node {match[1]} of its graph"))
    return readings


def _belongs(name: str, base: str) -> bool:
    return name == base or re.fullmatch(re.escape(base) + "_(0|[1-9][0-9]*)", name) is not None
