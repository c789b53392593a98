"""Bundles that go or change while they are used: the engine that was asked for or a clear error, never a mix."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bundles import MODEL, SIZE, make_bundle
from refit_agent.cache.store import Store

from .running import Running, read_answer, until

#: What an app may be told when its bundle has changed under the refit.
_BUNDLE_ERRORS = {"bundle-missing", "bundle-file-missing", "bundle-file-mismatch", "plan-invalid"}


def results_of(path: Path | str) -> np.ndarray[Any, Any]:
    """What a model or a finished engine computes."""
    x = np.random.default_rng(3).standard_normal((4, SIZE), np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def same(path: Path | str, wanted: np.ndarray[Any, Any]) -> bool:
    return bool(np.allclose(results_of(path), wanted, rtol=1e-4, atol=1e-4))


def swap(bundle: Path, other: Path) -> None:
    """Put the other bundle into this one's place, as an installer does that unpacks beside and renames."""
    bundle.rename(bundle.with_name("before"))
    other.rename(bundle)


def overwrite(bundle: Path, other: Path) -> None:
    """Write the other bundle's files over this one's, into the very files, manifest last."""
    names = sorted((p.relative_to(other) for p in other.rglob("*") if p.is_file()), key=lambda p: p.name == "bundle.json")  # fmt: skip
    for name in names:
        (bundle / name).write_bytes((other / name).read_bytes())


def remove(bundle: Path, other: Path) -> None:
    """Delete the bundle."""
    shutil.rmtree(bundle)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A bundle of the same model with other weights."""
    return make_bundle(tmp_path / "other", seed=7)


@pytest.mark.parametrize("change", [swap, overwrite, remove])
def test_a_bundle_that_changes_during_its_refit(
    start: Callable[..., Running],
    slow_runtime: Path,
    bundle: Path,
    other: Path,
    change: Callable[[Path, Path], None],
) -> None:
    """Its waiter gets the engine that was asked for or an error; the next one gets what is there now."""
    old, new = results_of(bundle / "models/mlp.onnx"), results_of(other / "models/mlp.onnx")
    assert not np.allclose(old, new)
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    until(lambda: (slow_runtime / "count").exists())
    asked = service.status["jobs"][0]["key"]
    change(bundle, other)
    second = service.begin(bundle, MODEL)
    if change is not remove:
        until(lambda: sum(job["waiters"] for job in service.status["jobs"]) == 2)
    (slow_runtime / "go").touch()
    first = read_answer(sock).lines[-1]
    sock.close()
    if first["event"] == "result":
        assert first["key"] == asked
        assert same(first["path"], old)
    else:
        assert first["code"] in _BUNDLE_ERRORS or first["code"] == "refit-error", first
        assert str(bundle) in first["detail"]
    answer = read_answer(second)
    second.close()
    if change is remove:
        assert answer.document["code"] == "bundle-missing"
    else:
        last = answer.lines[-1]
        assert last["event"] == "result", last
        assert last["key"] != asked
        assert same(last["path"], new)
    until(lambda: service.status["idle"])
    entries = service.ask("GET", "/v1/cache").document["entries"]
    for entry in entries:
        found = service.home / "cache/engines" / entry["key"] / "model.onnx"
        assert same(found, old if entry["key"] == asked else new)


@pytest.mark.parametrize("change", [swap, overwrite, remove])
def test_a_bundle_that_changes_before_its_turn(
    start: Callable[..., Running],
    slow_runtime: Path,
    sound_bundle: Path,
    bundle: Path,
    other: Path,
    tmp_path: Path,
    change: Callable[[Path, Path], None],
) -> None:
    """An app that asked before the update is not given the new one's engine, which may take other inputs."""
    first = make_bundle(tmp_path / "first", seed=5)
    service = start(path=[slow_runtime])
    running = service.begin(first, MODEL)
    until(service.workers)
    queued = service.begin(bundle, MODEL)
    until(lambda: len(service.status["jobs"]) == 2)
    change(bundle, other)
    (slow_runtime / "go").touch()
    assert read_answer(running).lines[-1]["event"] == "result"
    last = read_answer(queued).lines[-1]
    assert (last["event"], last["status"]) == ("error", 422)
    assert last["code"] == ("bundle-missing" if change is remove else "bundle-file-mismatch")
    for sock in (running, queued):
        sock.close()
    if change is not remove:
        assert "Ask again" in last["hint"]
        assert service.ensure(bundle, MODEL).lines[-1]["event"] == "result"


