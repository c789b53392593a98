"""Import the engine of an EPContext model, with which ONNX Runtime keeps a TensorRT engine as an ONNX file.

What TensorRT's execution providers write (their sources, and the strings in a released TensorRT-RTX provider):
``hardware_architecture`` is "89", or "80+" for Ampere and later, which TensorRT-RTX's always is (``hardware_arch`` in
early versions); ``ep_sdk_version`` is the library's number, such as "101601", and "1.0" whatever the version from
TensorRT-RTX's; ``source`` is the provider's name, in several spellings, and missing from TensorRT's older ones.
Weight-stripped engines are files ``*.stripped.engine`` and built with REFIT_IDENTICAL. Not tried on a model that one
of these providers wrote.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any, NamedTuple

from refit_agent.authoring.change import BundleChange
from refit_agent.authoring.compress import ShippedAs
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.ep_context_node import ContextNode, interface_names, open_context
from refit_agent.authoring.errors import EngineRefused, FactsMissing, ImportRefused, SourceUnreadable
from refit_agent.authoring.foreign_entries import CHUNK_BYTES
from refit_agent.authoring.import_facts import (
    ImportedEngine,
    completed,
    known_plan,
    last_part,
    library_version,
    require_version,
    told_as,
)
from refit_agent.authoring.new_engine import KnownPlan, add_engine, know_plan
from refit_agent.authoring.sources import hash_source
from refit_agent.authoring.steps import Steps
from refit_agent.bundle import Bundle
from refit_agent.manifest import FileRef, Model
from refit_agent.plan_header import HEADER_BYTES, parse_plan_header
from refit_agent.progress import ProgressCallback
from refit_agent.weights.external import unsafe_reason

_WHERE = "the EPContext node"
_ARCHITECTURE = re.compile(r"([0-9]{1,2})([0-9])(\+?)")
_COPY_SHARE = 0.05


class _Looked(NamedTuple):
    """Where the engine is, ``plan`` as a file or else ``embedded`` in the model, and what is known of it."""

    label: str
    plan: str
    embedded: tuple[int, int]
    known: KnownPlan


def know_context_model(source: str | os.PathLike[str], facts: EngineFacts | None = None) -> KnownPlan:
    """What the EPContext model ``source`` and its engine's header tell, together with ``facts``.

    Raises:
        SourceUnreadable, OnnxMalformed, ImportRefused: it is no such model, or its engine is missing or elsewhere.
        PlanInvalid: its engine is none of TensorRT's.
        EngineRefused: node, engine and ``facts`` contradict each other, or say what cannot be.
    """
    with open_context(os.path.abspath(os.fspath(source))) as node:
        return _look(node, facts).known


def import_context_model(
    root: str | os.PathLike[str],
    model: str,
    source: str | os.PathLike[str],
    facts: EngineFacts | None = None,
    *,
    onnx: str | os.PathLike[str] | None = None,
    compression: ShippedAs = "zstd",
    path: str | None = None,
    replace: bool = False,
    first: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportedEngine:
    """Add the engine of the EPContext model ``source`` to the model ``model`` of the bundle at ``root``.

    What `know_context_model` leaves missing must be in ``facts``. ``onnx`` is the ONNX file that the engine was
    built from, by default the one beside ``source`` that its node names: it and its external data must be those of
    the bundle's model. The other arguments are those of `add_engine`.

    Raises:
        FactsMissing: lists all that must still be said.
        SourceUnreadable, OnnxMalformed, ImportRefused, PlanInvalid, EngineRefused: as `know_context_model`, or the
            engine belongs to another model.
        UnknownModel, NameTaken, BundleUnwritable, BundleError
    """
    with open_context(os.path.abspath(os.fspath(source))) as node:
        looked = _look(node, facts)
        if looked.known.missing:
            raise FactsMissing(plan=looked.label, missing=", ".join(looked.known.missing))
        change = BundleChange(root)
        remarks = _require_model(node, change.bundle, change.bundle.model(model), onnx, looked.label)
        how: dict[str, Any] = {"compression": compression, "path": path, "replace": replace, "first": first}
        if looked.plan:
            added = add_engine(root, model, looked.plan, looked.known.facts, progress=progress, **how)
            return ImportedEngine(added, looked.label, remarks=remarks)
        with change:
            plan = os.path.join(change.folder(), "plan")
            _copy(node, looked.embedded, plan, Steps(progress, copy=_COPY_SHARE))
            with told_as(plan, looked.label):
                rest = last_part(progress, _COPY_SHARE)
                added = add_engine(root, model, plan, looked.known.facts, progress=rest, **how)
    return ImportedEngine(added, looked.label, remarks=remarks)


def _look(node: ContextNode, said: EngineFacts | None) -> _Looked:
    _require_provider(node)
    found = _found(node)
    if not node.embedded:
        plan = _engine_file(node)
        if plan.endswith(".stripped.engine"):
            found = _stripped(found)
        # The record of its build may lie beside it.
        known = know_plan(plan, completed(said or EngineFacts(), found, plan, _WHERE))
        label, place = plan, (0, 0)
    else:
        plan, place = "", node.context()
        label = f"the engine in {node.wire.path}"
        head = node.wire.data[place[0] : min(place[0] + HEADER_BYTES, place[1])]
        known = known_plan(parse_plan_header(head, place[1] - place[0], label), said, found, label, _WHERE)
    runtime = _runtime(node)
    if runtime and runtime != known.header.runtime:
        detail = f"{_WHERE} says that {node.text('source')} made it, and its header that it is a plan for {known.header.runtime}"
        raise EngineRefused(plan=label, detail=detail)
    version = library_version(node.text("ep_sdk_version"))
    # TensorRT-RTX's provider writes 1.0 whatever its version is.
    if version is not None and not (known.header.runtime == "tensorrt-rtx" and version == (1, 0)):
        require_version(version, known.header, label, _WHERE)
    return _Looked(label, plan, place, known)


def _found(node: ContextNode) -> EngineFacts:
    """What the node tells of the GPUs."""
    names = [node.text(name).strip() for name in ("hardware_architecture", "hardware_arch")]
    said = set(filter(None, names))
    if not said:
        return EngineFacts()
    hit = _ARCHITECTURE.fullmatch(said.pop())
    if hit is None or said:
        raise node.refused(
            f"the node's hardware_architecture is {' and '.join(filter(None, names))!r}, which is no compute capability"
        )
    capability = f"{int(hit[1])}.{hit[2]}"
    if hit[3]:
        return EngineFacts(min_compute_capability=capability, hardware_compatibility="ampere-plus")
    return EngineFacts(compute_capabilities=(capability,))


def _stripped(found: EngineFacts) -> EngineFacts:
    return completed(found, EngineFacts(strip="plan", refit="identical"), "", "")


def _runtime(node: ContextNode) -> str:
    """The runtime that the node's provider stands for; "" where it names none."""
    source = node.text("source").lower()
    if not source:
        return ""
    if "tensorrt" not in source:
        return "another"
    return "tensorrt-rtx" if "rtx" in source.replace("tensorrt", "", 1) else "tensorrt"


