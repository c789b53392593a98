"""What a bundle ships, against what it would ship with the weights in every plan.

    full       the plan with its weights, as it lies in the cache of a user's machine
    stripped   the plan without them, as it was built
    shipped    that plan as it lies in the bundle, compressed

A plan built from zeroed weights has the size of the full one. One that was built with STRIP_PLAN does not tell what
it lacks: full is then about its size and that of the model's weights, in the type in which it computes.
"""

from __future__ import annotations

import os

import msgspec

from refit_agent.authoring.model_in_bundle import float_bytes
from refit_agent.authoring.overview import is_elsewhere
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.errors import BundleError
from refit_agent.manifest import Engine, Model
from refit_agent.signature import SIGNATURE_NAME

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
#: Bytes of a weight in a plan of this precision, where that is less than in the model.
_PLAN_BYTES = {"fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5, "fp4": 0.5}


class EngineSize(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one engine; ``estimated`` if ``full`` is not known exactly. ``full`` of the CPU target is the model."""

    path: str
    runtime: str
    full: int
    estimated: bool
    stripped: int
    shipped: int

    @property
    def saved(self) -> float:
        """The share of the full plan that need not be shipped, 0 to 1."""
        return 1 - self.shipped / self.full if self.full else 0.0


class ModelSize(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one model: ``weights`` are the files that its weights are in, ``golden`` its golden data."""

    name: str
    weights: int
    golden: int
    engines: tuple[EngineSize, ...]


class BundleSize(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the whole bundle.

    ``shipped``: every file once, the manifest and its signature too; ``fetched``: what is elsewhere instead.
    ``full_plans``: a full plan for every entry, and the ONNX file of models that have a CPU target.
    ``full_plans_and_onnx``: the same with the ONNX file of every model.
    """

    root: str
    models: tuple[ModelSize, ...]
    shipped: int
    fetched: int
    full_plans: int
    full_plans_and_onnx: int
    estimated: bool


def bundle_size(root: str | os.PathLike[str]) -> BundleSize:
    """The sizes of the bundle or draft in the folder ``root``, from its manifest and, for estimates, its ONNX files.

    Raises:
        BundleError: there is no bundle, or its manifest is not sound.
    """
    bundle = Bundle.open(root, draft=True)
    models = tuple(_model_size(bundle, model) for model in bundle.manifest.models)
    files = {ref.path: ref for model in bundle.manifest.models for ref in model.files()}
    elsewhere = {path for path, ref in files.items() if is_elsewhere(bundle, ref)}
    own = sum(_size(os.path.join(bundle.root, name)) for name in (MANIFEST_NAME, SIGNATURE_NAME))
    plans = sum(e.full for model in models for e in model.engines if e.runtime != "onnxruntime")
    on_cpu = sum(m.weights for m in models if any(e.runtime == "onnxruntime" for e in m.engines))
    return BundleSize(
        root=bundle.root,
        models=models,
        shipped=own + sum(ref.size for path, ref in files.items() if path not in elsewhere),
        fetched=sum(files[path].size for path in elsewhere),
        full_plans=plans + on_cpu,
        full_plans_and_onnx=plans + sum(model.weights for model in models),
        estimated=any(e.estimated for model in models for e in model.engines),
    )


def _model_size(bundle: Bundle, model: Model) -> ModelSize:
    weights = sum(ref.size for ref in model.weight_files())
    golden = {ref.path: ref.size for g in model.golden for ref in (*g.inputs.values(), *g.outputs.values())}
    by_type: dict[str, int] | None = None
    engines = []
    for engine in model.engines:
        stripped = sum(plan.plan_size for plan in engine.plans)
        full, estimated = stripped, False
        if engine.runtime == "onnxruntime":
            full = weights  # the finished model is the original one, but for the optimised graph
        elif engine.strip == "plan":
            by_type = _by_type(bundle, model) if by_type is None else by_type
            full, estimated = full + _plan_weights(by_type, engine, weights), True
        engines.append(
            EngineSize(
                path=engine.path,
                runtime=engine.runtime,
                full=full,
                estimated=estimated,
                stripped=stripped,
                shipped=sum(
                    file.size for file in (*engine.plans, engine.lean_runtime, engine.config) if file is not None
                ),
            )
        )
    return ModelSize(name=model.name, weights=weights, golden=sum(golden.values()), engines=tuple(engines))


def _by_type(bundle: Bundle, model: Model) -> dict[str, int]:
    """Bytes of the model's weights by type; {} where the file cannot be read, as one that is fetched later."""
    try:
        return float_bytes(bundle.locate(model.require_onnx()))
    except BundleError:
        return {}


def _plan_weights(by_type: dict[str, int], engine: Engine, weights: int) -> int:
    """Bytes that the weights take in a full plan, never more than in the model."""
    if not by_type:
        return weights
    parts = engine.precision.lower().replace(",", "+").split("+")
    least = min((_PLAN_BYTES.get(part.strip(), 8.0) for part in parts), default=8.0)
    return round(sum(size * min(1.0, least / _BYTES[dtype]) for dtype, size in by_type.items()))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