def test_own_weights_go_with_the_bundle_that_was_asked_for(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, other: Path, tmp_path: Path
) -> None:
    """Their key is not known before they are read, so nothing else would tell."""
    own = Path(shutil.copy(bundle / "models/mlp.onnx", tmp_path / "own.onnx"))
    service = start(path=[slow_runtime])
    running = service.begin(make_bundle(tmp_path / "first", seed=5), MODEL)
    until(service.workers)
    queued = service.begin(bundle, MODEL, weights=str(own))
    until(lambda: len(service.status["jobs"]) == 2)
    swap(bundle, other)
    (slow_runtime / "go").touch()
    assert read_answer(running).lines[-1]["event"] == "result"
    assert read_answer(queued).lines[-1]["code"] == "bundle-file-mismatch"
    for sock in (running, queued):
        sock.close()


@pytest.mark.parametrize("change", [swap, overwrite, remove])
def test_a_leased_engine_outlives_its_bundle(
    service: Running, bundle: Path, other: Path, change: Callable[[Path, Path], None]
) -> None:
    """It computes what it did, and is not evicted; without its lease it is."""
    old = results_of(bundle / "models/mlp.onnx")
    made = service.ensure(bundle, MODEL, ttl_s=600).lines[-1]
    assert same(made["path"], old)
    change(bundle, other)
    if change is not remove:
        new = service.ensure(bundle, MODEL, ttl_s=600).lines[-1]
        assert new["key"] != made["key"]
        assert same(new["path"], results_of(bundle / "models/mlp.onnx"))
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == []
    assert service.ask("POST", f"/v1/leases/{made['lease']['id']}:renew", {}).status == 200
    assert same(made["path"], old)
    assert service.ask("DELETE", f"/v1/leases/{made['lease']['id']}").status == 204
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == [made["key"]]
    assert not os.path.exists(made["path"])


def test_a_registered_bundle_that_is_deleted_and_comes_back(
    start: Callable[..., Running], bundle: Path, other: Path, tmp_path: Path
) -> None:
    """Everything says that it is missing, and nothing else suffers; the new one's engine is made, the old one stays."""
    service = start(REFIT_AGENT_WARM="1")
    record = service.ask("POST", "/v1/bundles", {"path": str(bundle)}).document
    until(lambda: service.status["cache"]["entries"] == 1)
    old = service.ensure(record["id"], MODEL, ttl_s=600).document
    shutil.rmtree(bundle)
    assert service.ensure(record["id"], MODEL).document["code"] == "bundle-missing"
    explained = service.ask("GET", f"/v1/explain?bundle={record['id']}")
    assert (explained.status, explained.document["code"]) == (422, "bundle-missing")
    assert service.status["bundles"] == 1
    # Something else makes the warming look at its bundles again.
    third = make_bundle(tmp_path / "third", seed=11)
    service.ask("POST", "/v1/bundles", {"path": str(third)})
    failures = until(lambda: [f for f in service.status["warm"]["failures"] if f["code"] != "service-stopped"])
    assert [(f["bundle"], f["code"]) for f in failures] == [(str(bundle), "bundle-missing")]
    until(lambda: service.status["cache"]["entries"] == 2)
    again = service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    assert (again.status, again.document["code"]) == (422, "bundle-missing")

    other.rename(bundle)
    assert service.ask("POST", "/v1/bundles", {"path": str(bundle)}).document["id"] == record["id"]
    until(lambda: service.status["cache"]["entries"] == 3)
    until(lambda: service.status["warm"] == {"state": "idle", "reason": "", "failures": []})
    new = service.ensure(record["id"], MODEL).document
    assert new["hit"] and new["key"] != old["key"]
    assert same(new["path"], results_of(bundle / "models/mlp.onnx"))
    assert isinstance(Store(str(service.home / "cache")).lookup(old["key"]), tuple)


def test_a_bundle_deleted_during_warming_is_made_ready_when_it_comes_back(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path, tmp_path: Path
) -> None:
    """At once, not after the wait that follows a failure."""
    kept = Path(shutil.copytree(bundle, tmp_path / "kept"))
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(service.workers)
    shutil.rmtree(bundle)
    (slow_runtime / "go").touch()
    failures = until(lambda: [f for f in service.status["warm"]["failures"] if f["code"] != "service-stopped"])
    assert failures[0]["bundle"] == str(bundle)
    shutil.copytree(kept, bundle)
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(lambda: service.status["cache"]["entries"] == 1)
    until(lambda: service.status["warm"] == {"state": "idle", "reason": "", "failures": []})