def _require_provider(node: ContextNode) -> None:
    if _runtime(node) == "another":
        raise node.refused(
            f"its engine is one of {node.text('source')}, and only those of TensorRT and TensorRT-RTX are imported"
        )


def _engine_file(node: ContextNode) -> str:
    """The real path of the engine's file, which must lie in the model's folder or below it."""
    node.context()
    # Written on Windows, it has backslashes.
    location = node.text("ep_cache_context").replace("\\", "/")
    reason = unsafe_reason(location)
    if reason:
        raise node.refused(f"it names the engine file {location!r}, which {reason}")
    folder = os.path.realpath(os.path.dirname(node.wire.path))
    try:
        real = os.path.realpath(os.path.join(folder, *location.split("/")), strict=True)
        inside = os.path.commonpath((folder, real)) == folder
    except (OSError, ValueError) as error:
        detail = (
            f"it names the engine file {location!r}, which is not there ({getattr(error, 'strerror', None) or error})"
        )
        raise node.refused(detail) from error
    if not inside:
        raise node.refused(
            f"it names the engine file {location!r}, which leads out of its folder through a symbolic link"
        )
    return real


def _copy(node: ContextNode, place: tuple[int, int], target: str, steps: Steps) -> None:
    start, stop = place
    steps.begin("copy", "copying the engine", stop - start)
    with open(target, "xb") as out:
        for at in range(start, stop, CHUNK_BYTES):
            steps.add(out.write(node.wire.data[at : min(at + CHUNK_BYTES, stop)]))


# ---------------------------------------------------------------- the model that it was built from


def _require_model(
    node: ContextNode, bundle: Bundle, model: Model, given: str | os.PathLike[str] | None, plan: str
) -> tuple[str, ...]:
    """Raise unless the engine is one of this model; says what could not be checked."""
    own = model.require_onnx()
    inputs, outputs = interface_names(bundle.locate(own))
    if set(node.outputs) != set(outputs) or not set(node.inputs) <= set(inputs):
        detail = (
            f"it is of another model: it has inputs {_names(node.inputs)} and outputs {_names(node.outputs)}, and "
            f"{own.path} has {_names(inputs)} and {_names(outputs)}"
        )
        raise EngineRefused(plan=plan, detail=detail)
    if given is not None:
        _require_files(os.path.abspath(os.fspath(given)), model, plan)
        return ()
    name = node.text("onnx_model_filename").replace("\\", "/")
    if not name:
        return ("its node does not name the ONNX file that it was built from, so only names were compared",)
    reason = unsafe_reason(name)
    if reason:
        raise node.refused(f"it names the ONNX file {name!r}, which {reason}")
    beside = os.path.join(os.path.dirname(node.wire.path), *name.split("/"))
    if not os.path.lexists(beside):
        detail = f"it says that its engine was built from {name}, which is not beside it"
        raise ImportRefused(path=node.wire.path, detail=detail, hint="Give that file with --onnx.")
    _require_files(beside, model, plan)
    return ()


def _require_files(onnx: str, model: Model, plan: str) -> None:
    """Raise EngineRefused unless the ONNX file and its external data are those of the bundle's model."""
    own = model.require_onnx()
    for ref in model.weight_files():
        location = posixpath.relpath(ref.path, posixpath.dirname(own.path) or ".")
        path = onnx if ref is own else os.path.join(os.path.dirname(onnx), *location.split("/"))
        if not _is_same(path, ref):
            detail = f"it was built from {path}, which is not the {ref.path} of the bundle"
            raise EngineRefused(plan=plan, detail=detail)


def _is_same(path: str, ref: FileRef) -> bool:
    try:
        if os.stat(path).st_size != ref.size:
            return False
    except OSError as error:
        raise SourceUnreadable(path=path, detail=error.strerror or str(error)) from error
    return hash_source(path)[0] == ref.sha256


def _names(names: list[str]) -> str:
    told = ", ".join(names[:5]) or "none"
    return told + (", ..." if len(names) > 5 else "")
