"""What a build leaves behind: a record for each plan, and everything moved into the output folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from refit_agent.authoring.build.explicit_map import WeightMap
from refit_agent.authoring.build.messages import Built
from refit_agent.authoring.build.model_checks import precision_name
from refit_agent.authoring.build.options import BuilderVersion, BuildOptions
from refit_agent.authoring.build.prepared_model import Prepared, Source, model_files, recorded
from refit_agent.authoring.build.record import BuildRecord, RecordedFile, record_path, weights_digest, write_record
from refit_agent.authoring.build.shapes import Profile
from refit_agent.digest import fsync_folder
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.weights import OnnxWeights

#: Warnings of one build that are kept; TensorRT may say one for every layer.
_MOST_NOTES = 20


class BuiltPlan(NamedTuple):
    """A plan and its record, in the output folder."""

    path: str
    record_path: str
    record: BuildRecord


class Setting(NamedTuple):
    """What one call works with."""

    machine: Machine
    builder: BuilderVersion
    installed: InstalledRuntime
    gpu: Gpu
    options: BuildOptions
    deadline_s: float
    cancelled: Callable[[], bool]


class Draft(NamedTuple):
    """A plan in the staging folder."""

    name: str
    path: str
    profile: Profile
    built: Built
    weights: WeightMap | None


def publish(
    setting: Setting, source: Source, prepared: Prepared, drafts: list[Draft], staging: str, folder: str
) -> tuple[BuiltPlan, ...]:
    """Move everything into the folder: data first and records last, so that a record never speaks of what is not there."""
    files = model_files(prepared.path)
    hashed = tuple(recorded(file, staging if prepared.fresh else folder) for file in files)
    with OnnxWeights(prepared.path) as weights:
        precision = precision_name(setting.options, setting.builder, weights)
    moves = [(file, os.path.join(folder, os.path.basename(file))) for file in reversed(files) if prepared.fresh]
    plans = []
    for draft in drafts:
        record = _record(setting, source, prepared, hashed, draft, precision)
        write_record(record_path(draft.path), record)
        target = os.path.join(folder, draft.name)
        plans.append(BuiltPlan(target, record_path(target), record))
    moves += [(draft.path, plan.path) for draft, plan in zip(drafts, plans, strict=True)]
    moves += [(record_path(draft.path), plan.record_path) for draft, plan in zip(drafts, plans, strict=True)]
    for staged, target in moves:
        os.replace(staged, target)
    fsync_folder(folder)
    return tuple(plans)


def _record(
    setting: Setting,
    source: Source,
    prepared: Prepared,
    hashed: tuple[RecordedFile, ...],
    draft: Draft,
    precision: str,
) -> BuildRecord:
    options, gpu, built, mapped = setting.options, setting.gpu, draft.built, draft.weights
    # A TensorRT-RTX plan with no compute capability set runs on every GPU that TensorRT-RTX supports, which
    # are Ampere and later (the library's own words).
    compatibility = "ampere-plus" if setting.builder.kind == "tensorrt-rtx" else options.hardware_compatibility
    ampere = compatibility == "ampere-plus"
    plan = RecordedFile(path=draft.name, size=built.size, sha256=built.sha256)
    assert options.strip is not None
    return BuildRecord(
        plan=plan,
        onnx=hashed[0],
        external=hashed[1:],
        source=source.files[0],
        source_external=source.files[1:],
        canonical=prepared.canonical,
        runtime=setting.builder.kind,
        built_with=".".join(map(str, built.version)),
        version_compatible=options.version_compatible,
        host_code=options.version_compatible and not options.exclude_lean_runtime,
        os=("windows",) if setting.machine.os == "windows" else ("linux",),
        arch=setting.machine.arch,
        compute_capabilities=() if ampere else (gpu.compute_capability,),
        min_compute_capability="8.0" if ampere else None,
        hardware_compatibility=compatibility,
        gpu=gpu.name,
        driver=setting.machine.driver,
        profile=draft.profile.name,
        precision=precision,
        strip=options.strip,
        refit=options.refit or "any",
        refittable=options.refit is not None,
        weights_sha256=weights_digest(hashed[0], hashed[1:]) if options.refit == "identical" else None,
        weight_map=None if mapped is None else mapped.entries,
        weights=built.weights or (),
        weights_by_rule=() if mapped is None else mapped.by_rule,
        plan_size=built.size,
        plan_sha256=built.sha256,
        include_refit=options.include_refit,
        builder=f"{setting.installed.module} {setting.installed.version}",
        options=msgspec.structs.replace(options, profiles=(draft.profile,)),
        seconds=built.seconds,
        notes=built.notes[:_MOST_NOTES],
        model_notes=prepared.notes,
    )
