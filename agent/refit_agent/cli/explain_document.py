"""What would be chosen from a bundle, and why not the rest, as one JSON document: for `explain` and for the service."""

from __future__ import annotations

import os
from collections.abc import Sequence

from refit_agent import paths
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.cli import output
from refit_agent.errors import RefitAgentError, SelectionError
from refit_agent.failures import Failures
from refit_agent.gpu.detect import detect
from refit_agent.keys import attempt_context, engine_facts, engine_key
from refit_agent.machine import Machine
from refit_agent.manifest import Model
from refit_agent.selection import Candidate, Selection, select
from refit_agent.settings import DEFAULT_DEADLINE_S


def explain_document(
    bundle: str | os.PathLike[str],
    model: str | None = None,
    profile: str | None = None,
    target: str | None = None,
    public_keys: Sequence[str] | None = None,
) -> tuple[dict[str, object], int]:
    """The document, and the exit code that it deserves: an error of one model stands in its place.

    Raises:
        BundleError: the bundle itself is no good, or has no such model.
    """
    opened = Bundle.open(bundle, public_keys)
    models = opened.manifest.models if model is None else (opened.model(model),)
    machine = detect()
    documents: list[dict[str, object]] = []
    code = 0
    for one in models:
        try:
            selection = select(opened.manifest, one, profile, machine, target)
        except RefitAgentError as error:
            documents.append({"model": one.name, "error": output.describe(error)})
            code = code or error.exit_code
            continue
        if not selection.candidates:
            code = code or SelectionError.exit_code
        documents.append(_document(one, selection, machine))
    return {"bundle": opened.root, "app": opened.manifest.app.id, "models": documents}, code


def _document(model: Model, selection: Selection, machine: Machine) -> dict[str, object]:
    return {
        "model": model.name,
        "profile": selection.profile,
        "candidates": [candidate_document(c, model, selection.profile, machine) for c in selection.candidates],
        "refusals": [
            {"engine": r.engine_path, "target": r.target, "code": r.code, "reason": r.reason, "needs": r.need}
            for r in selection.refusals
        ],
    }


def candidate_document(candidate: Candidate, model: Model, profile: str | None, machine: Machine) -> dict[str, object]:
    """One candidate as it stands in a JSON document, with what is known of it from before, as far as that counts for
    a call with the usual deadline."""
    home = paths.home()
    key = engine_key(engine_facts(candidate, model, profile, machine))
    found = Store(home.cache).lookup(key, touch=False)
    if isinstance(found, tuple):
        found[2].close()
    failure = Failures(home.state).recall(key, attempt_context(candidate, model, profile), DEFAULT_DEADLINE_S)
    return {
        "engine": candidate.engine.path,
        "target": candidate.target,
        "gpu": None if candidate.gpu is None else candidate.gpu.name,
        "tier": candidate.tier,
        "reason": candidate.reason,
        "runtime": candidate.engine.runtime,
        "module": candidate.runtime.module,
        "module_version": candidate.runtime.version,
        "module_folder": candidate.runtime.folder,
        "key": key,
        "cached": isinstance(found, tuple),
        "cache_fault": found if isinstance(found, str) else "",
        "failed_before": None if failure is None else output.describe(failure),
    }
