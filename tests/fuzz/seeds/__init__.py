"""The generated part of the corpus: small real things of every kind, one module for several harnesses of a kind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .. import corpus

sys.path.insert(0, str(Path(__file__).parents[2]))

from . import documents, models, plans, requests

#: Harness -> its inputs by label.
_MAKERS: dict[str, Callable[[], Mapping[str, bytes]]] = {
    "onnx_walker": models.onnx_files,
    "external_data": models.external_places,
    "manifest": documents.manifests,
    "plan_header": plans.headers,
    "safetensors_index": models.safetensors_files,
    "worker_events": documents.worker_events,
    "worker_jobs": documents.worker_jobs,
    "http_requests": requests.requests,
    "http_answers": requests.answers,
    "bundle_signature": documents.signatures,
    "settings_file": documents.settings_files,
}


def write(names: Iterable[str]) -> int:
    """Write the seeds of these harnesses in the place of those that are there."""
    for name in names:
        folder = corpus.ROOT / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        made = _MAKERS[name]()
        for label, data in made.items():
            (folder / f"seed-{label}").write_bytes(data)
        print(f"{name:20} {len(made):4} seeds, {sum(map(len, made.values())):7} bytes")
    return 0
