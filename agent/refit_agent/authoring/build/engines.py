"""`build_engines`: an ONNX file goes in, weight-free plans come out, each with a record of its build.

hash the model -> canonical form -> (zeroed copy) -> for each profile: build, list, map its weights
     -> weights into the engine's order -> records -> everything into the folder, the records last
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import msgspec

from refit_agent.authoring.build import zeros
from refit_agent.authoring.build.builders import find_builder, find_gpu
from refit_agent.authoring.build.explicit_map import WeightMap, make_weight_map
from refit_agent.authoring.build.launch import run_builder
from refit_agent.authoring.build.messages import BuildJob, Built
from refit_agent.authoring.build.meter import BuildMeter, OnProgress
from refit_agent.authoring.build.model_checks import refittable_names, require_buildable
from refit_agent.authoring.build.options import BuilderKind, BuilderVersion, BuildOptions, check_options, settle
from refit_agent.authoring.build.prepared_model import (
    Prepared,
    Source,
    model_files,
    prepare,
    read_source,
    require_unchanged,
)
from refit_agent.authoring.build.publish import BuiltPlan, Draft, Setting, publish
from refit_agent.authoring.build.record import record_path
from refit_agent.authoring.build.shapes import Profile
from refit_agent.authoring.change import bundle_lock
from refit_agent.authoring.errors import AuthoringError, BuildOptionsInvalid, BundleUnwritable, OutputInTheWay
from refit_agent.authoring.new_folders import new_folders
from refit_agent.authoring.staging import Staging, remove_abandoned
from refit_agent.errors import Cancelled
from refit_agent.gpu.detect import detect
from refit_agent.manifest import path_fault
from refit_agent.weight_map import Prototype
from refit_agent.weights import OnnxWeights

DEFAULT_DEADLINE_S = 3600.0
_STAGING_PREFIX = ".refit-agent-build-"


def build_engines(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    name: str = "",
    canonical: bool = True,
    kind: BuilderKind = "tensorrt",
    version: str = "",
    device: int | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    force: bool = False,
    progress: OnProgress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[BuiltPlan, ...]:
    """Build one plan for each profile of ``options`` from the ONNX file ``model``, in processes of their own.

    ``folder``, which is made, receives ``NAME.plan`` or ``NAME.PROFILE.plan`` with its record ``NAME.plan.json``
    and, if ``canonical``, the model to ship: ``NAME.onnx`` with ``NAME.onnx.data``. All of it or, after an
    error, nothing: files of these names are as they were before. The model itself is never changed.

    Args:
        name: NAME above; by default that of the model's file.
        canonical: build from the canonical form, or else from the file as it is.
        kind: which of NVIDIA's products builds.
        version: leading numbers of the builder's version, where several are installed.
        device: CUDA ordinal of the GPU to build on.
        deadline_s: seconds that one build may take.
        force: replace files of these names.
        progress: gets the name of the plan that is built, and a step.
        cancelled: asked several times a second; True stops the build.

    Raises:
        BuildOptionsInvalid, BuilderMissing, BuilderLacks: see `options` and `builders`.
        DeviceFailed: no GPU.
        BuildFailed, BuilderCrashed, BuilderTimeout: in the builder.
        WeightsUncovered, WeightsMismatch, WeightsAmbiguous: the plan asks for weights that the model does not explain.
        WeightsLost: see `zeros`.
        OutputInTheWay: files of these names are there, and not ``force``.
        BundleError: the model cannot be used.
        BundleBusy: another command has held the folder's lock for too long.
        Cancelled
    """
    options = options or BuildOptions()
    check_options(options)
    machine = detect()
    installed = find_builder(machine, kind, version)
    builder = BuilderVersion(kind, installed.version)
    settled = settle(options, builder)
    setting = Setting(machine, builder, installed, find_gpu(machine, device), settled, deadline_s, cancelled)
    target = os.path.abspath(os.fspath(folder))
    stem = name or os.path.splitext(os.path.basename(os.fspath(model)))[0]
    profiles = settled.profiles or (Profile(),)
    names = [_plan_name(stem, profile) for profile in profiles]
    _require_free(target, names, force=force)
    meter = BuildMeter(progress, names)
    try:
        with _staging_folder(target) as staging:
            meter("hash")
            source = read_source(os.fspath(model))
            with OnnxWeights(source.path) as weights:
                require_buildable(weights, settled)
            meter("canonicalize")
            shapes = {i: shape.opt for i, shape in profiles[0].shapes.items()}
            prepared = prepare(source, target, staging, stem, shapes, canonical=canonical, force=force)
            drafts = _build_all(setting, prepared, source, staging, list(zip(names, profiles, strict=True)), meter)
            meter("publish")
            _reorder(prepared, drafts)
            require_unchanged(source)
            return publish(setting, source, prepared, drafts, staging, target)
    except OSError as error:
        raise AuthoringError(detail=f"The build could not be written: {error}.") from error


# ---------------------------------------------------------------- the folder


def _plan_name(stem: str, profile: Profile) -> str:
    name = f"{stem}.plan" if profile.name is None else f"{stem}.{profile.name}.plan"
    fault = "holds a slash" if "/" in name else path_fault(name)
    if fault:
        raise BuildOptionsInvalid(detail=f"the plan's name {name!r} {fault}")
    return name


def _require_free(folder: str, names: list[str], *, force: bool) -> None:
    for name in names:
        for path in (os.path.join(folder, name), record_path(os.path.join(folder, name))):
            if os.path.exists(path) and not force:
                raise OutputInTheWay(path=path, detail="")


@contextlib.contextmanager
def _staging_folder(folder: str) -> Iterator[str]:
    """A folder in ``folder``, on its disk; gone afterwards with all that is still in it, and so are the folders that
    were made for it, if they are empty. What killed builds left there goes first."""
    with new_folders(folder):
        try:
            with bundle_lock(folder):
                remove_abandoned(folder, _STAGING_PREFIX)
                staging = Staging(folder, _STAGING_PREFIX)
        except BundleUnwritable:  # a file system without locks
            staging = Staging(folder, _STAGING_PREFIX)
        try:
            yield staging.path
        finally:
            staging.remove()


# ---------------------------------------------------------------- the builds


def _build_all(
    setting: Setting,
    prepared: Prepared,
    source: Source,
    staging: str,
    wishes: list[tuple[str, Profile]],
    meter: BuildMeter,
) -> list[Draft]:
    parsed = prepared.path
    if setting.options.strip == "zeros":
        meter("zero")
        parsed = zeros.zeroed_model(prepared.path, os.path.join(staging, "zeros"))
    with OnnxWeights(prepared.path) as weights:
        refittable = refittable_names(weights, setting.options.refittable)
        drafts = []
        for name, profile in wishes:
            if setting.cancelled():
                raise Cancelled()
            meter.next(name)
            job = BuildJob(
                kind=setting.builder.kind,
                module=setting.installed.module,
                module_folder=setting.installed.folder,
                module_version=setting.installed.version,
                gpu=setting.gpu.uuid,
                onnx=parsed,
                model=source.path,
                plan=os.path.join(staging, name),
                options=msgspec.structs.replace(setting.options, profiles=(profile,)),
                profile=profile,
                refittable=refittable,
            )
            log = os.path.join(staging, f"{name}.log")
            built = run_builder(job, log, setting.deadline_s, lambda step: meter(step.phase), setting.cancelled)
            meter("map")
            mapped = _map_weights(setting, built, weights)
            if mapped is not None and setting.options.strip == "zeros":
                covered = {key for weight in mapped.sources.values() for key in weight.sources}
                zeros.require_all_covered(prepared.path, parsed, covered)
            drafts.append(Draft(name, job.plan, profile, built, mapped))
    return drafts


def _map_weights(setting: Setting, built: Built, weights: OnnxWeights) -> WeightMap | None:
    if built.weights is None:
        return None
    wanted = {weight.name: Prototype(weight.dtype, weight.count) for weight in built.weights}
    _require_wished(setting.options, weights, wanted)
    return make_weight_map(wanted, weights, builder=built.version, rtx=setting.builder.kind == "tensorrt-rtx")


def _require_wished(options: BuildOptions, weights: OnnxWeights, wanted: dict[str, Prototype]) -> None:
    """Each --refittable must have come to something: the builder may have folded away what was marked."""
    for wish in refittable_names(weights, options.refittable):
        if wanted.keys().isdisjoint(wish.names):
            detail = f"the finished engine asks for none of the weights that --refittable {wish.pattern!r} means"
            raise BuildOptionsInvalid(detail=detail)


def _reorder(prepared: Prepared, drafts: list[Draft]) -> None:
    """Bring the weights of a model that was made just now into the order in which the first plan asks for them."""
    mapped = drafts[0].weights
    if not prepared.fresh or mapped is None or len(model_files(prepared.path)) == 1:
        return
    from refit_agent.authoring.canonical import reorder

    keys = (key for weight in mapped.sources.values() for key in weight.sources)
    reorder(prepared.path, list(dict.fromkeys(keys)))
