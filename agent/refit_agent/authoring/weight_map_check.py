"""An explicit weight map, checked against the model before it ships rather than on a user's machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refit_agent.authoring.build.record import BuildRecord
from refit_agent.authoring.errors import EngineRefused
from refit_agent.errors import ManifestInvalid, RefitError
from refit_agent.plan_header import PlanHeader
from refit_agent.weight_map import Prototype, resolve
from refit_agent.weight_map.explicit import read_explicit
from refit_agent.weight_map.families import generation_of
from refit_agent.weights import OnnxWeights


def require_weight_map(
    weight_map: Mapping[str, Any] | None, record: BuildRecord | None, onnx: str, header: PlanHeader, plan: str
) -> None:
    """Return if the map is well-formed and the model at ``onnx`` has every weight that it names; where the record of
    the build lists what the plan asks for, if each of those has exactly one source.

    Without a record nobody knows the plan's names here: what the map leaves out shows at the first refit.

    Raises:
        EngineRefused: says which names, and why.
        OnnxError: the model cannot be read.
    """
    rtx = header.runtime == "tensorrt-rtx"
    wanted = {w.name: Prototype(w.dtype, w.count) for w in record.weights} if record is not None else {}
    if not wanted and not weight_map:
        return
    try:
        with OnnxWeights(onnx) as weights:
            if wanted:
                resolve(wanted, weights, builder=header.version, rtx=rtx, explicit=weight_map)
                return
            assert weight_map is not None
            unknown = dict.fromkeys(weight_map, Prototype(None, None))
            _, refusals = read_explicit(weight_map, unknown, weights, generation_of(header.version, rtx))
    except (ManifestInvalid, RefitError) as error:
        detail = error.facts.get("detail") if isinstance(error, ManifestInvalid) else str(error).rstrip(".")
        raise EngineRefused(plan=plan, detail=f"its weights do not fit the model: {detail}") from error
    if refusals:
        told = "; ".join(f"{name}: {error}" for name, error in list(refusals.items())[:5])
        rest = f"; and {len(refusals) - 5} more" if len(refusals) > 5 else ""
        raise EngineRefused(plan=plan, detail=f"its weights do not fit the model: {told}{rest}")
