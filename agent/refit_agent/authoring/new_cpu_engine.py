"""Put the CPU target into a bundle: made from the model that is in it, for machines without an NVIDIA GPU."""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec

from refit_agent.authoring.change import BundleChange
from refit_agent.authoring.compress import ENDINGS, ShippedAs, compress_plan
from refit_agent.authoring.cpu_plan import CpuPlan, make_cpu_plan
from refit_agent.authoring.errors import AuthoringMissing, ModelUnsupported
from refit_agent.authoring.model_in_bundle import model_precision, require_sound_model
from refit_agent.authoring.new_engine import AddedEngine
from refit_agent.authoring.onnx_needs import OLDEST
from refit_agent.authoring.place_engine import Placed, engine_path, place_engine, with_engine
from refit_agent.authoring.places import Places
from refit_agent.authoring.steps import Steps
from refit_agent.authoring.tolerances import require_tolerance, tolerance_for
from refit_agent.bundle import Bundle
from refit_agent.errors import RefitAgentError
from refit_agent.machine import version_tuple
from refit_agent.manifest import Engine, Manifest
from refit_agent.progress import ProgressCallback
from refit_agent.runtimes.importing import import_onnxruntime


class AddedCpuEngine(NamedTuple):
    """What was added, and what was made: see `CpuPlan`."""

    added: AddedEngine
    made: CpuPlan


def add_cpu_engine(
    root: str | os.PathLike[str],
    model: str,
    *,
    profile: str | None = None,
    precision: str | None = None,
    tolerance: float | None = None,
    compression: ShippedAs = "zstd",
    path: str | None = None,
    replace: bool = False,
    first: bool = False,
    progress: ProgressCallback | None = None,
) -> AddedCpuEngine:
    """Make the CPU target's plan of ``model`` with the ONNX Runtime that is installed here, and add it.

    It is for ONNX Runtime from 1.18 on where that can be told from its graph, else for the version that it was made
    with and newer ones (`CpuPlan.why_newer`). ``precision`` is by default that of the model's weights,
    and the tolerance that of the precision. The other arguments are those of `add_engine`.

    Raises:
        AuthoringMissing: ONNX Runtime is not installed.
        ModelUnsupported, OnnxError, PlanInvalid: no CPU plan can be made of the model.
        EngineRefused, UnknownModel, NotAnOnnxModel, NameTaken, BundleUnwritable, BundleError
    """
    require_tolerance(tolerance)
    version = _onnxruntime_version()
    with BundleChange(root) as change:
        target = change.bundle.model(model)
        size = sum(ref.size for ref in target.weight_files())
        steps = Steps(progress, look=0.3, make=0.9, compress=1.0)
        steps.begin("look", "reading the model", size)
        onnx = require_sound_model(change.bundle, target, steps.add)
        draft = Engine(
            path="x",
            size=0,
            sha256="0" * 64,
            plan_size=0,
            runtime="onnxruntime",
            built_with=version,
            # What most plans get; what this one gets is known when it is made, and asked again then.
            min_runtime=OLDEST,
            compression=compression,
            profile=profile,
            precision=precision or model_precision(onnx),
        )
        draft = msgspec.structs.replace(draft, tolerance=tolerance or tolerance_for(draft.precision))
        name = f"the CPU engine of {model!r}"
        place_engine(target, draft, name, replace=replace, first=first)
        if path is not None:
            Places(change.root, change.bundle.manifest).put("", path)
        folder = change.folder()
        steps.begin("make", "making the CPU plan")
        graph = os.path.join(folder, "graph")
        made = _make(onnx, graph)
        steps.begin("compress", "compressing the plan")
        plan = os.path.join(folder, "plan")
        shipped = compress_plan(graph, plan, compression)
        placed: Placed | None = None

        def edit(manifest: Manifest, places: Places) -> Manifest:
            nonlocal placed
            now = Bundle(change.root, manifest).model(model)
            if now.weights_digest() != target.weights_digest():
                raise ModelUnsupported(path=onnx, detail="another command has replaced the model meanwhile")
            at = path or engine_path(places, now, draft, f".onnx{ENDINGS[compression]}")
            entry = msgspec.structs.replace(
                draft,
                path=places.put(plan, at),
                size=shipped.size,
                sha256=shipped.sha256,
                plan_size=shipped.plan_size,
                plan_sha256=shipped.plan_sha256,
                min_runtime=made.min_runtime,
            )
            placed = place_engine(now, entry, name, replace=replace, first=first)
            return with_engine(manifest, placed)

        change.commit(edit)
    assert placed is not None
    return AddedCpuEngine(AddedEngine(placed.engine, placed.replaced, placed.hidden), made)


def _onnxruntime_version() -> str:
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise AuthoringMissing(library="ONNX Runtime", detail=str(error)) from error
    return ".".join(map(str, version_tuple(onnxruntime.__version__)[:4]))


def _make(onnx: str, graph: str) -> CpuPlan:
    try:
        return make_cpu_plan(onnx, graph)
    except (RefitAgentError, OSError):
        raise
    except Exception as error:  # ONNX Runtime's own, which have no common base
        detail = f"ONNX Runtime cannot take it: {' '.join(str(error).split())}"
        raise ModelUnsupported(path=onnx, detail=detail) from error
