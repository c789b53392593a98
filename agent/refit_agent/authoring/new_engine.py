"""Put a plan into a bundle: its entry from the header, the record of its build and what is said of it; compressed."""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec

from refit_agent.authoring.build.record import BuildRecord, find_record, model_misfit, read_record
from refit_agent.authoring.change import BundleChange
from refit_agent.authoring.compress import (
    ENDINGS,
    Shipped,
    ShippedAs,
    compress_plan,
    seems_to_hold_weights,
    share_kept,
)
from refit_agent.authoring.engine_facts import EngineFacts, missing_facts, require_possible, settled, with_record
from refit_agent.authoring.errors import EngineRefused, FactsMissing
from refit_agent.authoring.place_engine import Placed, engine_path, place_engine, with_engine
from refit_agent.authoring.places import ENGINES, Places
from refit_agent.authoring.sources import copy_hashed, read_head
from refit_agent.authoring.steps import Steps
from refit_agent.authoring.tolerances import require_tolerance, tolerance_for
from refit_agent.authoring.weight_map_check import require_weight_map
from refit_agent.bundle import Bundle
from refit_agent.errors import PlanInvalid
from refit_agent.manifest import Engine, FileRef, Manifest, Model
from refit_agent.plan_header import HEADER_BYTES, PlanHeader, parse_plan_header
from refit_agent.progress import ProgressCallback


class KnownPlan(NamedTuple):
    """What is known of a plan before anything is done with it; ``missing`` are names of `EngineFacts`."""

    header: PlanHeader
    record: BuildRecord | None
    facts: EngineFacts
    missing: tuple[str, ...]


class AddedEngine(NamedTuple):
    """The entry as it stands in the manifest, those that it replaced, and those that it now stands before on every
    machine that they fit."""

    engine: Engine
    replaced: tuple[Engine, ...]
    hidden: tuple[Engine, ...]


def know_plan(
    plan: str | os.PathLike[str], facts: EngineFacts | None = None, record: str | os.PathLike[str] | None = None
) -> KnownPlan:
    """What header, record (the one beside the plan, if none is given) and ``facts`` tell of a plan together.

    Raises:
        SourceUnreadable, PlanInvalid: it is no whole plan.
        RecordInvalid: the record is none.
        EngineRefused: they contradict each other, or say what cannot be.
    """
    path = os.path.abspath(os.fspath(plan))
    head, size = read_head(path, HEADER_BYTES)
    try:
        header = parse_plan_header(head, size, path)
    except PlanInvalid as error:
        hint = "Give the plan as TensorRT wrote it, not compressed."
        raise PlanInvalid(path=path, detail=str(error.facts["detail"]), hint=hint) from error
    found = find_record(path) if record is None else read_record(os.fspath(record))
    said = facts or EngineFacts()
    require_tolerance(said.tolerance)
    if found is not None:
        _require_same_plan(found, header, path)
        said = with_record(said, found, path)
    said = settled(said, header)
    require_possible(said, header, path)
    return KnownPlan(header, found, said, missing_facts(said))


def add_engine(
    root: str | os.PathLike[str],
    model: str,
    plan: str | os.PathLike[str],
    facts: EngineFacts | None = None,
    *,
    record: str | os.PathLike[str] | None = None,
    compression: ShippedAs = "zstd",
    path: str | None = None,
    replace: bool = False,
    first: bool = False,
    progress: ProgressCallback | None = None,
) -> AddedEngine:
    """Add the uncompressed plan in the file ``plan`` to the model ``model`` of the bundle at ``root``.

    What `know_plan` leaves missing must be in ``facts``. ``path`` is its place in the bundle, by default one that
    says what it is for. ``replace`` lets it take the place of an entry that selection cannot tell from it;
    ``first`` puts it before its equals. Where no tolerance is given it is that of the precision (`tolerances`).

    Raises:
        FactsMissing: lists all that must still be said.
        EngineRefused: it is never chosen, contradicts itself, belongs to other weights, or seems to hold
            weights though it is said to have none.
        UnknownModel, NotAnOnnxModel, PlanInvalid, SourceUnreadable, NameTaken, BundleUnwritable, BundleError
    """
    source = os.path.abspath(os.fspath(plan))
    known = know_plan(source, facts, record)
    if known.missing:
        raise FactsMissing(plan=source, missing=", ".join(known.missing))
    with BundleChange(root) as change:
        target = change.bundle.model(model)
        _require_record_fits(known, target, source)
        # Asked before the work as well as after it, when another command may have come in between.
        place_engine(target, _entry(known, target, _NOTHING), source, replace=replace, first=first)
        if path is not None:
            Places(change.root, change.bundle.manifest).put("", path)
        require_weight_map(
            known.facts.weight_map, known.record, change.bundle.locate(target.require_onnx()), known.header, source
        )
        steps = Steps(progress, look=0.1, compress=1.0)
        steps.begin("look", "looking for weights in the plan", known.header.size)
        _require_stripped(known.facts, source, share_kept(source, steps.add))
        staged = _stage(change.folder(), known, source, compression, steps)
        placed: Placed | None = None

        def edit(manifest: Manifest, places: Places) -> Manifest:
            nonlocal placed
            now = Bundle(change.root, manifest).model(model)
            _require_record_fits(known, now, source)
            entry = _entry(known, now, staged)
            at = path or engine_path(places, now, entry, f".plan{ENDINGS[compression]}")
            entry = msgspec.structs.replace(entry, path=places.put(staged.plan, at))
            if entry.lean_runtime is not None:
                at = places.put(staged.lean_path, places.free(f"{ENGINES}/{now.name}/{entry.lean_runtime.path}"))
                entry = msgspec.structs.replace(
                    entry, lean_runtime=msgspec.structs.replace(entry.lean_runtime, path=at)
                )
            placed = place_engine(now, entry, source, replace=replace, first=first)
            return with_engine(manifest, placed)

        change.commit(edit)
    assert placed is not None
    return AddedEngine(placed.engine, placed.replaced, placed.hidden)


