"""Make one engine that the cache does not have: lock, room, worker, publish."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from refit_agent.bundle import Bundle
from refit_agent.cache.disk import write_error
from refit_agent.cache.entry import SCHEMA, Entry, EntryFile, encode_entry
from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import TEMPORARY, Lease, Store
from refit_agent.cache.upkeep import default_quota, keep_quota, make_room, sweep
from refit_agent.errors import BundleFileMismatch, Cancelled, EntryDamaged, WeightsNotIdentical
from refit_agent.fetch import Fetching, forget_fetched, locate_weights
from refit_agent.manifest import FileRef, Golden, Model
from refit_agent.progress import ProgressMeter
from refit_agent.refit.launch import run_worker
from refit_agent.refit.messages import Done, GoldenJob, Job, Located, Phase
from refit_agent.selection import Candidate
from refit_agent.settings import cache_quota

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from refit_agent.own_weights import OwnWeights

Found = tuple[Entry, str, Lease]


class Request(NamedTuple):
    """One engine to make: which, from what, under which key, and for how long the caller will wait."""

    bundle: Bundle
    model: Model
    candidate: Candidate
    profile: str | None
    key: str
    facts: dict[str, str]
    deadline_s: float
    background: bool
    meter: ProgressMeter
    cancelled: Callable[[], bool]
    weights: OwnWeights | None = None


def make_engine(request: Request, store: Store) -> tuple[Found, bool]:
    """The engine, leased, and whether somebody else had made it while this call waited.

    Raises:
        RefitAgentError: nothing was published, and nothing is left behind.
    """
    meter = request.meter
    key = request.key

    def on_phase(event: Phase) -> None:
        _log()  # imported while the worker works, so that nobody waits for it
        meter(event.phase, event.done, event.total, event.part, event.parts)

    _require_identical(request)
    store.prepare()
    with (
        key_lock(store, key, request.deadline_s, _while_waiting(request)),
        contextlib.ExitStack() as leases,
    ):
        found = store.lookup(key)
        if isinstance(found, tuple):
            meter("ready")
            return found, True
        if found is not None:
            _log().warning("cached engine is damaged", key=key, detail=found, moved_to=store.quarantine(key))
        _remove_leftovers(store, key)
        try:
            done = _make(request, store, on_phase, leases)
        except BundleFileMismatch as error:
            leases.close()
            # A fetched file that rotted where no look-up sees it would fail every engine of it, for ever.
            if not forget_fetched(store, str(error.facts.get("path", ""))):
                raise
            done = _make(request, store, on_phase, leases)
        for note in done.notes:
            _log().warning("the runtime warned", note=note, key=key)
        _log().info("engine published", key=key, seconds=done.seconds, golden_error=done.golden_error)
        found = store.lookup(key)
        if not isinstance(found, tuple):
            raise EntryDamaged(key=key, detail=found or "it vanished after it was published")
        meter("ready")
        return found, False


def _make(request: Request, store: Store, on_phase: Callable[[Phase], None], leases: contextlib.ExitStack) -> Done:
    """Make it once, and publish it. The caller holds its lock."""
    job_files = _locate(request, store, leases)
    sweep(store, quarantine=False)  # what was left under keys that nobody asks for any more counts against no quota
    make_room(store, _needed_bytes(request), _quota(store))
    staging = store.stage(request.key)
    worker_log = f"{staging}.log"
    try:
        job = _job(request, staging, job_files)
        done = run_worker(
            job,
            worker_log,
            request.deadline_s,
            on_phase,
            request.cancelled,
        )
        request.meter("publish")
        entry = _entry(request, done, staging)
        # Padding and entry.json are known only now, and an entry may have been hard to read a moment ago.
        keep_quota(store, entry.size + len(encode_entry(entry)), _quota(store))
        store.publish(staging, entry)
    finally:
        store.discard(staging)
        store.discard(worker_log)
        store.discard(f"{staging}.lean")
    return done


def _log() -> FilteringBoundLogger:
    from refit_agent.logs import get_logger

    return get_logger("refit_agent.make")


def _while_waiting(request: Request) -> Callable[[], None]:
    """What to do again and again while another process makes the engine."""
    told = False

    def on_wait() -> None:
        nonlocal told
        if request.cancelled():
            raise Cancelled()
        if not told:
            request.meter("wait")
            told = True

    return on_wait


def _require_identical(request: Request) -> None:
    """With other weights than it was built from, the behaviour of a REFIT_IDENTICAL engine is undefined."""
    engine, model = request.candidate.engine, request.model
    if engine.refit == "identical" and model.weights_digest() != engine.weights_sha256:
        raise WeightsNotIdentical(path=engine.path, weights=model.weight_files()[0].path)


def _quota(store: Store) -> int:
    quota = cache_quota()
    return default_quota(store) if quota is None else quota


def _remove_leftovers(store: Store, key: str) -> None:
    """Delete what a killed predecessor left: we hold the lock, so nobody is at work there."""
    folder = f"{store.root}/{TEMPORARY}"
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise write_error(error, folder) from error
    for name in names:
        if name.startswith(key):
            store.discard(f"{folder}/{name}")


def _needed_bytes(request: Request) -> int:
    """The finished engine's size at most: a plan from zeroed weights has it already, any other grows by the weights."""
    engine, model = request.candidate.engine, request.model
    size = sum(plan.plan_size for plan in engine.plans) + (0 if engine.config is None else engine.config.size)
    if engine.strip != "plan":
        return size
    weights = {file.path: file.size for file in model.weight_files()}
    return size + sum(weights[path] for plan in engine.plans for path in plan.safetensors or weights)


