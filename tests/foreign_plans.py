"""Build results as other tools leave them, with logs of trtexec; and what a bundle must be after an import."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from plan_files import plan_bytes
from refit_agent.bundle import Bundle
from refit_agent.hash_files import hash_files
from refit_agent.machine import Gpu, InstalledRuntime, Machine
from refit_agent.selection import Selection, select


def trtexec_log(
    options: str = "--stripWeights --fp16",
    *,
    version: str = "101601",
    build: str = " [b11]",
    gpu: str = "NVIDIA GeForce RTX 4090",
    capability: str = "8.9",
    program: str = "trtexec",
    save: str = "/tmp/build/engine.trt",
) -> str:
    """What trtexec says of a build, as far as it tells of the plan."""
    command = f"{program} --onnx=/tmp/model.onnx --saveEngine={save} {options}".rstrip()
    return f"""\
&&&& RUNNING TensorRT.trtexec [TensorRT v{version}]{build} # {command}
[04/07/2025-23:59:33] [I] === Model Options ===
[04/07/2025-23:59:33] [I] Format: ONNX
[04/07/2025-23:59:33] [I] === Device Information ===
[04/07/2025-23:59:33] [I] Available Devices:
[04/07/2025-23:59:33] [I]   Device 0: "{gpu}" UUID: GPU-84a8068b-81a5-7df1-8d22-a523bb848827
[04/07/2025-23:59:33] [I] Selected Device: {gpu}
[04/07/2025-23:59:33] [I] Selected Device ID: 0
[04/07/2025-23:59:33] [I] Compute Capability: {capability}
[04/07/2025-23:59:33] [I] SMs: 46
[04/07/2025-23:59:33] [I] TensorRT version: 10.9.0
[04/08/2025-00:00:18] [I] Created engine with size: 1.2 MiB
&&&& PASSED TensorRT.trtexec [TensorRT v{version}]{build} # {command}
"""


def build_result(path: Path, files: dict[str, bytes | str]) -> Path:
    """A zip with these files below ``build_result/``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"build_result/{name}", content)
    path.write_bytes(out.getvalue())
    return path


def ordinary() -> dict[str, bytes | str]:
    """What a build of TensorRT-Cloud leaves, by the names that its client knows."""
    return {
        "engine.trt": plan_bytes(),
        "metrics.json": '{"throughput_qps": 782.646}',
        "build.log": trtexec_log(),
        "trt_cloud.log": "done\n",
        "timing.cache": bytes(1000),
    }


def require_sound(root: Path) -> Bundle:
    """The bundle, no draft, after every file was compared with its manifest."""
    bundle = Bundle.open(root)
    refs = [ref for model in bundle.manifest.models for ref in model.files()]
    found = hash_files([bundle.locate(ref) for ref in refs])
    assert [(ref.sha256, ref.size) for ref in refs] == found
    return bundle


def selected(
    root: Path, model: str, capability: str = "8.9", *, gpu: str = "NVIDIA GeForce RTX 4090", system: str = "linux",
    runtime: tuple[str, str] = ("tensorrt", "10.16.1.11"), gpus: int = 1,
) -> Selection:  # fmt: skip
    """What is chosen on a machine with that GPU, or several of it, and that runtime."""
    cards = tuple(Gpu(index=n, name=gpu, uuid=f"GPU-{n}", compute_capability=capability) for n in range(gpus))
    installed = InstalledRuntime(module=runtime[0], version=runtime[1])
    machine = Machine(os=system, arch="x86_64", gpus=cards, driver="580.1", runtimes=(installed,))
    bundle = require_sound(root)
    return select(bundle.manifest, bundle.model(model), None, machine)
