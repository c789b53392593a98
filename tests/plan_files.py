"""Files that look like TensorRT plans from outside, records of builds, and small bundles to put them into."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from bundles import make_onnx
from refit_agent.authoring.build.messages import EngineWeight
from refit_agent.authoring.build.options import BuildOptions
from refit_agent.authoring.build.record import BuildRecord, RecordedFile, record_path, write_record
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_model import add_model
from refit_agent.manifest import FileRef
from refit_agent.refit.messages import Located

MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
#: What must be said of a plan of TensorRT 10 that has no record.
FACTS = EngineFacts(
    os=("linux",),
    compute_capabilities=("8.9",),
    version_compatible=True,
    precision="fp16",
    strip="plan",
    refit="any",
)
VERSION = (10, 16, 1, 11)


def plan_bytes(
    *, runtime: str = "tensorrt", version: tuple[int, ...] = VERSION, size: int = 40_000, weights: bool = False
) -> bytes:
    """A header and, behind it, what compresses well, or with ``weights`` what does not."""
    head = MAGIC[runtime] + bytes(12) + size.to_bytes(8, "little") + bytes(version)
    body = np.random.default_rng(sum(version)).integers(0, 256, size - len(head), np.uint8).tobytes()
    return head + (body if weights else body[: len(body) // 8].ljust(len(body), b"\0"))


def write_plan(path: Path, **how: Any) -> Path:
    """The plan of `plan_bytes` as a file."""
    path.write_bytes(plan_bytes(**how))
    return path


def one_model_bundle(root: Path, *, external: bool = False) -> Path:
    """A draft with the model "mlp" of `bundles.make_onnx` and no engine."""
    source = root.parent / f"{root.name}-source"
    source.mkdir()
    make_onnx(source / "mlp.onnx", external="w1.bin" if external else "")
    init_bundle(root, app_id="org.example.test", name="Test", version="1.0")
    add_model(root, "mlp", source / "mlp.onnx")
    return root


def recorded(path: Path) -> RecordedFile:
    data = path.read_bytes()
    return RecordedFile(path=str(path), size=len(data), sha256=hashlib.sha256(data).hexdigest())


def record_of(plan: Path, onnx: Path, **changes: Any) -> BuildRecord:
    """The record that a build of the plan from the model would leave, with these fields changed."""
    header = plan.read_bytes()[:28]
    file, model = recorded(plan), recorded(onnx)
    fields: dict[str, Any] = {
        "plan": file,
        "onnx": model,
        "source": model,
        "canonical": False,
        "runtime": "tensorrt",
        "built_with": ".".join(map(str, header[24:28])),
        "version_compatible": True,
        "host_code": False,
        "os": ("linux",),
        "arch": "x86_64",
        "compute_capabilities": ("8.9",),
        "min_compute_capability": None,
        "hardware_compatibility": "none",
        "gpu": "NVIDIA L4",
        "driver": "580.1",
        "profile": None,
        "precision": "fp16",
        "strip": "plan",
        "refit": "identical",
        "refittable": True,
        "weights_sha256": model.sha256,
        "weight_map": {"w1": {"from": "w1"}, "b1": {"from": "b1"}},
        "weights": tuple(EngineWeight(name=n, dtype="float32", count=c) for n, c in (("w1", 2304), ("b1", 48))),
        "plan_size": file.size,
        "plan_sha256": file.sha256,
        "builder": "tensorrt 10.16.1",
        "options": BuildOptions(),
    }
    return BuildRecord(**{**fields, **changes})


def leave_record(plan: Path, onnx: Path, **changes: Any) -> BuildRecord:
    """`record_of`, beside the plan."""
    record = record_of(plan, onnx, **changes)
    write_record(record_path(str(plan)), record)
    return record


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; links by where they lead."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = os.readlink(path).encode()
            elif path.is_file():
                found[str(path.relative_to(root))] = path.read_bytes()
            else:
                found[str(path.relative_to(root))] = b"(folder)"
    return found


def located(path: Path) -> Located:
    """A file as the worker gets it, under a name that need not be its own."""
    return Located(path=str(path), ref=FileRef(path=path.name, size=1, sha256="0" * 64))
