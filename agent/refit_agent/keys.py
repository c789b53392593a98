"""The cache key: a digest of everything that decides an engine's bytes, or whether they may be used here."""

from __future__ import annotations

import hashlib
import os
import posixpath

import msgspec

from refit_agent import __version__
from refit_agent.cache.entry import SCHEMA
from refit_agent.machine import Machine
from refit_agent.manifest import Engine, Model
from refit_agent.selection import Candidate

#: Raise it when the same plan and weights would give another engine: after a mended naming rule, fold, cast
#: or runtime, engines made by the old one must not be found any more.
RECIPE = 2


def engine_facts(candidate: Candidate, model: Model, profile: str | None, machine: Machine) -> dict[str, str]:
    """What the key is made from, by name.

    Hashes are the manifest's: on a hit no file of the bundle is read, and no entry is published under
    a hash that its files did not have. External data counts with its paths as the ONNX file says them, seen from
    its own folder: one and the same ONNX file means other weights in another place. Names of app, model and bundle do not count: two apps with the same plan and weights
    share one entry, provided that it is checked with the same golden data: an app must not be given what
    its own would have refused.

    Of an engine of several plans all count, with the safetensors files that each takes its weights from.
    """
    engine, gpu = candidate.engine, candidate.gpu
    facts = {
        "entry_schema": str(SCHEMA),
        "recipe": str(RECIPE),
        "plan": engine.plan_digest,
        "weights": _safetensors(engine, model) if model.onnx is None else model.onnx.sha256,
        "external": _external(model),
        "runtime": engine.runtime,
        "module": candidate.runtime.module,
        "runtime_version": candidate.runtime.version,
        "version_compatible": str(engine.version_compatible),
        "refit": engine.refit,
        "host_code": str(engine.host_code),
        "include_refit": str(engine.include_refit),
        "check": _check(candidate, model, profile),
        "os": machine.os,
        "arch": machine.arch,
    }
    if engine.config is not None:
        facts["config"] = engine.config.sha256
        facts["ranks"] = " ".join(plan.plan_digest for plan in engine.ranks)
    if engine.weight_map is not None:
        facts["weight_map"] = _digest(msgspec.json.encode(engine.weight_map, order="deterministic"))
    if engine.lean_runtime is not None:
        facts["lean_runtime"] = engine.lean_runtime.sha256
    if gpu is not None:
        facts["gpu"] = gpu.name
        facts["compute_capability"] = gpu.compute_capability
        facts["driver"] = machine.driver
        facts["hardware_compatibility"] = engine.hardware_compatibility
    return facts


def attempt_context(candidate: Candidate, model: Model, profile: str | None) -> str:
    """Names all that a failure may be due to and that is not in the key: a remembered one counts only under
    the same. Manifest entry, golden data, the Python that the worker is told to run in, which may be none or
    lack the runtime, and the agent itself, which may have learned to do better."""
    python = os.environ.get("REFIT_AGENT_PYTHON", "")
    data = (__version__, RECIPE, candidate.engine, model.fitting_golden(profile), python)
    return _digest(msgspec.json.encode(data, order="deterministic"))


def engine_key(facts: dict[str, str]) -> str:
    """64 hexadecimal digits: the SHA-256 of the facts in their canonical JSON form."""
    return _digest(msgspec.json.encode(facts, order="sorted"))


def _external(model: Model) -> str:
    if model.onnx is None or not model.external:
        return ""
    folder = posixpath.dirname(model.onnx.path) or "."
    # As JSON: a name may hold whatever would be put between two of them.
    return _digest(msgspec.json.encode(sorted((posixpath.relpath(f.path, folder), f.sha256) for f in model.external)))


def _safetensors(engine: Engine, model: Model) -> str:
    """The hashes of what each plan takes its weights from: by commas within a plan, by spaces between them."""
    sets = (plan.safetensors or tuple(file.path for file in model.safetensors) for plan in engine.plans)
    digests = {file.path: file.sha256 for file in model.safetensors}
    return " ".join(",".join(digests[path] for path in paths) for paths in sets)


def _check(candidate: Candidate, model: Model, profile: str | None) -> str:
    if candidate.engine.config is not None:
        return "loaded"
    golden = model.fitting_golden(profile)
    loaded = "loaded " if candidate.needs_load else ""
    if not golden:
        return loaded + ("smoke" if candidate.needs_check else "none")
    return loaded + _digest(msgspec.json.encode((golden, candidate.engine.tolerance), order="deterministic"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
