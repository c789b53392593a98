"""A worker whose job is the input: it ends with an event that its parent understands, whatever it was asked.

Paths are moved below a folder that has a small bundle in it, and URLs lead nowhere: what a job may read and write is
the business of the parent, which is the same program. What the bundle's files hold depends on who made them, so the
corpus names their hashes by `stand_in`, and a size of 0 beside it means theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime

from refit_agent import worker
from refit_agent.refit.messages import Done, Failed, FetchJob, Job, encoder, event_decoder, job_decoder

from .. import mutators, sandbox

_FOLDER = sandbox.folder("jobs")
_PATHS = ("staging", "plan", "path", "target", "lean_runtime", "module_folder")
_SIZES = ("size", "plan_size")
_OUT = os.open(os.devnull, os.O_WRONLY)

sys.path.insert(0, str(Path(__file__).parents[2]))
from bundles import make_bundle  # noqa: E402

make_bundle(_FOLDER / "bundle")


def stand_in(path: str) -> str:
    """What the corpus says in the place of the hash of the bundle's file at ``path``."""
    return hashlib.sha256(path.encode()).hexdigest()


_REAL = {
    stand_in(str(path.relative_to(_FOLDER / "bundle"))): (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        path.stat().st_size,
    )
    for path in (_FOLDER / "bundle").rglob("*")
    if path.is_file()
}


def check(data: bytes) -> bool:
    """Decode ``data`` as a worker does, and do the job."""
    try:
        job = job_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    assert job_decoder.decode(encoder.encode(job)) == job, "written and read again it is another one"
    for leftover in (_FOLDER / "staging").glob("*"):
        leftover.unlink()
    with contextlib.redirect_stderr(io.StringIO()):  # its log
        event = worker._perform(_OUT, job_decoder.decode(encoder.encode(_confined(job))))
    assert isinstance(event, (Done, Failed))
    line = encoder.encode(event)
    assert b"\n" not in line
    assert event_decoder.decode(line) == event or "nan" in line.decode(), "the parent would read another event"
    return isinstance(event, Done)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One document turned into another."""
    return mutators.json_document(data, rng)


def _confined(job: Job | FetchJob) -> Job | FetchJob:
    document = _moved(msgspec.to_builtins(job))
    document["staging"] = str(_FOLDER / "staging")
    (_FOLDER / "staging").mkdir(exist_ok=True)
    if isinstance(job, FetchJob):
        document["url"] = "nowhere:" + job.url
        return msgspec.convert(document, FetchJob)
    # Importing is running: what may be imported is the parent's choice, from what it found on this machine.
    document["module"] = "onnxruntime" if job.runtime == "onnxruntime" else "no_such_module_of_anybody"
    document |= {"module_folder": "", "module_version": onnxruntime.__version__}
    return msgspec.convert(document, Job)


def _moved(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        if value.get("sha256") in _REAL:
            sha256, size = _REAL[value["sha256"]]
            real = {"sha256": sha256, "plan_sha256": sha256}
            value = {
                k: real[k] if k in real and v in _REAL else size if v == 0 and k in _SIZES else v
                for k, v in value.items()
            }
        inside = "sha256" in value  # a file of the manifest has a path below the bundle's folder, which stays
        return {key: _moved(item, "" if inside and key == "path" else key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(item, "path" if name == "ranks" and isinstance(item, str) else name) for item in value]
    if isinstance(value, str) and name in _PATHS:
        parts = [part for part in value.replace("\0", "").split("/") if part not in ("", ".", "..")]
        return os.path.join(_FOLDER, *parts)
    return value
