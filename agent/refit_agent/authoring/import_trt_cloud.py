"""Import what `trt-cloud build` of NVIDIA's TensorRT-Cloud gives: a zip, or a folder, with a plan, logs and metrics.

Client 0.6.1 asks the service for an engine, metrics, a timing cache and facts about the system. It looks for
``build_result/engine.trt`` in ``build_result.zip``, and for files named metrics.json, build.log, trt_cloud.log and
summarize.log anywhere; builds that were uploaded to a registry it downloads as the folder ``build_result``. NVIDIA's
quick start says the same of engine.trt and metrics.json. Nothing of this is relied on here: the plan is what has a
plan's header, and the logs are those in which trtexec speaks. All else is kept as notes.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any, Literal, NamedTuple

from refit_agent.authoring.change import BundleChange
from refit_agent.authoring.compress import ShippedAs
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import EngineRefused, FactsMissing, ImportRefused
from refit_agent.authoring.foreign_entries import Entries, Entry, FolderEntries, copy_entry, read_head
from refit_agent.authoring.import_facts import ImportedEngine, known_plan, last_part, require_version, told_as
from refit_agent.authoring.new_engine import KnownPlan, add_engine
from refit_agent.authoring.notes import NoteKeeper, notes_folder
from refit_agent.authoring.steps import Steps
from refit_agent.authoring.trtexec_log import Run, facts_of, find_runs
from refit_agent.authoring.zip_entries import MAGIC as ZIP_MAGIC
from refit_agent.authoring.zip_entries import ZipEntries
from refit_agent.errors import PlanInvalid
from refit_agent.plan_header import HEADER_BYTES, PlanHeader, parse_plan_header
from refit_agent.progress import ProgressCallback

_PLAN_MAGICS = (b"ftrt", b"vtrt")
_MOST_LOG_BYTES = 16 << 20
_MOST_NAMED = 10
#: The share of the time that unpacking the plan takes (measured on resnet50's); the rest is compressing it anew.
_UNPACK_SHARE = 0.1


class _Found(NamedTuple):
    """A plan among the entries."""

    entry: Entry
    header: PlanHeader


class _Looked(NamedTuple):
    """What is to be imported: the entry, its name for messages, what is known of it, and what is worth saying."""

    entry: Entry
    label: str
    known: KnownPlan
    remarks: tuple[str, ...]


def know_build_result(
    source: str | os.PathLike[str], facts: EngineFacts | None = None, *, entry: str | None = None
) -> KnownPlan:
    """What the plan in ``source`` and the logs beside it tell, together with ``facts``; nothing is unpacked.

    ``entry`` names the plan where there are several.

    Raises:
        SourceUnreadable, ImportRefused: it is no sound zip or folder, or has no plan, or several.
        EngineRefused: plan, logs and ``facts`` contradict each other, or say what cannot be.
    """
    with closing(_open(source)) as entries:
        return _look(entries, facts, entry).known


def import_build_result(
    root: str | os.PathLike[str],
    model: str,
    source: str | os.PathLike[str],
    facts: EngineFacts | None = None,
    *,
    entry: str | None = None,
    notes: str | os.PathLike[str] | Literal[False] | None = None,
    compression: ShippedAs = "zstd",
    path: str | None = None,
    replace: bool = False,
    first: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportedEngine:
    """Add the plan in ``source``, a zip or a folder of TensorRT-Cloud, to the model ``model`` of the bundle at ``root``.

    What `know_build_result` leaves missing must be in ``facts``. Every other file that is not too large goes into a
    new folder below ``notes``, by default ``ROOT.notes/MODEL`` beside the bundle; False keeps none. The other
    arguments are those of `add_engine`.

    Raises:
        FactsMissing: lists all that must still be said.
        SourceUnreadable, ImportRefused, EngineRefused: as `know_build_result` and `add_engine`.
        OutputUnwritable: the notes cannot be written; the bundle is as it was.
        UnknownModel, NameTaken, BundleUnwritable, BundleError
    """
    with closing(_open(source)) as entries:
        taken, label, known, remarks = _look(entries, facts, entry)
        if known.missing:
            raise FactsMissing(plan=label, missing=", ".join(known.missing))
        change = BundleChange(root)
        change.bundle.model(model)
        folder = notes_folder(change.root, model) if notes is None else notes
        steps = Steps(progress, unpack=_UNPACK_SHARE)
        with NoteKeeper(os.path.abspath(folder) if folder else None) as keeper:
            keeper.take(entries, [other for other in entries.entries if other != taken])
            with change:
                plan = _plan_file(entries, taken, change, steps)
                with told_as(plan, label):
                    added = add_engine(
                        root,
                        model,
                        plan,
                        known.facts,
                        compression=compression,
                        path=path,
                        replace=replace,
                        first=first,
                        progress=last_part(progress, _UNPACK_SHARE),
                    )
            kept = keeper.publish(os.path.basename(added.engine.path).split(".")[0])
    return ImportedEngine(added, label, kept, remarks)


def _open(source: str | os.PathLike[str]) -> Entries:
    path = os.path.abspath(os.fspath(source))
    return FolderEntries(path) if os.path.isdir(path) else ZipEntries(path)


def _label(entries: Entries, entry: Entry) -> str:
    return entries.place(entry) if isinstance(entries, FolderEntries) else f"{entries.path}:{entry.name}"


def _plan_file(entries: Entries, entry: Entry, change: BundleChange, steps: Steps) -> str:
    """The plan as a file: where it lies in a folder, unpacked from a zip."""
    if isinstance(entries, FolderEntries):
        return entries.place(entry)
    target = os.path.join(change.folder(), "plan")
    steps.begin("unpack", "unpacking the plan", entry.size)
    for count in copy_entry(entries, entry, target):
        steps.add(count)
    return target


def _look(entries: Entries, said: EngineFacts | None, wanted: str | None) -> _Looked:
    plans = _plans(entries)
    found = _chosen(entries, plans, wanted)
    label = _label(entries, found.entry)
    runs = _runs(entries, [plan.entry for plan in plans])
    own = [run for run in runs if run.plan == _base(found.entry)] or (runs if len(plans) == 1 else [])
    remarks = []
    if not own:
        remarks.append("no log of trtexec tells how it was built, so what is said of it was not checked")
    for run in own:
        require_version(run.version, found.header, label, "the log of trtexec")
        _require_strip(run, said, found.header, label)
    agreed, disputed = _agreed([facts_of(run) for run in own])
    if disputed:
        remarks.append(f"the logs of trtexec do not agree on {', '.join(disputed)}, so that was not taken from them")
    known = known_plan(found.header, said, agreed, label, "the log of trtexec")
    return _Looked(found.entry, label, known, tuple(remarks))


def _base(entry: Entry) -> str:
    return entry.name.rpartition("/")[2]


def _plans(entries: Entries) -> list[_Found]:
    """Every entry that begins and ends as a plan does; raises PlanInvalid if there is none but a damaged one."""
    found, damaged = [], []
    for entry in entries.entries:
        head = read_head(entries, entry, HEADER_BYTES)
        if head[:4] not in _PLAN_MAGICS:
            continue
        try:
            found.append(_Found(entry, parse_plan_header(head, entry.size, _label(entries, entry))))
        except PlanInvalid as error:
            damaged.append(error)
    if damaged and not found:
        raise damaged[0]
    return found


def _chosen(entries: Entries, plans: list[_Found], wanted: str | None) -> _Found:
    named = [plan for plan in plans if wanted is None or wanted in (plan.entry.name, _base(plan.entry))]
    if len(named) == 1:
        return named[0]
    names = [plan.entry.name for plan in named or plans]
    told = ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )
    if not plans:
        raise ImportRefused(path=entries.path, detail="it has no plan", hint=_hint(entries))
    if not named:
        raise ImportRefused(path=entries.path, detail=f"it has no plan {wanted!r}; it has {told}")
    hint = "Name one with --entry."
    if any(_base(plan.entry).startswith("rank") for plan in plans):
        hint += " If they are the ranks of one TensorRT-LLM engine, unpack it and import the folder."
    raise ImportRefused(path=entries.path, detail=f"it has {len(names)} plans: {told}", hint=hint)


def _hint(entries: Entries) -> str:
    """What to do about a source without a plan: large builds come as a zip in a zip."""
    for entry in entries.entries:
        if read_head(entries, entry, len(ZIP_MAGIC)) == ZIP_MAGIC:
            return f"It holds another zip, {entry.name}: unpack it, and import that one."
    return "A build that failed leaves its logs alone."


def _runs(entries: Entries, plans: list[Entry]) -> list[Run]:
    """The runs of trtexec in every other entry that could be a log."""
    runs: list[Run] = []
    for entry in entries.entries:
        if entry in plans or entry.size > _MOST_LOG_BYTES:
            continue
        text = b"".join(entries.chunks(entry)).decode("utf-8", "replace")
        runs += [run for run in find_runs(text) if run not in runs]
    return runs


def _agreed(found: list[EngineFacts]) -> tuple[EngineFacts, list[str]]:
    """What all say, and the names of what some say differently."""
    agreed: dict[str, Any] = {}
    disputed = []
    for name in EngineFacts.__struct_fields__:
        values = [getattr(facts, name) for facts in found]
        if any(value != values[0] for value in values):
            disputed.append(name.replace("_", " "))
        elif values:
            agreed[name] = values[0]
    return EngineFacts(**agreed), disputed


def _require_strip(run: Run, said: EngineFacts | None, header: PlanHeader, plan: str) -> None:
    """Refuse a plan that was built without being stripped, unless the caller knows of it.

    Raises:
        EngineRefused
    """
    strip = None if said is None else said.strip
    if run.stripped or strip in ("none", "zeros") or header.version < (10,):
        return
    raise EngineRefused(
        plan=plan,
        detail="the log of trtexec has no --stripWeights, so it holds the weights that it was built from",
        hint="Build it with --stripWeights; or say --strip none to ship it with its weights, or --strip zeros if the "
        "ONNX file that it was built from had none.",
    )
