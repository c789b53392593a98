"""Whether selection could ever choose an engine: asked of `selection.select` itself, on machines made for it.

Each of these machines has exactly what the engine needs and nothing else, in every way in which its need can be
met. An entry that stands before the engine on all of them does so wherever the engine fits: a machine that has
more only adds candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import msgspec

from refit_agent.authoring.engine_facts import known_from
from refit_agent.errors import UnknownProfile
from refit_agent.machine import Gpu, InstalledRuntime, Machine, version_tuple
from refit_agent.manifest import App, Engine, FileRef, Manifest, Model
from refit_agent.selection import Selection, select

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "onnxruntime": "onnxruntime"}
_NEWEST_MAJOR = 11
_OLDEST_DRIVER = "1.0"
_ANY_GPU = "of any model"
_FILE = FileRef(path="m", size=0, sha256="0" * 64)
_APP = App(id="a.b", name="a", version="1")


def never_fits(engine: Engine) -> str:
    """Why the engine could not be used even on a machine made for it, in words; "" if it can.

    Each compute capability that the entry names is tried: one that is named for nothing is a mistake as well. Of
    those that "this one and newer" means, one is enough.
    """
    alone = _model([engine])
    fits: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    for machine in _machines(engine):
        capability = machine.gpus[0].compute_capability if machine.gpus else ""
        selection = _select(alone, engine.profile, machine)
        fits[capability] = fits.get(capability, False) or bool(selection.candidates)
        if not selection.candidates:
            reasons.setdefault(capability, selection.refusals[0].reason)
    if all(fits.values()) or (engine.hardware_compatibility == "ampere-plus" and any(fits.values())):
        return ""
    return next(reasons[capability] for capability, fitting in fits.items() if not fitting)


def outranked_by(engines: Sequence[Engine], number: int) -> Engine | None:
    """The entry that stands before ``engines[number]`` on every machine that it fits; None if there is no such one.

    Of several that do so together the first found is given. An engine that fits nowhere gives None.
    """
    engine = engines[number]
    model = _model(engines)
    before: Engine | None = None
    profiles = [engine.profile] if engine.profile is not None else [*model.profiles(), None]
    for machine, profile in product(_machines(engine), profiles):
        try:
            candidates = _select(model, profile, machine).candidates
        except UnknownProfile:
            continue  # none is named, and none is obvious: nobody gets any engine
        if not any(candidate.number == number for candidate in candidates):
            continue
        if candidates[0].number == number:
            return None
        before = before or candidates[0].engine
    return before


def same_conditions(one: Engine, other: Engine) -> bool:
    """Whether selection sees no difference between two entries."""
    return _conditions(one) == _conditions(other)


def _conditions(engine: Engine) -> tuple[object, ...]:
    return (
        engine.runtime,
        engine.built_with,
        engine.min_runtime,
        engine.version_compatible,
        frozenset(engine.os),
        frozenset(engine.compute_capabilities),
        engine.min_compute_capability,
        engine.hardware_compatibility,
        engine.gpu,
        engine.min_driver,
        engine.profile,
        engine.lean_runtime is not None,
        len(engine.ranks),
    )


def _machines(engine: Engine) -> Iterator[Machine]:
    """The machines on which ``engine`` should fit, each with a GPU of the model that it was built on and another."""
    for system, runtime in product(engine.os or ("linux", "windows"), _runtimes(engine)):
        if engine.runtime == "onnxruntime":
            yield Machine(os=system, arch="x86_64", runtimes=(runtime,), no_gpu_reason="none is there")
            continue
        names = dict.fromkeys([engine.gpu or _ANY_GPU, _ANY_GPU])
        for name, capability in product(names, _capabilities(engine)):
            gpus = tuple(
                Gpu(index=index, name=name, uuid=f"GPU-{index}", compute_capability=capability)
                for index in range(len(engine.plans))
            )
            driver = engine.min_driver or _OLDEST_DRIVER
            yield Machine(os=system, arch="x86_64", gpus=gpus, driver=driver, runtimes=(runtime,))


def _capabilities(engine: Engine) -> tuple[str, ...]:
    if engine.hardware_compatibility == "ampere-plus":
        return known_from(engine.min_compute_capability or "8.0")
    return engine.compute_capabilities


def _runtimes(engine: Engine) -> Iterator[InstalledRuntime]:
    """Any of these is enough: the one that built it, and for a version-compatible plan lean ones from then on, the
    newest of each major version, since a new one may drop plans that an old one loads."""
    yield InstalledRuntime(module=_MODULES[engine.runtime], version=engine.min_runtime or engine.built_with)
    if engine.version_compatible:
        yield InstalledRuntime(module="tensorrt_lean", version=engine.built_with)
        major = version_tuple(engine.built_with)[0]
        for newer in range(major, max(major, _NEWEST_MAJOR) + 2):
            yield InstalledRuntime(module="tensorrt_lean", version=f"{newer}.999.999")


def _select(model: Model, profile: str | None, machine: Machine) -> Selection:
    return select(Manifest(schema=1, app=_APP, models=(model,)), model, profile, machine)


def _model(engines: Sequence[Engine]) -> Model:
    return msgspec.structs.replace(Model(name="m", onnx=_FILE, engines=()), engines=tuple(engines))
