"""Import an engine of TensorRT-LLM: its folder of plans with the checkpoint that gives their weights.

It becomes a model of its own, whose weights are the checkpoint's safetensors files, with one engine of as many plans
as the model is spread over GPUs. On the user's machine every plan takes each weight from the tensor of its name
(`weight_map.by_name`), and the folder is put together again, all of it or nothing.

Not tried with a real engine: written by the documents and the source of TensorRT-LLM.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from refit_agent.authoring.change import BundleChange
from refit_agent.authoring.compress import ENDINGS, Shipped, ShippedAs, compress_plan, seems_to_hold_weights
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import FactsMissing, ImportRefused, NameTaken, NameUnusable
from refit_agent.authoring.import_facts import ImportedEngine
from refit_agent.authoring.new_engine import AddedEngine, KnownPlan
from refit_agent.authoring.notes import Note
from refit_agent.authoring.place_engine import Placed, engine_path, place_engine
from refit_agent.authoring.places import MODELS, Places, require_folder_name
from refit_agent.authoring.sources import copy_hashed, hash_source, link_hashed, source_size
from refit_agent.authoring.steps import Steps
from refit_agent.authoring.trt_llm_checkpoint import Checkpoint
from refit_agent.authoring.trt_llm_folder import CONFIG_NAME, EngineFolder
from refit_agent.authoring.trt_llm_known import KnownFolder, know_engine_folder
from refit_agent.errors import SafetensorsMalformed
from refit_agent.manifest import Engine, FileRef, Manifest, Model, Plan
from refit_agent.progress import ProgressCallback
from refit_agent.weights.safetensors import SafetensorsWeights


class _How(NamedTuple):
    """What the caller asked for."""

    version: str
    path: str | None
    compression: ShippedAs
    link: bool
    replace: bool
    first: bool


def import_engine_folder(
    root: str | os.PathLike[str],
    model: str,
    engine_dir: str | os.PathLike[str],
    checkpoint_dir: str | os.PathLike[str],
    facts: EngineFacts | None = None,
    *,
    version: str = "",
    as_it_is: bool = False,
    link: bool = False,
    compression: ShippedAs = "zstd",
    path: str | None = None,
    replace: bool = False,
    first: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportedEngine:
    """Add the engine in ``engine_dir``, with its weights from ``checkpoint_dir``, to the bundle at ``root``.

    ``facts`` and ``as_it_is`` are those of `know_engine_folder`. There may be a model of the name ``model`` with the
    same weights, which gets one engine more; if its weights are others, ``replace`` lets the new one take its place,
    and its engines go. ``link`` gives the checkpoint's files a second name in place of copying them. ``version`` is
    the model's, ``path`` the folder in the bundle for the plans; the other arguments are those of `add_engine`. All
    of it is added, or nothing.

    In what is returned ``notes`` are the files of ``engine_dir`` that were left there, and ``remarks`` what the app's
    developer should know.

    Raises:
        FactsMissing: lists all that must still be said.
        SourceUnreadable, ImportRefused, PlanInvalid, SafetensorsMalformed, EngineRefused: as `know_engine_folder`.
        NameUnusable, NameTaken, BundleUnwritable, BundleError
    """
    require_folder_name(model, "a model's name")
    found = know_engine_folder(engine_dir, checkpoint_dir, facts, as_it_is=as_it_is)
    engine = found.engine
    if found.known.missing:
        raise FactsMissing(plan=engine.path, missing=", ".join(found.known.missing))
    with BundleChange(root) as change:
        how = _How(version, path, compression, link, replace, first)
        steps = Steps(progress, weights=0.5, compress=1.0)
        there = _namesake(change.bundle.manifest, model)
        staged = _stage(found, change, there, how, steps)
        placed: Placed | None = None

        def edit(manifest: Manifest, places: Places) -> Manifest:
            nonlocal placed
            target = _target(manifest, model, staged, change.root, how, places)
            entry = _put(_entry(found, staged, target, how), staged, target, places, how)
            placed = place_engine(target, entry, engine.path, replace=replace, first=first)
            return _with_model(manifest, placed.model)

        change.commit(edit)
    assert placed is not None
    added = AddedEngine(placed.engine, placed.replaced, placed.hidden)
    return ImportedEngine(added, engine.path, _notes(engine), tuple(_remarks(engine, staged)))


def _notes(engine: EngineFolder) -> tuple[Note, ...]:
    notes = []
    for name in engine.others:
        try:
            size = os.stat(os.path.join(engine.path, name)).st_size
        except OSError:
            size = 0
        notes.append(Note(name, size, "", "it is no part of the engine"))
    return tuple(notes)


def _remarks(engine: EngineFolder, staged: _Staged) -> list[str]:
    version = f"TensorRT-LLM {engine.version}" if engine.version else "the TensorRT-LLM that built the engine"
    remarks = [
        f"The app needs {version}, and so does the machine that puts the weights in.",
        "Nothing checks its results: an engine of TensorRT-LLM cannot be run by itself.",
    ]
    if engine.stripped:
        for rank, shipped in enumerate(staged.plans):
            share = shipped.size / shipped.plan_size
            if seems_to_hold_weights(share):
                remarks.append(f"Compressed, {share:.0%} of rank{rank}.engine is left: does it hold weights after all?")
    return remarks


# ---------------------------------------------------------------- what goes into the bundle


class _Staged(NamedTuple):
    """What is about to go into the bundle: the checkpoint's files with their names there as paths, the plans by
    rank, config.json; each in the folder that is named. ``weights_folder`` is "" if they are in the bundle already."""

    weights_folder: str
    weights: tuple[FileRef, ...]
    folder: str
    plans: tuple[Shipped, ...]
    config: FileRef


def _stage(found: KnownFolder, change: BundleChange, there: Model | None, how: _How, steps: Steps) -> _Staged:
    engine, checkpoint, _ = found
    weights_folder, weights = _stage_weights(checkpoint, change, there, how, steps)
    if there is not None and not weights_folder:
        # Asked before the work as well as after it, when another command may have come in between.
        place_engine(there, _draft(found), engine.path, replace=how.replace, first=how.first)
    words = "copying the plans" if how.compression == "none" else "compressing the plans"
    total = sum(header.size for header in engine.headers)
    steps.begin("compress", words, total * (1 if how.compression == "none" else 2))
    folder = change.folder()
    plans = []
    for rank, (plan, header) in enumerate(zip(engine.plans, engine.headers, strict=True)):
        plans.append(compress_plan(plan, os.path.join(folder, f"plan{rank}"), how.compression, steps.add))
        if plans[-1].plan_size != header.size:
            raise ImportRefused(path=plan, detail="it changed while it was read")
    with open(os.path.join(folder, CONFIG_NAME), "xb") as file:
        file.write(engine.config)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256(engine.config).hexdigest()
    config = FileRef(path=CONFIG_NAME, size=len(engine.config), sha256=digest)
    return _Staged(weights_folder, weights, folder, tuple(plans), config)


def _stage_weights(
    checkpoint: Checkpoint, change: BundleChange, there: Model | None, how: _How, steps: Steps
) -> tuple[str, tuple[FileRef, ...]]:
    """The checkpoint's files in a new folder, or "" if the model that is ``there`` already has them."""
    sizes = [source_size(checkpoint.place(name)) for name in checkpoint.files]
    if there is not None and [ref.size for ref in there.safetensors] == sizes:
        steps.begin("weights", "comparing the checkpoint with the model's weights", sum(sizes))
        hashes = [hash_source(checkpoint.place(name), steps.add) for name in checkpoint.files]
        if [digest for digest, _ in hashes] == [ref.sha256 for ref in there.safetensors]:
            return "", _refs(checkpoint, hashes)
    if there is not None and not how.replace:
        raise _taken(change.root, there.name)
    steps.begin("weights", "copying the checkpoint", sum(sizes))
    folder = change.folder()
    hashes = []
    for name in checkpoint.files:
        source, target = checkpoint.place(name), os.path.join(folder, name)
        if how.link:
            hashes.append(link_hashed(source, target, change.root, steps.add))
        else:
            hashes.append(copy_hashed(source, target, steps.add))
    # What ships must stand on its own.
    for names in dict.fromkeys(checkpoint.of_rank):
        try:
            SafetensorsWeights(*(os.path.join(folder, name) for name in names)).close()
        except SafetensorsMalformed as error:
            raise ImportRefused(path=checkpoint.path, detail="it changed while it was copied") from error
    return folder, _refs(checkpoint, hashes)


