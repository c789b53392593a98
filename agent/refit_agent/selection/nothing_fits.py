"""The error for a selection without a candidate: what is lacking, and who can help."""

from __future__ import annotations

from refit_agent.errors import NoMatchingEngine, RuntimeMissing, SelectionError
from refit_agent.machine import Machine
from refit_agent.manifest import Manifest, Model
from refit_agent.selection.records import Selection, no_match_detail


def nothing_fits(
    manifest: Manifest, model: Model, selection: Selection, machine: Machine, target: str | None
) -> SelectionError:
    """The error for ``selection``, which `select` made of the other arguments and which has no candidate."""
    detail = no_match_detail(selection)
    for refusal in selection.refusals:
        if refusal.code == "runtime-missing" and model.engines[refusal.number].runtime == "onnxruntime":
            return RuntimeMissing(model=model.name, runtime="ONNX Runtime", extra="cpu", detail=detail)
    app, hint = f"'{manifest.app.name} {manifest.app.version}'", ""
    if target in ("gpu", "cuda") and not machine.gpus and any(r.code == "other-target" for r in selection.refusals):
        # No engine that the app's vendor could add would run on a GPU that is not there.
        hint = f"The bundle has an engine for the CPU: leave the target {target} out."
    return NoMatchingEngine(count=len(model.engines), model=model.name, app=app, detail=detail, hint=hint)
