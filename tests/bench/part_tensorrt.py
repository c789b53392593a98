"""Refits of real TensorRT engines on this machine's GPU, by us and the plain way; with the reasons where there are none.

REFIT_AGENT_GPU_ENGINES and REFIT_AGENT_GPU_MODELS name the folders with NAME.plan and NAME.onnx, as for tests/gpu.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from bench.measured import OURS, Bound, Findings, Row, Way

PART = "tensorrt"
WHAT = "making an engine"
PLAIN, PLAIN_INSIDE = "plain: onnx.load, NumPy, set, refit", "plain, start and imports not counted"
_NAMES = ("tiny", "resnet50", "bert_fp16", "bert_large_fp16")
_QUICK = ("tiny",)
_ROUNDS = {"tiny": 7, "resnet50": 7, "bert_fp16": 5, "bert_large_fp16": 5}
_MEMORY = "peak of all processes of one whole run"
#: A cold provision against the plain way, start-up of that not counted: the largest model's ratio of times.
MOST_OF_PLAIN = 1.0


def measure(findings: Findings, work: Path, *, quick: bool) -> None:
    """A row for every sample engine that is there."""
    reason = why_not()
    if reason:
        findings.leave(PART, "all rows", reason)
        return
    from bench import bench_gpu
    from gpu import sample_bundles as samples

    for name in _QUICK if quick else _NAMES:
        if not (os.path.exists(f"{samples.ENGINES}/{name}.plan") and os.path.exists(f"{samples.MODELS}/{name}.onnx")):
            findings.leave(PART, name, "its plan or its model is not in the folders")
            continue
        (work / name).mkdir()
        found = bench_gpu.compare(name, work / name, 2 if quick else _ROUNDS[name])
        ways = (
            Way(name=OURS, value=found.ours_s, private=found.ours_peak.private),
            Way(name=PLAIN, value=found.plain_whole_s, private=found.plain_peak.private),
            Way(name=PLAIN_INSIDE, value=found.plain_s),
        )
        findings.add(
            Row(part=PART, what=f"{WHAT}, {name}", size=found.plan_size, size_unit="B", unit="s", memory=_MEMORY, ways=ways)
        )  # fmt: skip
        if name == _NAMES[-1]:
            findings.bounds.append(
                Bound(text=f"{WHAT}, {name}, against the plain way", value=found.ours_s, limit=MOST_OF_PLAIN * found.plain_s, unit="s")
            )  # fmt: skip


def why_not() -> str:
    """Why no TensorRT engine can be made here; "" if one can."""
    from refit_agent.gpu.detect import detect

    if not detect(fresh=True).gpus:
        return "this machine has no NVIDIA GPU that answers"
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt, which the sample engines need, is not installed"
    for name in ("REFIT_AGENT_GPU_ENGINES", "REFIT_AGENT_GPU_MODELS"):
        if not os.path.isdir(os.environ.get(name, "")):
            return f"{name} names no folder"
    return "" if importlib.util.find_spec("onnx") is not None else "the plain way needs the package onnx"
