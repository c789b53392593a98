"""What has to be known of a plan, from where, and what cannot be true of it.

The plan's header tells runtime, builder and size; a build's record tells the rest; otherwise whoever adds the
plan has to say it. What contradicts another source, or what no builder can have built, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from refit_agent.authoring.build.record import BuildRecord
from refit_agent.authoring.errors import EngineRefused
from refit_agent.errors import SettingInvalid
from refit_agent.machine import version_tuple
from refit_agent.manifest import ComputeCapability, HardwareCompatibility, Version
from refit_agent.plan_header import PlanHeader

#: developer.nvidia.com/cuda-gpus and cuda-legacy-gpus, from Maxwell on; 8.8 and 10.1 from nvcc's and TensorRT's own
#: lists. Newer ones than the newest here are let through.
_COMPUTE_CAPABILITIES = [
    "5.0",
    "5.2",
    "5.3",
    "6.0",
    "6.1",
    "6.2",
    "7.0",
    "7.2",
    "7.5",
    "8.0",
    "8.6",
    "8.7",
    "8.8",
    "8.9",
    "9.0",
    "10.0",
    "10.1",
    "10.3",
    "11.0",
    "12.0",
    "12.1",
]
_AMPERE = (8, 0)


_FORMS = {
    "compute_capabilities": "a compute capability, two numbers with a dot such as 8.9",
    "min_compute_capability": "a compute capability, two numbers with a dot such as 8.9",
    "min_driver": "a driver's version, numbers with dots such as 525.60.13",
}


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a plan; None: nothing. The fields are those of `manifest.Engine`.

    ``lean_runtime`` is the path of a lean runtime library that is to go into the bundle with it.
    """

    os: tuple[Literal["linux", "windows"], ...] | None = None
    compute_capabilities: tuple[ComputeCapability, ...] | None = None
    min_compute_capability: ComputeCapability | None = None
    hardware_compatibility: HardwareCompatibility | None = None
    gpu: str | None = None
    min_driver: Version | None = None
    version_compatible: bool | None = None
    profile: str | None = None
    precision: str | None = None
    strip: Literal["plan", "zeros", "none"] | None = None
    refit: Literal["identical", "any", "individual"] | None = None
    weight_map: dict[str, dict[str, Any]] | None = None
    tolerance: float | None = None
    include_refit: bool | None = None
    host_code: bool | None = None
    lean_runtime: str | None = None


def checked_facts(**fields: object) -> EngineFacts:
    """`EngineFacts` of these fields, each of its form. Raises SettingInvalid, which names the field."""
    given = {name: value for name, value in fields.items() if value is not None}
    for name, value in given.items():
        try:
            msgspec.convert({name: value}, EngineFacts)
        except msgspec.ValidationError as error:
            wanted = _FORMS.get(name, f"what it should be: {error}")
            raise SettingInvalid(
                name=name.replace("_", " "), value=_shown(value), wanted=wanted, hint="Correct it."
            ) from error
    return msgspec.convert(given, EngineFacts)


def with_record(facts: EngineFacts, record: BuildRecord, plan: str) -> EngineFacts:
    """The facts, completed by what the plan's build recorded. Raises EngineRefused if they contradict it."""
    merged: dict[str, Any] = {}
    for name in EngineFacts.__struct_fields__:
        said, recorded = getattr(facts, name), getattr(record, name, None)
        if said is None or name == "precision":  # a word for people
            merged[name] = recorded if said is None else said
        elif recorded is None or said == recorded:
            merged[name] = said
        else:
            detail = f"{name} is said to be {_shown(said)}, and the record of its build says {_shown(recorded)}"
            raise EngineRefused(plan=plan, detail=detail)
    return EngineFacts(**merged)


def settled(facts: EngineFacts, header: PlanHeader) -> EngineFacts:
    """The facts with what follows from the header and from each other."""
    changes: dict[str, Any] = {}
    if facts.hardware_compatibility is None:
        changes["hardware_compatibility"] = "none" if facts.min_compute_capability is None else "ampere-plus"
    if header.runtime == "tensorrt-rtx" and facts.version_compatible is None:
        changes["version_compatible"] = False  # only TensorRT has such plans
    if _before_10(header):
        # There is no STRIP_PLAN, and one kind of refit alone.
        changes |= {"strip": facts.strip or "zeros", "refit": facts.refit or "any"}
    if facts.strip == "none" and facts.refit is None:
        changes["refit"] = "any"
    return msgspec.structs.replace(facts, **changes)


