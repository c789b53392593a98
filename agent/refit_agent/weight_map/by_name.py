"""Sources for a plan whose weights are those of a checkpoint under the same names; nothing is computed or guessed.

TensorRT-LLM names every weight of an engine after the model's parameter, and its checkpoints name their tensors
the same way. What it rearranges between the two (quantized weights, joined layers) has another type, count or name
then, and is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from refit_agent.errors import ManifestInvalid, WeightsMismatch, WeightsUncovered
from refit_agent.weight_map.sources import Prototype, WeightSource

if TYPE_CHECKING:
    from refit_agent.weights import WeightRef
    from refit_agent.weights.safetensors import SafetensorsWeights


def resolve_by_name(
    wanted: Mapping[str, Prototype], weights: SafetensorsWeights, explicit: Mapping[str, object] | None = None
) -> dict[str, WeightSource]:
    """One source for every wanted name, in the order of ``wanted``: the tensor of that name.

    ``explicit`` is the manifest's weight map, of which ``{"from": TENSOR}`` alone has a meaning here; its entries
    for names that are not wanted are left alone, since they may be for another rank's plan.

    Raises:
        WeightsUncovered: some names have no tensor; lists every one.
        WeightsMismatch: a tensor has another type or count than the plan asks for.
        ManifestInvalid: the explicit map is malformed.
    """
    given = {name: _source_name(name, entry) for name, entry in (explicit or {}).items()}
    named = {name: given.get(name, name) for name in wanted}
    uncovered = [name for name, tensor in named.items() if tensor not in weights]
    if uncovered:
        strange = [f"The weight map names {given[name]!r}, which is not there." for name in uncovered if name in given]
        detail = strange[0] if strange else "Weights are found by name, and there is no tensor of these."
        names = ", ".join(uncovered)
        raise WeightsUncovered(count=len(uncovered), path=weights.shown, names=names, detail=detail)
    return {name: _source(name, wanted[name], weights[tensor]) for name, tensor in named.items()}


def _source(name: str, prototype: Prototype, ref: WeightRef) -> WeightSource:
    words = f"the tensor {ref.name!r}"
    if prototype.dtype not in (None, ref.dtype):
        raise WeightsMismatch(name=name, detail=f"the plan wants {prototype.dtype}, and {words} is {ref.dtype}")
    if prototype.count not in (None, ref.count):
        detail = f"the plan wants {prototype.count} elements, and {words} has {ref.count}"
        raise WeightsMismatch(name=name, detail=detail)
    return WeightSource(name, "identity", (ref.name,), ref.dtype, ref.count, words, ref.array, (ref.name,))


def _source_name(name: str, entry: object) -> str:
    if not isinstance(entry, Mapping) or list(entry) != ["from"] or not isinstance(entry["from"], str):
        detail = f'the weight map\'s entry {name!r} must be {{"from": the name of a tensor}} for safetensors weights'
        raise ManifestInvalid(path="bundle.json", detail=detail)
    return entry["from"]
