"""The files that a job reads: which they are, that they are what the manifest lists, and that they stay so meanwhile."""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from refit_agent.digest import Identity, identity_of, require_identity, verify_file
from refit_agent.errors import BundleFileMismatch, WeightUnsupported
from refit_agent.errors.bundle import file_error
from refit_agent.manifest import Plan
from refit_agent.refit.messages import Job, Located
from refit_agent.weights import OnnxWeights
from refit_agent.weights.safetensors import SafetensorsWeights


def weight_files(job: Job) -> tuple[Located, ...]:
    """What the weights are in: the ONNX file and then its external data, or the safetensors files."""
    return job.safetensors if job.weights is None else (job.weights, *job.external)


def golden_files(job: Job) -> Iterator[Located]:
    """What the check run reads."""
    for data in job.golden:
        yield from data.inputs.values()
        yield from data.outputs.values()
    for inputs in job.smoke_inputs:
        yield from inputs.values()


def identities(job: Job) -> dict[str, tuple[int, ...]]:
    """What tells each of the bundle's files from another one that takes its name, or from itself after a change; by path.

    Raises:
        BundleFileMissing, BundleFileUnreadable.
    """
    paths = [job.plan, *job.ranks, *(f.path for f in (*weight_files(job), *job.base, *golden_files(job)))]
    if job.lean_runtime:
        paths.append(job.lean_runtime)
    if job.config is not None:
        paths.append(job.config.path)
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            s = os.stat(path)
        except OSError as error:
            raise file_error(path, error) from error
        found[path] = identity_of(s)
    return found


def check_of(file: Located, before: Mapping[str, Identity]) -> Callable[[], None]:
    """Compares the file's size and SHA-256 with the manifest's when called; raises as `digest.verify_file`."""
    return partial(verify_file, file.path, file.ref, expected=before[file.path])


def with_own_runtime(job: Job, before: Mapping[str, Identity]) -> Job:
    """The job with a copy of the lean runtime that the bundle brings, and the copy's hash compared: the file itself
    may be another one when it is loaded."""
    if job.engine.lean_runtime is None:
        return job
    require_identity(job.lean_runtime, os.stat(job.lean_runtime), before[job.lean_runtime])
    copy = f"{job.staging}.lean"
    shutil.copyfile(job.lean_runtime, copy)
    try:
        verify_file(copy, job.engine.lean_runtime)
    except BundleFileMismatch as error:
        raise BundleFileMismatch(**{**error.facts, "path": job.lean_runtime}) from error
    return msgspec.structs.replace(job, lean_runtime=copy)


def open_weights(job: Job, plan: Plan) -> OnnxWeights | SafetensorsWeights:
    """Where the plan takes its weights from."""
    if job.weights is not None:
        return open_model((job.weights, *job.external), own=bool(job.base))
    places = {f.ref.path: f.path for f in job.safetensors}
    return SafetensorsWeights(*(places[path] for path in plan.safetensors or places))


def open_model(files: Sequence[Located], *, own: bool = False) -> OnnxWeights:
    """The model whose ONNX file is the first, with its external files, which need not be beside it.

    The caller's own weights are where they say that they are; their names are not the manifest's.
    """
    model, *external = files
    folder = posixpath.dirname(model.ref.path) or "."
    elsewhere = {} if own else {posixpath.relpath(f.ref.path, folder): f.path for f in external}
    return OnnxWeights(model.path, elsewhere=elsewhere)


def require_unchanged(weights: OnnxWeights | SafetensorsWeights, before: Mapping[str, Identity]) -> None:
    """The maps that weights are taken from are of the files whose hashes are compared, whatever has their names."""
    if isinstance(weights, SafetensorsWeights):
        return  # by the comparison at the end alone
    require_identity(str(weights.path), weights.opened, before[str(weights.path)])
    real = {os.path.realpath(path): identity for path, identity in before.items()}
    for path, opened in weights.external_opened().items():
        if str(path) in real and real[str(path)][:3] != opened:
            raise BundleFileMismatch(path=str(path), detail="it changed while the engine was made")


def require_checked_files(weights: OnnxWeights, job: Job) -> None:
    """Weights come from files that the manifest lists, whose hashes are checked and stand in the key, and no others."""
    checked = {os.path.realpath(f.path) for f in weight_files(job)}
    for file in weights.external_files():
        if os.path.realpath(file) not in checked:
            detail = f"it lies in {file}, which the manifest does not list among the model's external files"
            raise WeightUnsupported(name="a weight", path=str(weights.path), detail=detail)
