"""The one entry: for every weight that a plan asks for, where its content comes from.

A rule that does not apply leaves a name to the next one: the manifest's explicit map, names of the
model, scoped duplicates, numbered families, names by layer. TensorRT reports success with weights
left unset, so a name that no rule covers, or that two cover differently, fails the whole plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from refit_agent.errors import WeightsAmbiguous, WeightsMismatch, WeightsUncovered
from refit_agent.weight_map.explicit import read_explicit
from refit_agent.weight_map.families import generation_of
from refit_agent.weight_map.layer_names import layer_origins
from refit_agent.weight_map.numbered_names import read_indexed, read_numbered
from refit_agent.weight_map.origins import Origin
from refit_agent.weight_map.request import Readings, Request, choose
from refit_agent.weight_map.shared_names import read_shared
from refit_agent.weight_map.sources import (
    MisfitError,
    NoSourceError,
    Prototype,
    RefusedError,
    SeveralSourcesError,
    WeightSource,
)
from refit_agent.weight_map.stored_names import exact_origins, read_duplicates
from refit_agent.weight_map.traversal import walk

if TYPE_CHECKING:
    from refit_agent.weights import OnnxWeights


def resolve(
    wanted: Mapping[str, Prototype],
    weights: OnnxWeights,
    *,
    builder: tuple[int, ...],
    rtx: bool = False,
    explicit: Mapping[str, object] | None = None,
) -> dict[str, WeightSource]:
    """One source for every wanted name, in the order of ``wanted``.

    Args:
        wanted: the plan's weight names, with what the runtime says about each.
        weights: the ONNX model that the engine was built from.
        builder: version of TensorRT (or TensorRT-RTX) that built the plan, from its header.
        rtx: whether the plan is one of TensorRT-RTX.
        explicit: the manifest's weight map for this plan, JSON-decoded; see ``explicit``.

    All checks are done when this returns; the arrays are made later, one by one. Values are read
    only where several origins of a name must be compared, and for constant If conditions.

    Raises:
        WeightsUncovered: some names have no source; lists every one, ``detail`` gives the reasons.
        WeightsMismatch: a source has another type or count than the plan asks for, or the explicit
            map has an entry that the plan has no use for.
        WeightsAmbiguous: some names have several sources with different bytes.
        ManifestInvalid: the explicit map is malformed.
        OnnxError: the model or its data cannot be read.
    """
    generation = generation_of(builder, rtx)
    sources, refusals = read_explicit(explicit or {}, wanted, weights, generation)
    request = Request(wanted, walk(weights.model, str(weights.path)), generation, sources)
    refusals = {**_resolve_rest(request, sources, set(refusals)), **refusals}
    _raise_refusals(refusals, wanted, str(weights.path))
    return {name: sources[name] for name in wanted}


def _resolve_rest(request: Request, sources: dict[str, WeightSource], settled: set[str]) -> dict[str, RefusedError]:
    """Add to ``sources`` what the rules give; returns the reasons for the other names."""
    exact = {name: exact_origins(request, name) for name in request.wanted}
    rest = [name for name, origins in exact.items() if not origins]
    rules = [read_duplicates(request, rest)]
    rest = [name for name in rest if not _knows(rules[0], name)]
    rules += [read_numbered(request, rest), read_indexed(request, rest), read_shared(request, rest)]
    refusals: dict[str, RefusedError] = {}
    pinned = frozenset(sources)
    for name in request.wanted:
        if name in pinned or name in settled:
            continue
        try:
            origins = exact[name] or _read(rules, name) or layer_origins(request, name)
            if not origins:
                raise NoSourceError("no weight of the model has this name, and no naming rule makes it")
            sources[name] = choose(request, name, origins)
        except RefusedError as e:
            refusals[name] = e
    return refusals


def _knows(readings: Readings, name: str) -> bool:
    return name in readings.origins or name in readings.refusals


def _read(rules: list[Readings], name: str) -> tuple[Origin, ...]:
    for readings in rules:
        if name in readings.refusals:
            raise readings.refusals[name]
        if name in readings.origins:
            return readings.origins[name]
    return ()


def _raise_refusals(refusals: Mapping[str, RefusedError], wanted: Mapping[str, Prototype], path: str) -> None:
    """Raise the error for what is missing, else for what does not fit, else for what is ambiguous."""
    ordered = [(name, refusals[name]) for name in wanted if name in refusals]
    uncovered = [(name, e) for name, e in ordered if isinstance(e, NoSourceError)]
    if uncovered:
        names = ", ".join(name for name, _ in uncovered)
        raise WeightsUncovered(count=len(uncovered), path=path, names=names, detail=_reasons(uncovered))
    for name, e in ordered:
        if isinstance(e, MisfitError):
            raise WeightsMismatch(name=name, detail=str(e))
    several = [(name, e) for name, e in ordered if isinstance(e, SeveralSourcesError)]
    if several:
        raise WeightsAmbiguous(path=path, detail=_reasons(several).rstrip("."))


def _reasons(refused: Sequence[tuple[str, RefusedError]]) -> str:
    """Each reason once, with the names that share it."""
    names_of: dict[str, list[str]] = {}
    for name, e in refused:
        names_of.setdefault(str(e), []).append(name)
    return " ".join(f"{', '.join(names)}: {reason}." for reason, names in names_of.items())
