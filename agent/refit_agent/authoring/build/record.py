"""What a build leaves beside its plan: ``NAME.plan.json``, from which ``bundle add-engine`` fills in the manifest.

The fields that the manifest's `Engine` has too bear its names and mean the same.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Literal

import msgspec

from refit_agent.authoring.build.messages import EngineWeight
from refit_agent.authoring.build.options import BuilderKind, BuildOptions, Refit, Strip
from refit_agent.authoring.errors import RecordInvalid
from refit_agent.manifest import (
    Bytes,
    ComputeCapability,
    FileRef,
    HardwareCompatibility,
    Model,
    Sha256,
    Version,
)

SUFFIX = ".json"
#: A record is text about a plan: more than this is a mistake or an attack.
_MOST_BYTES = 64 << 20


class RecordedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that took part: ``path`` is relative to the record's folder (forward slashes) if the file lies in it, else
    absolute. ``size`` in bytes."""

    path: str
    size: Bytes
    sha256: Sha256


class BuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One build.

    Attributes:
        format: 1; a later one may mean something else by the same names.
        plan: the plan, uncompressed, beside the record.
        onnx, external: the model that the plan belongs to, with its external data: the canonical one that
            the build wrote, or the caller's own file. A refit takes the weights from these, and from no other.
        source, source_external: the caller's files; the same as ``onnx`` and ``external`` if not ``canonical``.
        canonical: whether ``onnx`` is the canonical form of ``source``.
        runtime: what loads the plan.
        built_with: the builder's version in four numbers, as the plan's header has it.
        version_compatible: whether the lean runtime may load it.
        host_code: whether the plan brings code, the lean runtime, of its own: version-compatible, and not
            built with ``exclude_lean_runtime``.
        os: the operating system that it was built on, which is the one that it is for.
        arch: the processor architecture that it was built on, as "x86_64".
        compute_capabilities: that of the GPU that it was built on; () where ``min_compute_capability`` says it.
        min_compute_capability: for ``ampere-plus``, "8.0".
        hardware_compatibility: as it was built; a TensorRT-RTX plan runs on every GPU that TensorRT-RTX supports,
            which are Ampere and later, and stands here as ``ampere-plus``.
        gpu: the GPU model that it was built on, as nvidia-smi names it.
        driver: version of the driver there.
        min_driver: always None: a build cannot tell.
        profile: name of its optimization profile; None if it has none, or no name.
        precision: for people.
        strip: how the weights were left out.
        refit: what a refit may bring; "any" where none is meant (``strip`` "none" without refit).
        refittable: whether a refit is meant at all.
        weights_sha256: for ``identical``: `Model.weights_digest` of ``onnx`` and ``external`` under the paths in this
            record. In a bundle they may have others, and so another digest.
        weight_map: for each weight where it comes from, as the manifest has it; weights in ``weights_by_rule`` are
            not in it. None for a plan that is not refittable.
        weights: every weight that the plan asks for, in its own order.
        weights_by_rule: names that no entry of the map can express and that the naming rules find.
        plan_size, plan_sha256: of the plan uncompressed; the same as in ``plan``.
        include_refit: the finished plan is to stay refittable.
        lean_runtime: always None: a build makes none.
        builder: module and version that built it, as its package names it: "tensorrt 8.6.0".
        options: as they were settled, with this plan's profile alone.
        seconds: what each phase of the build took.
        notes: TensorRT's warnings, each once, the first ones.
        model_notes: what the canonical form left out or changed, if this build wrote it.
    """

    format: Literal[1] = 1
    plan: RecordedFile
    onnx: RecordedFile
    external: tuple[RecordedFile, ...] = ()
    source: RecordedFile
    source_external: tuple[RecordedFile, ...] = ()
    canonical: bool
    runtime: BuilderKind
    built_with: Version
    version_compatible: bool
    host_code: bool
    os: tuple[Literal["linux", "windows"], ...]
    arch: str
    compute_capabilities: tuple[ComputeCapability, ...]
    min_compute_capability: ComputeCapability | None
    hardware_compatibility: HardwareCompatibility
    gpu: str
    driver: str
    min_driver: None = None
    profile: str | None
    precision: str
    strip: Strip
    refit: Refit
    refittable: bool
    weights_sha256: Sha256 | None
    weight_map: dict[str, dict[str, Any]] | None
    weights: tuple[EngineWeight, ...]
    weights_by_rule: tuple[str, ...] = ()
    plan_size: Bytes
    plan_sha256: Sha256
    include_refit: bool = False
    lean_runtime: None = None
    builder: str
    options: BuildOptions
    seconds: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    model_notes: tuple[str, ...] = ()


def record_path(plan_path: str) -> str:
    """Where the record of the plan at ``plan_path`` lies."""
    return plan_path + SUFFIX


def weights_digest(onnx: RecordedFile, external: tuple[RecordedFile, ...]) -> str:
    """`Model.weights_digest` of files under their paths here."""
    files = [FileRef(path=f.path, size=f.size, sha256=f.sha256) for f in (onnx, *external)]
    return Model(name="model", onnx=files[0], external=tuple(files[1:]), engines=()).weights_digest()


def model_misfit(record: BuildRecord, model: Model) -> str:
    """Why the plan does not belong to ``model`` as the manifest has it, as the end of a sentence; "" if it does."""
    if model.onnx is None:
        return "it was built from an ONNX file, and the weights of this model are in safetensors files"
    if model.onnx.sha256 != record.onnx.sha256:
        return f"it was built from an ONNX file with SHA-256 {record.onnx.sha256}, and {model.onnx.path} has {model.onnx.sha256}"
    ours, theirs = (sorted(f.sha256 for f in files) for files in (record.external, model.external))
    if ours != theirs:
        return f"the external data of {model.onnx.path} is not that of the file which it was built from"
    return ""


_decoder = msgspec.json.Decoder(BuildRecord)


def write_record(path: str, record: BuildRecord) -> None:
    """Write the record to the new file ``path``, on the disk for good. Raises OSError."""
    with open(path, "xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(path: str) -> BuildRecord:
    """The record in the file ``path``; whether the files that it names are still those is not looked at.

    Raises:
        RecordInvalid: it cannot be read, is no record, or a later form of one.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RecordInvalid(path=path, detail=f"it cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise RecordInvalid(path=path, detail=f"it has more than {_MOST_BYTES} bytes")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordInvalid(path=path, detail=str(error)) from error


def find_record(plan_path: str) -> BuildRecord | None:
    """The record beside a plan, or None if there is none. Raises RecordInvalid for one that is no good."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(record_path(plan_path))
        return read_record(record_path(plan_path))
    return None