class _Staged(NamedTuple):
    """What is about to go into the bundle; ``lean`` has its file's name as path."""

    plan: str
    shipped: Shipped
    compression: ShippedAs
    lean_path: str
    lean: FileRef | None


_NOTHING = _Staged("", Shipped(0, "0" * 64, 0, "0" * 64), "none", "", None)


def _stage(folder: str, known: KnownPlan, source: str, compression: ShippedAs, steps: Steps) -> _Staged:
    lean_path, lean = "", None
    library = known.facts.lean_runtime
    if library is not None:
        lean_path = os.path.join(folder, "lean")
        digest, size = copy_hashed(library, lean_path)
        lean = FileRef(path=os.path.basename(library), size=size, sha256=digest)
    words = "copying the plan" if compression == "none" else "compressing the plan"
    steps.begin("compress", words, known.header.size * (1 if compression == "none" else 2))
    plan = os.path.join(folder, "plan")
    shipped = compress_plan(source, plan, compression, steps.add)
    if shipped.plan_size != known.header.size:
        raise EngineRefused(plan=source, detail="it changed while it was read")
    if known.record is not None and shipped.plan_sha256 != known.record.plan_sha256:
        raise EngineRefused(plan=source, detail="it is not the plan that the record of its build describes")
    return _Staged(plan, shipped, compression, lean_path, lean)


def _entry(known: KnownPlan, model: Model, staged: _Staged) -> Engine:
    """The entry, all but its place in the bundle."""
    facts = known.facts
    assert facts.precision is not None
    given = {name: getattr(facts, name) for name in EngineFacts.__struct_fields__}
    changes = {
        "path": "x",
        "size": staged.shipped.size,
        "sha256": staged.shipped.sha256,
        "runtime": known.header.runtime,
        "built_with": ".".join(map(str, known.header.version)),
        "plan_size": staged.shipped.plan_size,
        "plan_sha256": staged.shipped.plan_sha256,
        "compression": staged.compression,
        "lean_runtime": staged.lean,
        "weights_sha256": model.weights_digest() if facts.refit == "identical" else None,
        "tolerance": facts.tolerance or tolerance_for(facts.precision),
    }
    return Engine(**{name: value for name, value in (given | changes).items() if value is not None})


def _require_same_plan(record: BuildRecord, header: PlanHeader, plan: str) -> None:
    built = ".".join(map(str, header.version))
    told = {"runtime": header.runtime, "built_with": built, "plan_size": header.size}
    for name, value in told.items():
        recorded = getattr(record, name)
        if recorded != value:
            detail = f"its header gives {name} {value}, and the record of its build {recorded}"
            raise EngineRefused(plan=plan, detail=detail)


def _require_record_fits(known: KnownPlan, model: Model, plan: str) -> None:
    if known.record is None:
        return
    misfit = model_misfit(known.record, model)
    if misfit:
        hint = f"Add {known.record.onnx.path} as the model, from which the plan was built."
        raise EngineRefused(plan=plan, detail=misfit, hint=hint)


def _require_stripped(facts: EngineFacts, plan: str, share: float) -> None:
    if facts.strip != "none" and seems_to_hold_weights(share):
        detail = f"it seems to hold weights, though strip is {facts.strip}: compressed, {share:.0%} of it is left"
        raise EngineRefused(plan=plan, detail=detail, hint="Strip it, or say --strip none to ship it with its weights.")
