"""Where a new engine stands among the others of its model, and whether it will ever be chosen there."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from refit_agent.authoring.errors import EngineRefused
from refit_agent.authoring.places import ENGINES, Places, file_word
from refit_agent.authoring.selectable import never_fits, outranked_by, same_conditions
from refit_agent.manifest import Engine, Manifest, Model


class Placed(NamedTuple):
    """The model with the engine in it, the engine, the entries whose place it took, and those that it now stands
    before on every machine that they fit."""

    model: Model
    engine: Engine
    replaced: tuple[Engine, ...]
    hidden: tuple[Engine, ...]


def place_engine(model: Model, engine: Engine, plan: str, *, replace: bool = False, first: bool = False) -> Placed:
    """Put the entry into the model: behind the others, or before them with ``first``. Of equally good engines
    selection takes the one that stands first. ``plan`` is for messages.

    Raises:
        EngineRefused: no machine could take it, or another entry would be taken on every machine that could.
    """
    reason = never_fits(engine)
    if reason:
        raise EngineRefused(plan=plan, detail=f"no machine could use it: {reason}")
    same = [other for other in model.engines if same_conditions(other, engine)]
    if same and not replace:
        detail = f"selection sees no difference between it and {same[0].path}"
        if same[0].precision != engine.precision:
            detail += f" ({same[0].precision}: precision is for people alone)"
        hint = "Replace that one with --replace, or give the two different profiles."
        raise EngineRefused(plan=plan, detail=detail, hint=hint)
    kept = [other for other in model.engines if other not in same]
    number = model.engines.index(same[0]) if same else 0 if first else len(kept)
    kept.insert(number, engine)
    before = outranked_by(kept, number)
    if before is not None:
        detail = f"{before.path} would be taken in its place on every machine that it fits"
        raise EngineRefused(
            plan=plan, detail=detail, hint="--first puts it before the others, if it is to be preferred."
        )
    hidden = [other for other in _hidden(kept) if other not in _hidden(model.engines)]
    return Placed(msgspec.structs.replace(model, engines=tuple(kept)), engine, tuple(same), tuple(hidden))


def _hidden(engines: tuple[Engine, ...] | list[Engine]) -> list[Engine]:
    return [engine for number, engine in enumerate(engines) if outranked_by(engines, number) is not None]


def with_engine(manifest: Manifest, placed: Placed) -> Manifest:
    """The manifest with the model as it is now."""
    models = [placed.model if model.name == placed.model.name else model for model in manifest.models]
    return msgspec.structs.replace(manifest, models=tuple(models))


def engine_path(places: Places, model: Model, engine: Engine, ending: str) -> str:
    """A free path that tells people what the engine is for: "engines/denoiser/sm90-fp16-linux.plan.zst"."""
    words = [_place_word(engine), file_word(engine.precision)]
    if engine.profile is not None:
        words.append(file_word(engine.profile))
    if len(engine.os) == 1:
        words.append(engine.os[0])
    return places.free(f"{ENGINES}/{model.name}/{'-'.join(words)}{ending}")


def _place_word(engine: Engine) -> str:
    if engine.runtime == "onnxruntime":
        return "cpu"
    if engine.hardware_compatibility == "ampere-plus":
        word = "ampere-plus"
    else:
        named = ["sm" + capability.replace(".", "") for capability in engine.compute_capabilities]
        word = "-".join(named) if len(named) < 4 else f"{named[0]}-and-{len(named) - 1}-more"
    return f"rtx-{word}" if engine.runtime == "tensorrt-rtx" else word