def missing_facts(facts: EngineFacts) -> tuple[str, ...]:
    """The names of what must still be said of the plan, of settled facts."""
    wanted = ["os", "compute_capabilities", "version_compatible", "precision", "strip", "refit"]
    if facts.min_compute_capability is not None:
        wanted.remove("compute_capabilities")
    return tuple(name for name in wanted if getattr(facts, name) in (None, ()))


def require_possible(facts: EngineFacts, header: PlanHeader, plan: str) -> None:
    """Raise EngineRefused if settled facts contradict each other or the header."""
    for detail in (*_place_faults(facts, header), *_kind_faults(facts, header)):
        raise EngineRefused(plan=plan, detail=detail)


def _place_faults(facts: EngineFacts, header: PlanHeader) -> Iterator[str]:
    named = (*(facts.compute_capabilities or ()), *filter(None, [facts.min_compute_capability]))
    for capability in named:
        if capability not in _COMPUTE_CAPABILITIES and not _is_newer(capability):
            yield f"no GPU has the compute capability {capability}; there are {', '.join(_COMPUTE_CAPABILITIES)}"
    if facts.hardware_compatibility == "ampere-plus":
        least = facts.min_compute_capability
        if least is None:
            yield "a plan for Ampere and later must give the least compute capability that it was built for"
        elif version_tuple(least) < _AMPERE:
            yield f"a plan for Ampere and later begins with compute capability 8.0, not {least}"
        if facts.compute_capabilities:
            yield "a plan for Ampere and later has a least compute capability, and no list of them"
    elif facts.min_compute_capability is not None:
        yield "only a plan for Ampere and later has a least compute capability"
    if header.runtime == "tensorrt" and facts.hardware_compatibility != "none":
        # Release notes of 8.6 and of 10.9.
        level, since = (
            ("Ampere and later", (8, 6)) if facts.min_compute_capability else ("one compute capability", (10, 9))
        )
        if header.version[:2] < since:
            yield f"plans for every GPU of {level} came with TensorRT {since[0]}.{since[1]}; this one was built with {_built(header)}"
    if header.runtime == "tensorrt-rtx" and facts.hardware_compatibility == "same-compute-capability":
        yield "TensorRT-RTX has no plans of that kind: list the compute capabilities"


def _kind_faults(facts: EngineFacts, header: PlanHeader) -> Iterator[str]:
    if header.runtime == "tensorrt-rtx" and facts.version_compatible:
        yield "TensorRT-RTX has no version-compatible plans"
    if _before_10(header):
        # Seen in the libraries of 8.6.0: STRIP_PLAN, REFIT_IDENTICAL and refittable version-compatible plans came with 10.0.
        if facts.strip == "plan":
            yield f"STRIP_PLAN came with TensorRT 10, and it was built with {_built(header)}: strip is zeros or none"
        if facts.refit != "any":
            yield f"refit {facts.refit} came with TensorRT 10, and it was built with {_built(header)}: refit is any"
        if facts.version_compatible and facts.strip != "none":
            yield f"a version-compatible plan of {_built(header)} cannot be refitted, so it must hold its weights (strip none)"
    if facts.version_compatible and header.version < (8, 6):
        yield f"version-compatible plans came with TensorRT 8.6, and it was built with {_built(header)}"
    if facts.strip == "zeros" and facts.refit == "identical":
        yield "a plan built from zeroed weights takes other weights than it was built from: refit is any"
    if facts.lean_runtime is not None and not facts.version_compatible:
        yield "a lean runtime loads version-compatible plans alone"
    if facts.host_code and not facts.version_compatible:
        yield "only a version-compatible plan brings code of its own"
    if facts.profile == "":
        yield "the name of its profile is empty"


def _is_newer(capability: str) -> bool:
    return version_tuple(capability) > version_tuple(_COMPUTE_CAPABILITIES[-1])


def known_from(least: str) -> tuple[str, ...]:
    """The compute capabilities that GPUs have from ``least`` on, and one that none has yet."""
    known = [c for c in _COMPUTE_CAPABILITIES if version_tuple(c) > version_tuple(least)]
    return (least, *known, "999.0")


def _before_10(header: PlanHeader) -> bool:
    return header.runtime == "tensorrt" and header.version < (10,)


def _built(header: PlanHeader) -> str:
    return ".".join(map(str, header.version))


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
