"""A worker's job for a bundle with one engine, without the cache and the selection around it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from refit_agent.bundle import Bundle
from refit_agent.manifest import FileRef
from refit_agent.refit.messages import GoldenJob, Job, Located


def installed_version() -> str:
    """Version of the ONNX Runtime that a worker would import."""
    return importlib.metadata.version("onnxruntime")


def job_for(root: Path, staging: Path, **changes: Any) -> Job:
    """``changes`` replace fields of the job."""
    bundle = Bundle.open(root)
    model = bundle.manifest.models[0]

    def located(ref: FileRef) -> Located:
        return Located(path=str(root / ref.path), ref=ref)

    staging.mkdir(parents=True, exist_ok=True)
    engine = model.engines[0]
    facts: dict[str, Any] = {
        "staging": str(staging),
        "plan": str(root / engine.path),
        "engine": engine,
        "weights": located(model.onnx),
        "external": tuple(located(ref) for ref in model.external),
        "runtime": "onnxruntime",
        "module": "onnxruntime",
        "module_folder": "",
        "module_version": installed_version(),
        "gpu": "",
        "golden": tuple(
            GoldenJob(
                inputs={name: located(ref) for name, ref in data.inputs.items()},
                outputs={name: located(ref) for name, ref in data.outputs.items()},
                tolerance=data.tolerance,
            )
            for data in model.golden
        ),
    }
    return Job(**{**facts, **changes})
