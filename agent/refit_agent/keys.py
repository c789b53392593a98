"""The cache key: a digest of everything that decides an engine's bytes, or whether they may be used here."""

from __future__ import annotations

import hashlib

import msgspec

from refit_agent import __version__
from refit_agent.cache.entry import SCHEMA
from refit_agent.machine import Machine
from refit_agent.manifest import Model
from refit_agent.selection import Candidate

#: Raise it when the same plan and weights would give another engine: after a mended naming rule, fold, cast
#: or runtime, engines made by the old one must not be found any more.
RECIPE = 1


def engine_facts(candidate: Candidate, model: Model, profile: str | None, machine: Machine) -> dict[str, str]:
    """What the key is made from, by name.

    Hashes are the manifest's: on a hit no file of the bundle is read, and no entry is published under
    a hash that its files did not have. External data counts with its paths, since the ONNX file refers
    to it by path. Names of app, model and bundle do not count: two apps with the same plan and weights
    share one entry, provided that it is checked with the same golden data: an app must not be given what
    its own would have refused.
    """
    engine, gpu = candidate.engine, candidate.gpu
    facts = {
        "entry_schema": str(SCHEMA),
        "recipe": str(RECIPE),
        "plan": engine.plan_digest,
        "weights": model.onnx.sha256,
        "external": " ".join(f"{f.path}:{f.sha256}" for f in model.external),
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
    if engine.weight_map is not None:
        facts["weight_map"] = _digest(msgspec.json.encode(engine.weight_map, order="deterministic"))
    if engine.lean_runtime is not None:
        facts["lean_runtime"] = engine.lean_runtime.sha256
    if gpu is not None:
        facts["gpu"] = gpu.name
        facts["compute_capability"] = gpu.compute_capability
        facts["driver"] = machine.driver
    return facts


def attempt_context(candidate: Candidate, model: Model, profile: str | None) -> str:
    """Names all that a failure may be due to and that is not in the key: a remembered one counts only under
    the same. Manifest entry, golden data, and the agent itself, which may have learned to do better."""
    data = (__version__, RECIPE, candidate.engine, model.fitting_golden(profile))
    return _digest(msgspec.json.encode(data, order="deterministic"))


def engine_key(facts: dict[str, str]) -> str:
    """64 hexadecimal digits: the SHA-256 of the facts in their canonical JSON form."""
    return _digest(msgspec.json.encode(facts, order="sorted"))


def _check(candidate: Candidate, model: Model, profile: str | None) -> str:
    golden = model.fitting_golden(profile)
    if not golden:
        return "smoke" if candidate.needs_check else "none"
    return _digest(msgspec.json.encode((golden, candidate.engine.tolerance), order="deterministic"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