def _refs(checkpoint: Checkpoint, hashes: list[tuple[str, int]]) -> tuple[FileRef, ...]:
    return tuple(
        FileRef(path=name, size=size, sha256=digest)
        for name, (digest, size) in zip(checkpoint.files, hashes, strict=True)
    )


def _namesake(manifest: Manifest, name: str) -> Model | None:
    """The model of that name. Raises NameUnusable if only its spelling differs."""
    for model in manifest.models:
        if model.name != name and model.name.casefold() == name.casefold():
            detail = f"differs only in case from {model.name!r}, and they would share a folder on Windows"
            raise NameUnusable(name=name, what="a model's name", detail=detail)
    return manifest.model(name)


def _target(manifest: Manifest, name: str, staged: _Staged, root: str, how: _How, places: Places) -> Model:
    """The model that gets the engine: the one of that name if it has the same weights, else a new one.

    Raises:
        NameTaken: it has others, and is not to be replaced.
    """
    there = _namesake(manifest, name)
    if there is not None and [f.sha256 for f in there.safetensors] == [f.sha256 for f in staged.weights]:
        return there
    if (there is not None and not how.replace) or not staged.weights_folder:
        raise _taken(root, name)
    folder = places.free(f"{MODELS}/{name}")
    weights = tuple(
        msgspec.structs.replace(
            ref, path=places.put(os.path.join(staged.weights_folder, ref.path), f"{folder}/{ref.path}"), copied=True
        )
        for ref in staged.weights
    )
    return Model(name=name, version=how.version, safetensors=weights, engines=())


