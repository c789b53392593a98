"""`ensure_engine`: a bundle goes in, a ready engine comes out, the second time from the cache.

open the bundle ─► rank its engines for this machine ─► for each, best first:
    in the cache?  ─► done (this path imports nothing heavy)
    failed before? ─► next
    a service?     ─► it makes the engine, for all who want it; then as found in the cache
    make it (see `make`): under its lock, in a worker process, checked, published whole
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from refit_agent import paths
from refit_agent.bundle import Bundle
from refit_agent.cache.entry import Entry
from refit_agent.cache.store import Lease, Store
from refit_agent.engine import Attempt, Engine, Explanation
from refit_agent.errors import (
    BundleError,
    CacheBusy,
    CacheError,
    Cancelled,
    DeviceError,
    DiskFull,
    FetchError,
    PlanRefused,
    RefitAgentError,
    RefitError,
    RuntimeMissing,
    SettingInvalid,
)
from refit_agent.failures import Failures
from refit_agent.gpu.detect import detect
from refit_agent.keys import attempt_context, engine_facts, engine_key
from refit_agent.machine import Machine
from refit_agent.manifest import Model
from refit_agent.progress import ProgressCallback, ProgressMeter
from refit_agent.selection import Candidate, Selection, select
from refit_agent.settings import DEFAULT_DEADLINE_S

#: What ``path`` of an engine is to be: the plan, or an ONNX file that ONNX Runtime loads it through.
Form = Literal["plan", "onnx"]


def ensure_engine(
    bundle: str | os.PathLike[str],
    model: str,
    profile: str | None = None,
    target: str | None = None,
    progress: ProgressCallback | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    retry_failed: bool = False,
    background: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    service: bool | None = None,
    public_keys: Sequence[str] | None = None,
    form: Form = "plan",
) -> Engine:
    """The best engine of ``model`` for this machine, ready to load, with a lease on it.

    A hit takes well under a millisecond (some more the first time in a process) and reads no file of the
    bundle but its manifest. Otherwise the engine is made in a worker process, by the service if there is
    one and else by this process, which takes seconds, blocks, and uses GPU and disk;
    ``progress`` is called from this thread meanwhile. If the best candidate cannot be made, the next
    best is, and ``explanation`` says why. Safe to call from many threads and many processes at once:
    one of them makes the engine, the others wait for it.

    Args:
        bundle: the bundle's folder.
        model: a model's name in the manifest.
        profile: an optimization profile's name; None for the model's default.
        target: "cpu", "gpu", "cuda:N" or a GPU's UUID; None for whatever is best.
        progress: gets a `Progress` now and then; what it raises stops the work and comes out here.
        weights: an ONNX file to take the weights from in place of the bundle's; it must have the same
            tensors in the same shapes, and is read whole even for a hit.
        deadline_s: seconds that the worker, and waiting for another process, may take.
        retry_failed: try candidates again that failed on this machine before.
        background: work at idle priority.
        cancelled: asked several times a second; True stops the work, which raises Cancelled.
        service: whether the service is to make what is not in the cache; None means if it answers, and
            the outcome is the same either way.
        public_keys: the app's own, as `refit-agent bundle keygen` prints them: one of them must have signed the
            bundle, and only then may it bring code of its own. None takes unsigned bundles.
        form: "onnx" gives as ``path`` an ONNX file for ONNX Runtime's TensorRT execution provider, which holds
            no more than the name of the plan beside it; for the CPU target both forms are the same file.

    Raises:
        BundleError: the bundle is damaged or hostile, not signed as it must be, or lacks the model or profile.
        SelectionError: nothing in it fits this machine, or there is no such target.
        SettingInvalid: an argument is not what it must be, or REFIT_AGENT_... is not.
        RefitError, DeviceError: every candidate failed; the error is the best one's.
        CacheError: the cache folder or its disk cannot be used.
        FetchError: weights that are elsewhere could not be fetched.
        ServiceError: only with ``service=True``: it cannot be used.
    """
    _require_sound(deadline_s, form)
    opened = Bundle.open(bundle, public_keys)
    wanted = opened.model(model)
    own = None
    if weights is not None:
        from refit_agent.own_weights import own_weights, require_replaceable

        require_replaceable(wanted, weights)
        own = own_weights(weights)
        wanted = own.in_place_of(wanted)
    home = paths.home()
    machine = detect(home=home)
    selection = select(opened.manifest, wanted, profile, machine, target)
    store = Store(home.cache)
    failures = Failures(home.state)
    attempts: list[Attempt] = []
    first: RefitAgentError | None = None
    meter = ProgressMeter(progress)  # one for all candidates: it never goes back
    ask = service is not False
    hindered: CacheError | FetchError | None = None
    for candidate in selection.candidates:
        facts = engine_facts(candidate, wanted, selection.profile, machine)
        key = engine_key(facts)
        foreign = foreign_code(candidate, opened)
        if foreign is not None:
            # Asked before the cache is: what another caller allowed is not allowed to this one.
            attempts.append(_attempt(candidate, foreign))
            first = first or foreign
            continue
        found = store.lookup(key)
        if isinstance(found, tuple):
            return _engine(found, candidate, selection, attempts, form, hit=True)
        if hindered is not None:
            continue  # nothing can be made, but a lesser engine may be there already
        context = attempt_context(candidate, wanted, selection.profile)
        remembered = None if retry_failed else failures.recall(key, context, deadline_s)
        if remembered is not None:
            # Not noted again: a failure that lapses would be renewed by every launch that skips it.
            attempts.append(_attempt(candidate, remembered))
            first = first or remembered
            continue
        if ask:
            ask = False  # what it could not do for the best candidate it has tried for the others too
            options = _Options(profile, target, weights, deadline_s, retry_failed, background, public_keys, form)
            insist = service is True
            got = _by_service(opened, wanted, selection, machine, options, store, meter, cancelled, insist=insist)
            if got is not None:
                return got
        try:
            # Imported late: what makes engines is of no use to a hit.
            from refit_agent.make import Request, make_engine

            request = Request(
                bundle=opened,
                model=wanted,
                candidate=candidate,
                profile=selection.profile,
                key=key,
                facts=facts,
                deadline_s=deadline_s,
                background=background,
                meter=meter,
                cancelled=cancelled,
                weights=own,
            )
            made, hit = make_engine(request, store)
        except Cancelled:
            raise
        except (DiskFull, CacheBusy, FetchError) as error:
            hindered = error
            attempts.append(_attempt(candidate, error))
            continue
        except (RefitError, DeviceError, BundleError, RuntimeMissing) as error:
            if isinstance(error, DeviceError):
                # A GPU that fell off the bus leaves no trace in what detection is remembered by.
                detect(home=home, fresh=True)
            failures.remember(key, error, context)
            attempts.append(_attempt(candidate, error))
            first = first or error
            continue
        failures.forget(key)
        return _engine(made, candidate, selection, attempts, form, hit=hit)
    if hindered is not None:
        raise hindered
    if first is not None:
        raise first
    from refit_agent.selection.nothing_fits import nothing_fits

    raise nothing_fits(opened.manifest, wanted, selection, machine, target)


def _require_sound(deadline_s: float, form: str) -> None:
    """Refuse what would be noticed late, or never: a hit asks for neither."""
    if not isinstance(deadline_s, (int, float)) or not deadline_s > 0:
        raise SettingInvalid(name="deadline_s", value=deadline_s, wanted="a number of seconds above 0")
    if form not in ("plan", "onnx"):
        raise SettingInvalid(name="form", value=form, wanted="'plan' or 'onnx'")


class _Options(NamedTuple):
    """What the caller asked for, as the service is to be told."""

    profile: str | None
    target: str | None
    weights: str | os.PathLike[str] | None
    deadline_s: float
    retry_failed: bool
    background: bool
    public_keys: Sequence[str] | None
    form: str


def _by_service(
    bundle: Bundle,
    model: Model,
    selection: Selection,
    machine: Machine,
    options: _Options,
    store: Store,
    meter: ProgressMeter,
    cancelled: Callable[[], bool],
    *,
    insist: bool,
) -> Engine | None:
    """The engine, made by the service; None if there is none that helps."""
    # Imported late, as all that a hit does not need.
    from refit_agent.by_service import common_target, made_by_service, service_to_ask

    path = service_to_ask(selection.candidates, insist=insist)
    if not path:
        return None
    from refit_agent.client.messages import EnsureRequest

    request = EnsureRequest(
        bundle=bundle.root,
        model=model.name,
        profile=options.profile,
        target=common_target(selection.candidates, options.target),
        weights=None if options.weights is None else os.path.abspath(options.weights),
        deadline_s=options.deadline_s,
        retry_failed=options.retry_failed,
        background=options.background,
        pid=os.getpid(),
        public_keys=None if options.public_keys is None else tuple(options.public_keys),
    )
    keys = [(engine_key(engine_facts(c, model, selection.profile, machine)), c) for c in selection.candidates]
    made = made_by_service(path, request, keys, store, meter, cancelled, insist=insist)
    if made is None:
        return None
    attempts = list(made.result.explanation.attempts)
    return _engine(made.found, made.candidate, selection, attempts, options.form, hit=made.result.hit)


def foreign_code(candidate: Candidate, bundle: Bundle) -> PlanRefused | None:
    """Why the candidate may not be used: it brings code of its own, and the app has not vouched for the bundle."""
    engine = candidate.engine
    if not (engine.host_code or engine.lean_runtime) or bundle.signed:
        return None
    detail = "it brings code of its own to run, which only a bundle may that is signed by a key which the caller gives"
    return PlanRefused(
        runtime=candidate.runtime.module, version=candidate.runtime.version, path=engine.path, detail=detail
    )


def _attempt(candidate: Candidate, error: RefitAgentError) -> Attempt:
    return Attempt(engine=candidate.engine.path, target=candidate.target, code=error.code, message=str(error))


def _engine(
    found: tuple[Entry, str, Lease],
    candidate: Candidate,
    selection: Selection,
    attempts: list[Attempt],
    form: str,
    *,
    hit: bool,
) -> Engine:
    entry, folder, lease = found
    if form == "onnx" and not entry.onnx:
        lease.close()
        raise SettingInvalid(
            name="form", value=form, wanted="a form in which this engine can be had: it was not made from an ONNX model"
        )
    return Engine(
        folder=folder,
        name=entry.onnx if form == "onnx" else entry.plan,
        key=entry.key,
        runtime=entry.runtime,
        runtime_version=entry.runtime_version,
        target=candidate.target,
        profile=selection.profile,
        hit=hit,
        check=entry.check,
        explanation=Explanation(
            engine=candidate.engine.path,
            tier=candidate.tier,
            chosen=candidate.reason,
            attempts=tuple(attempts),
            refusals=selection.refusals,
        ),
        lease=lease,
    )


def explain(
    bundle: str | os.PathLike[str],
    model: str,
    profile: str | None = None,
    target: str | None = None,
    public_keys: Sequence[str] | None = None,
) -> tuple[Selection, Machine]:
    """What `ensure_engine` would choose from, best first, and every refusal; nothing is made or opened."""
    opened = Bundle.open(bundle, public_keys)
    machine = detect()
    return select(opened.manifest, opened.model(model), profile, machine, target), machine
