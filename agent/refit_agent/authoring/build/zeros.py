"""Building from zeros: the copy that the parser reads, and what must not have become of the zeros.

In an engine that was built with REFIT from zeroed weights nothing may depend on them but what a refit
replaces. TensorRT does not promise that: it could fold a weight into another one, leave out a
multiplication by zero, or bake weights into a plugin. Every weight that was zeroed, and is used, must
therefore be behind one of the weights that the engine asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from refit_agent.authoring.errors import ModelUnsupported, WeightsLost
from refit_agent.weight_map.traversal import walk
from refit_agent.weights import OnnxWeights, WeightRef

_CHUNK = 1 << 24
_SHOWN = 8
_HALF = {"float16": np.float16}


def zeroed_model(model: str, folder: str) -> str:
    """Write a zeroed copy of ``model``, with its external data, into the new folder ``folder``; gives its path.

    Raises:
        ModelUnsupported: a BatchNormalization would divide zero by zero.
        AuthoringError, OnnxError, OSError
    """
    from refit_agent.authoring.stripping import zeroed_copy

    with OnnxWeights(model) as weights:
        _require_divisors(weights)
    os.mkdir(folder)
    target = os.path.join(folder, os.path.basename(model))
    zeroed_copy(model, target)
    return target


def _require_divisors(weights: OnnxWeights) -> None:
    """A folded BatchNormalization divides by the root of variance plus epsilon, which with no variance is epsilon's."""
    for norm in weights.batch_norms:
        held = weights.definitions(norm.var)
        kind = _HALF.get(held[0].dtype if held else "", np.float32)
        if not kind(norm.epsilon) > 0:
            detail = (
                f"the epsilon of BatchNormalization {norm.node or norm.output!r} is {norm.epsilon:g}, so a variance of "
                "zero, as in a build from zeros, would be divided by: build the canonical form, or with --strip plan"
            )
            raise ModelUnsupported(path=str(weights.path), detail=detail)


def require_all_covered(model: str, zeroed: str, covered: Iterable[str]) -> None:
    """Check that every weight which differs between ``model`` and its zeroed copy is among ``covered`` (keys), or unused.

    Raises:
        WeightsLost: names those that are not: the engine would compute with zeros in their place.
    """
    behind = set(covered)
    with OnnxWeights(model) as true, OnnxWeights(zeroed) as zero:
        walked = walk(true.model, str(true.path))
        outputs = set(true.model.graph.outputs)
        lost = []
        for key in true:
            ref = true[key]
            if key in behind or ref.kind == "sparse" or ref.dtype == "string":
                continue
            used = key in walked.uses or ref.name in outputs
            if used and not _equal(ref, zero.get(key)):
                lost.append(key)
    if lost:
        shown = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        raise WeightsLost(path=model, count=len(lost), names=shown)


def _equal(one: WeightRef, other: WeightRef | None) -> bool:
    if other is None:
        return False
    a, b = (np.ascontiguousarray(ref.array()).reshape(-1).view(np.uint8) for ref in (one, other))
    if len(a) != len(b):
        return False
    return all(np.array_equal(a[at : at + _CHUNK], b[at : at + _CHUNK]) for at in range(0, len(a), _CHUNK))