def _taken(root: str, name: str) -> NameTaken:
    return NameTaken(bundle=root, what=f"a model {name!r} with other weights")


def _entry(found: KnownFolder, staged: _Staged, model: Model, how: _How) -> Engine:
    """The engine, all but its places in the bundle."""
    paths = dict(zip(found.checkpoint.files, (ref.path for ref in model.safetensors), strict=True))
    plans = [
        Plan(
            path="x",
            size=shipped.size,
            sha256=shipped.sha256,
            plan_size=shipped.plan_size,
            plan_sha256=shipped.plan_sha256,
            compression=how.compression,
            # None named means all of them.
            safetensors=() if len(names) == len(paths) else tuple(paths[name] for name in names),
        )
        for shipped, names in zip(staged.plans, found.checkpoint.of_rank, strict=True)
    ]
    return _with_facts(found.known, plans, staged.config, model.weights_digest())


def _draft(found: KnownFolder) -> Engine:
    """The engine as selection would see it, before anything of it is known but what was said."""
    nothing = FileRef(path="x", size=0, sha256="0" * 64)
    plan = Plan(path="x", size=0, sha256=nothing.sha256, plan_size=0)
    return _with_facts(found.known, [plan] * len(found.engine.plans), nothing, nothing.sha256)


def _with_facts(known: KnownPlan, plans: Sequence[Plan], config: FileRef, weights: str) -> Engine:
    given = {name: getattr(known.facts, name) for name in EngineFacts.__struct_fields__}
    changes = {
        **msgspec.structs.asdict(plans[0]),
        "runtime": known.header.runtime,
        "built_with": ".".join(map(str, known.header.version)),
        "weights_sha256": weights if known.facts.refit == "identical" else None,
        "config": config,
        "ranks": tuple(plans[1:]),
    }
    return Engine(**{name: value for name, value in (given | changes).items() if value is not None})


def _put(entry: Engine, staged: _Staged, model: Model, places: Places, how: _How) -> Engine:
    """The engine with its files in a folder of the bundle."""
    count = len(entry.plans)
    folder = how.path or engine_path(places, model, entry, f"-{count}gpus" if count > 1 else "")
    at = [
        places.put(os.path.join(staged.folder, f"plan{rank}"), f"{folder}/rank{rank}.engine{ENDINGS[how.compression]}")
        for rank in range(count)
    ]
    config = places.put(os.path.join(staged.folder, CONFIG_NAME), f"{folder}/{CONFIG_NAME}")
    ranks = tuple(msgspec.structs.replace(plan, path=path) for plan, path in zip(entry.ranks, at[1:], strict=True))
    assert entry.config is not None
    moved = msgspec.structs.replace(entry.config, path=config)
    return msgspec.structs.replace(entry, path=at[0], ranks=ranks, config=moved)


def _with_model(manifest: Manifest, model: Model) -> Manifest:
    """The manifest with the model in the place of its namesake, or behind the others."""
    models = [model if old.name == model.name else old for old in manifest.models]
    return msgspec.structs.replace(manifest, models=tuple(models if manifest.model(model.name) else [*models, model]))
