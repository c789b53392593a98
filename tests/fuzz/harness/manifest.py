"""The decoder of bundle.json: what it takes keeps the promises that the rest of the code builds on."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import PureWindowsPath
from typing import Any

import jsonschema
import msgspec

from refit_agent.errors import BundleError, ManifestInvalid, RefitAgentError
from refit_agent.machine import Gpu, InstalledRuntime, Machine, version_tuple
from refit_agent.manifest import Manifest, decode_manifest, unknown_fields
from refit_agent.manifest.schema import manifest_schema
from refit_agent.selection import select

from .. import mutators

_SCHEMA = jsonschema.Draft202012Validator(manifest_schema())
_GPUS = tuple(
    Gpu(index=i, name=name, uuid=f"GPU-{i}", compute_capability=cc, memory_total=1 << 34)
    for i, (name, cc) in enumerate([("NVIDIA H100 80GB HBM3", "9.0"), ("NVIDIA L4", "8.9"), ("NVIDIA L4", "8.9")])
)
_MACHINES = [
    Machine(
        os=system,  # type: ignore[arg-type]
        arch="x86_64",
        gpus=gpus,
        driver="580.95.05" if gpus else "",
        runtimes=tuple(
            InstalledRuntime(module=module, version=version, cuda_major=13)
            for module, version in (("tensorrt_lean", "10.16.1.11"), ("tensorrt_rtx", "1.7.1.116"), ("onnxruntime", "1.31.1"))
        ),
    )
    for system in ("linux", "windows")
    for gpus in (_GPUS, ())
]  # fmt: skip


def check(data: bytes) -> bool:
    """Decode ``data`` as a bundle, and as a draft of one."""
    draft = _decoded(data, draft=True)
    whole = _decoded(data, draft=False)
    if draft is None:
        assert whole is None, "a bundle that is no draft"
        return False
    document = json.loads(data)
    fault = next(_SCHEMA.iter_errors(document), None)
    assert fault is None, f"not valid by the schema: {fault and fault.message}"
    _look(draft)
    with contextlib.suppress(ManifestInvalid):
        assert all(where.startswith("$.") for where in unknown_fields(data))
    again = msgspec.json.encode(draft)
    assert _decoded(again, draft=True) == draft, "written and read again it is another one"
    if whole is not None:
        _use(whole)
    return whole is not None


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One document turned into another."""
    return mutators.json_document(data, rng)


def _decoded(data: bytes, *, draft: bool) -> Manifest | None:
    try:
        return decode_manifest(data, "bundle.json", draft=draft)
    except BundleError as error:
        assert str(error)
        return None


def _look(manifest: Manifest) -> None:
    """What every type promises of itself, looked at by other means."""
    assert manifest.schema == 1
    assert manifest.app.id == manifest.app.id.strip() and manifest.app.id.isascii()
    assert len({model.name for model in manifest.models}) == len(manifest.models)
    for model in manifest.models:
        for file in model.files():
            _require_confined(file.path)
            assert len(file.sha256) == 64 and int(file.sha256, 16) >= 0
            assert 0 <= file.size <= 1 << 50
            assert file.url is None or (file.url.isascii() and not any(c.isspace() for c in file.url))
        for engine in model.engines:
            for text in (engine.built_with, engine.min_driver, *engine.compute_capabilities):
                assert text is None or _is_version(text), repr(text)


def _require_confined(path: str) -> None:
    assert os.path.normpath(f"/bundle/{path}").startswith("/bundle/"), path
    windows = PureWindowsPath(path)
    assert not windows.anchor and not windows.drive and ".." not in windows.parts, path
    assert not any(ord(c) < 32 or c in ":\\" for c in path), repr(path)


def _is_version(text: str) -> bool:
    parts = version_tuple(text)
    return len(parts) >= 2 and text.isascii() and len(text) < 60 and len(parts) == text.count(".") + 1


def _use(manifest: Manifest) -> None:
    """What is asked of every bundle on every machine."""
    for model in manifest.models:
        assert len(model.weights_digest()) == 64
        model.fitting_golden(model.default_profile)
        for machine in _MACHINES:
            try:
                found: Any = select(manifest, model, None, machine)
            except RefitAgentError as error:
                assert str(error)
                continue
            assert {e.number for e in (*found.candidates, *found.refusals)} == set(range(len(model.engines)))
            for refusal in found.refusals:
                assert refusal.reason
