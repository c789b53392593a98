"""What the page shows, as documents in parts: the quick ones of this moment, and the survey, which reads files."""

from __future__ import annotations

import os

import msgspec

from refit_agent import __version__
from refit_agent.bundle import Bundle
from refit_agent.cli.explain_document import candidate_document
from refit_agent.cli.output import describe
from refit_agent.engine import Attempt
from refit_agent.errors import RefitAgentError
from refit_agent.machine import Machine
from refit_agent.manifest import Model
from refit_agent.provision import foreign_code
from refit_agent.selection import Candidate, Selection, select
from refit_service.lookup import machine_now
from refit_service.protocol import BundleRecord, JobRecord, WarmRecord
from refit_service.state import Service, cache_use

#: The code of what `Attempts.begin` notes.
_NOTED_BEFORE = "service-stopped"
#: A part of the page: its name, and what stands in it.
Parts = dict[str, object]


class ShownJob(JobRecord, frozen=True, kw_only=True):
    """A job with the words of its phase, the app that it is for ("" if nobody registered it), and the seconds left."""

    text: str = ""
    app: str = ""
    eta_s: float | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of GPU, or the CPU, gets of a model: ``chosen`` is a candidate as `explain` has it, None when all
    failed before, as ``attempts`` tell; ``rest`` are those that would do as well."""

    chosen: dict[str, object] | None
    attempts: tuple[Attempt, ...]
    rest: tuple[dict[str, object], ...]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine was not taken, for these targets (none: for any)."""

    engine: str
    reason: str
    targets: tuple[str, ...]


class ShownModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model; without ``choices`` nothing fits this machine, or ``error`` says what is wrong."""

    name: str
    choices: tuple[Choice, ...] = ()
    refusals: tuple[Refused, ...] = ()
    error: dict[str, object] | None = None


class ShownBundle(msgspec.Struct, frozen=True, kw_only=True):
    """One registered bundle; ``error`` stands in place of the models of one that cannot be read."""

    record: BundleRecord
    models: tuple[ShownModel, ...] = ()
    error: dict[str, object] | None = None


# ---------------------------------------------------------------- this moment


def quick_parts(service: Service) -> Parts:
    """What may change from one moment to the next. Takes microseconds; for the event loop's thread."""
    names = {record.path: record.name for record in service.registry.records()}
    return {
        "service": {
            "version": __version__,
            "pid": os.getpid(),
            "started": service.started,
            "cache": service.home.cache,
            "state": service.home.state,
        },
        "jobs": _jobs(service, names),
        "background": _background(service),
        "errors": tuple(service.tally.errors)[::-1],
    }


def _jobs(service: Service, names: dict[str, str]) -> tuple[ShownJob, ...]:
    running = service.jobs.running
    shown = [ShownJob(**msgspec.structs.asdict(record)) for record in service.jobs.records()]
    if running is not None and shown:
        event = running.event()
        app = names.get(running.wish.bundle, "")
        shown[0] = msgspec.structs.replace(shown[0], text=event.text, eta_s=event.eta_s, app=app)
    return tuple(shown)


def _background(service: Service) -> WarmRecord:
    """What the background work does. An attempt is noted as failed before it begins; here it is not, while it lasts."""
    record, running = service.warmer.record(), service.jobs.running
    if running is None:
        return record
    doing = {(w.wish.bundle, w.wish.model, w.wish.target, _NOTED_BEFORE) for w in running.waiters}
    failures = tuple(f for f in record.failures if (f.bundle, f.model, f.target, f.code) not in doing)
    return msgspec.structs.replace(record, failures=failures)


# ---------------------------------------------------------------- the survey


def survey(service: Service, records: tuple[BundleRecord, ...]) -> Parts:
    """Machine, cache, and the bundles of these records. Reads manifests and the cache's folders, and may ask the
    driver: for a thread."""
    parts: Parts = {}
    try:
        parts["cache"] = cache_use(service.store)
    except RefitAgentError as error:
        parts["cache"] = {"error": describe(error)}
    try:
        machine = machine_now(service.home)
    except RefitAgentError as error:
        return parts | {"machine": {"error": describe(error)}, "bundles": ()}
    parts["machine"] = machine
    parts["bundles"] = tuple(_bundle(record, machine) for record in records)
    return parts


def _bundle(record: BundleRecord, machine: Machine) -> ShownBundle:
    try:
        opened = Bundle.open(record.path, record.public_keys)
    except RefitAgentError as error:
        return ShownBundle(record=record, error=describe(error))
    return ShownBundle(record=record, models=tuple(_model(opened, model, machine) for model in opened.manifest.models))


def _model(opened: Bundle, model: Model, machine: Machine) -> ShownModel:
    try:
        selection = select(opened.manifest, model, None, machine)
        choices = tuple(_choice(opened, group, model, selection, machine) for group in _groups(selection, machine))
    except RefitAgentError as error:
        return ShownModel(name=model.name, error=describe(error))
    return ShownModel(name=model.name, choices=choices, refusals=_refusals(selection))


def _groups(selection: Selection, machine: Machine) -> list[list[Candidate]]:
    """The candidates for each kind of GPU that has one, with the CPU's behind them, which come next if all those
    fail; the CPU's alone where no GPU has one."""
    kinds: dict[tuple[str, str], str] = {}
    for gpu in machine.gpus:
        kinds.setdefault((gpu.name, gpu.compute_capability), f"cuda:{gpu.index}")
    on_cpu = [c for c in selection.candidates if c.gpu is None]
    on_gpus = [[c for c in selection.candidates if c.target == target] for target in kinds.values()]
    groups = [group + on_cpu for group in on_gpus if group]
    return groups or ([on_cpu] if on_cpu else [])


def _choice(opened: Bundle, group: list[Candidate], model: Model, selection: Selection, machine: Machine) -> Choice:
    """What `ensure_engine` would take: the first that has not failed before."""
    attempts: list[Attempt] = []
    documents = [candidate_document(c, model, selection.profile, machine) for c in group]
    for number, (candidate, document) in enumerate(zip(group, documents, strict=True)):
        foreign = foreign_code(candidate, opened)
        failed = document["failed_before"] if foreign is None else describe(foreign)
        if failed is None or (foreign is None and document["cached"]):
            return Choice(chosen=document, attempts=tuple(attempts), rest=tuple(documents[number + 1 :]))
        assert isinstance(failed, dict)
        attempts.append(
            Attempt(
                engine=candidate.engine.path,
                target=candidate.target,
                code=str(failed["code"]),
                message=str(failed["message"]),
            )
        )
    return Choice(chosen=None, attempts=tuple(attempts), rest=())


def _refusals(selection: Selection) -> tuple[Refused, ...]:
    """Each reason once, whatever the number of equal GPUs that it holds for."""
    targets: dict[tuple[int, str, str], list[str]] = {}
    for refusal in selection.refusals:
        names = targets.setdefault((refusal.number, refusal.engine_path, refusal.reason), [])
        if refusal.target:
            names.append(refusal.target)
    return tuple(
        Refused(engine=engine, reason=reason, targets=tuple(names)) for (_, engine, reason), names in targets.items()
    )