class _Files(NamedTuple):
    """Where everything is. Without an ONNX file ``weights`` is None, and they are in ``safetensors``."""

    plan: str
    ranks: tuple[str, ...]
    config: Located | None
    weights: Located | None
    safetensors: tuple[Located, ...]
    external: tuple[Located, ...]
    golden: tuple[GoldenJob, ...]
    smoke_inputs: tuple[dict[str, Located], ...]
    base: tuple[Located, ...]
    lean_runtime: str


def _locate(request: Request, store: Store, leases: contextlib.ExitStack) -> _Files:
    """Find every file that the worker will need, before anything is started or written."""
    bundle, model, engine = request.bundle, request.model, request.candidate.engine

    def located(ref: FileRef) -> Located:
        return Located(path=bundle.locate(ref), ref=FileRef(path=ref.path, size=ref.size, sha256=ref.sha256))

    def golden(data: Golden) -> GoldenJob:
        return GoldenJob(
            inputs={name: located(ref) for name, ref in data.inputs.items()},
            outputs={name: located(ref) for name, ref in data.outputs.items()},
            tolerance=engine.tolerance or data.tolerance,
        )

    own = request.weights
    bundled = bundle.model(model.name)
    fitting = bundled.fitting_golden(request.profile)
    # What is small, and must be there, goes first: nobody fetches gigabytes in vain.
    plan, *ranks = (bundle.locate(p) for p in engine.plans)
    config = None if engine.config is None else located(engine.config)
    lean_runtime = "" if engine.lean_runtime is None else bundle.locate(engine.lean_runtime)
    data = tuple(golden(g) for g in fitting)
    model_files = _model_files(request, bundled, store, leases)
    onnx, external, safetensors = None, [], model_files
    if bundled.onnx is not None:
        (onnx, *external), safetensors = model_files, []
    return _Files(
        plan=plan,
        ranks=tuple(ranks),
        config=config,
        weights=onnx if own is None else own.onnx,
        safetensors=tuple(safetensors),
        external=tuple(external) if own is None else own.external,
        golden=data if own is None else (),
        smoke_inputs=() if own is None else tuple(g.inputs for g in data),
        base=() if own is None else tuple(model_files),
        lean_runtime=lean_runtime,
    )


def _model_files(request: Request, bundled: Model, store: Store, leases: contextlib.ExitStack) -> list[Located]:
    """The files that the bundle has the weights in, as far as the engine needs them; fetched if they are elsewhere."""
    how = Fetching(store, request.meter, request.cancelled, request.deadline_s, _quota(store), request.background)
    return locate_weights(request.bundle, bundled.weight_files_of(request.candidate.engine), how, leases)


def _job(request: Request, staging: str, files: _Files) -> Job:
    candidate = request.candidate
    return Job(
        staging=staging,
        plan=files.plan,
        engine=candidate.engine,
        weights=files.weights,
        external=files.external,
        ranks=files.ranks,
        config=files.config,
        safetensors=files.safetensors,
        runtime=candidate.engine.runtime,
        module=candidate.runtime.module,
        module_folder=candidate.runtime.folder,
        module_version=candidate.runtime.version,
        gpu="" if candidate.gpu is None else candidate.gpu.uuid,
        compute_capability="" if candidate.gpu is None else candidate.gpu.compute_capability,
        golden=files.golden,
        load=candidate.needs_load,
        smoke_run=candidate.needs_check or request.weights is not None,
        smoke_inputs=files.smoke_inputs,
        base=files.base,
        lean_runtime=files.lean_runtime,
        host_code_allowed=request.bundle.signed,
        background=request.background,
    )


def _onnx_name(request: Request, done: Done) -> str:
    """The CPU target's engine is an ONNX file; to a plan the last file written points, if the model is one."""
    if request.model.onnx is None:
        return ""
    return done.files[0 if request.candidate.engine.runtime == "onnxruntime" else -1].name


def _entry(request: Request, done: Done, staging: str) -> Entry:
    files = []
    for file in done.files:
        try:
            status = os.stat(f"{staging}/{file.name}")
        except OSError as error:
            raise write_error(error, staging) from error
        if status.st_size != file.size:
            raise EntryDamaged(
                key=request.key, detail=f"{file.name} has {status.st_size} bytes, {file.size} were written"
            )
        files.append(EntryFile(name=file.name, size=file.size, mtime_ns=status.st_mtime_ns, sha256=file.sha256))
    candidate, app = request.candidate, request.bundle.manifest.app
    return Entry(
        schema=SCHEMA,
        key=request.key,
        plan=done.files[0].name,
        onnx=_onnx_name(request, done),
        files=tuple(files),
        runtime=candidate.engine.runtime,
        runtime_version=done.runtime_version,
        target="cpu" if candidate.gpu is None else candidate.gpu.name,
        app=f"{app.id} {app.version}",
        model=request.model.name,
        profile=request.profile,
        engine=candidate.engine.path,
        created=time.time(),
        golden_error=done.golden_error,
        check=done.check,
        seconds=done.seconds,
        facts=request.facts,
    )
