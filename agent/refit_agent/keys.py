"""The cache key: a digest of everything that decides an engine's bytes, or whether they may be used here."""

from __future__ import annotations

import hashlib

import msgspec

from refit_agent.cache.entry import SCHEMA
from refit_agent.machine import Machine
from refit_agent.manifest import Golden, Model
from refit_agent.selection import Candidate


def engine_facts(candidate: Candidate, model: Model, profile: str | None, machine: Machine) -> dict[str, str]:
    """What the key is made from, by name.

    Hashes are the manifest's: on a hit no file of the bundle is read, and no entry is published under
    a hash that its files did not have. External data counts with its paths, since the ONNX file refers
    to it by path. Names of app, model and bundle do not count: two apps with the same plan and weights
    share one entry, provided that both have golden data for it or neither has: an app that asks for a
    check must not be given what was never checked.
    """
    engine, gpu = candidate.engine, candidate.gpu
    facts = {
        "entry_schema": str(SCHEMA),
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
        "check": "golden" if _fitting(model, profile) else "smoke" if candidate.needs_check else "none",
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


def checks_digest(candidate: Candidate, model: Model, profile: str | None) -> str:
    """Names what a finished engine is compared with: golden data and tolerances. Not part of the key."""
    data = (_fitting(model, profile), candidate.engine.tolerance)
    return _digest(msgspec.json.encode(data, order="deterministic"))


def _fitting(model: Model, profile: str | None) -> list[Golden]:
    return [g for g in model.golden if g.profile is None or g.profile == profile]


def engine_key(facts: dict[str, str]) -> str:
    """64 hexadecimal digits: the SHA-256 of the facts in their canonical JSON form."""
    return _digest(msgspec.json.encode(facts, order="sorted"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
