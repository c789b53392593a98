"""What a log of trtexec tells of the plan that it built.

A run begins with the line ``&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # trtexec --onnx=...``, and names
the GPU under ``=== Device Information ===`` (samples/trtexec and samples/common of NVIDIA/TensorRT). What the
options mean is in trtexec's help: ``--stripWeights`` alone builds with REFIT_IDENTICAL, with ``--refit`` for any
weights, and ``--stripAllWeights`` is both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.import_facts import library_version

_RUN = re.compile(
    r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(?P<version>\d{4,7})\](?: \[b(?P<build>\d{1,5})\])? # (?P<words>[^\n]*)"
)
_GPU = re.compile(r"\] Selected Device: (?P<value>[^\n\r]{1,200})")
_CAPABILITY = re.compile(r"\] Compute Capability: (?P<value>\d{1,3}\.\d{1,2})\s")
_PRECISIONS = ("fp16", "bf16", "int8", "fp8", "int4")
#: Options that leave it to the model or to trtexec what is computed in.
_UNCLEAR = ("--best", "--stronglyTyped")
_HARDWARE = {"ampere+": "ampere-plus", "samecomputecapability": "same-compute-capability", "none": "none"}


class Run(NamedTuple):
    """One run of trtexec that built a plan: its version in three or four numbers, the program and its options, and
    the GPU with its compute capability ("" where the log does not say)."""

    version: tuple[int, ...]
    program: str
    options: Mapping[str, str]
    gpu: str
    compute_capability: str

    @property
    def plan(self) -> str:
        """The name of the file that it wrote the plan to, without its folder; "" if it kept none."""
        return re.split(r"[\\/]", self.options.get("--saveEngine", ""))[-1]

    @property
    def stripped(self) -> bool:
        """Whether the plan was built without its weights."""
        return "--stripWeights" in self.options or "--stripAllWeights" in self.options


def find_runs(log: str) -> list[Run]:
    """The runs in a log that built a plan, in order; those that only measured one are left out."""
    found = []
    hits = list(_RUN.finditer(log))
    ends = [*(hit.start() for hit in hits), len(log)][1:]
    for hit, end in zip(hits, ends, strict=True):
        part = log[hit.end() : end]
        program, *words = hit["words"].split() or [""]
        # As trtexec itself takes them apart: what follows the first "=" is the value.
        options = {name: value for name, _, value in (word.partition("=") for word in words)}
        version = library_version(hit["version"])
        if version is None or "--loadEngine" in options or "--onnx" not in options:
            continue
        # The plan's header has one byte for it.
        build = (int(hit["build"]),) if hit["build"] and int(hit["build"]) < 256 else ()
        found.append(Run((*version, *build), program, options, _value(_GPU, part), _value(_CAPABILITY, part)))
    return found


def facts_of(run: Run) -> EngineFacts:
    """What a run tells of its plan. ``strip`` is "plan" or None: a plan that was not stripped may hold its weights or
    the zeros that it was built from."""
    options = run.options
    refittable = "--refit" in options or "--stripAllWeights" in options
    hardware = _HARDWARE.get(options.get("--hardwareCompatibilityLevel", "none").lower())
    compatible = "--versionCompatible" in options or "--vc" in options
    return EngineFacts(
        os=_system(run),
        compute_capabilities=(run.compute_capability,)
        if run.compute_capability and hardware != "ampere-plus"
        else None,
        min_compute_capability="8.0" if hardware == "ampere-plus" else None,
        hardware_compatibility=hardware,  # type: ignore[arg-type] # the table's values are its names
        gpu=run.gpu or None,
        version_compatible=compatible,
        precision=_precision(run),
        strip="plan" if run.stripped else None,
        refit="any" if refittable else "identical" if run.stripped else None,
        host_code=True if compatible and "--excludeLeanRuntime" not in options else None,
    )


def _precision(run: Run) -> str | None:
    """The types that were allowed besides fp32; None where the options do not tell."""
    if run.version >= (11,) or any(name in run.options for name in _UNCLEAR):
        return None
    return "+".join(name for name in _PRECISIONS if f"--{name}" in run.options) or "fp32"


def _system(run: Run) -> tuple[Literal["linux", "windows"], ...] | None:
    """The system that it is for: the one named, else that of the machine, as far as the program's path gives it away."""
    platform = run.options.get("--runtimePlatform", "").lower()
    if platform == "windowsamd64" or (platform in ("", "sameasbuild") and re.search(r"\\|\.exe$", run.program)):
        return ("windows",)
    return ("linux",) if platform in ("", "sameasbuild") and run.program.startswith("/") else None


def _value(pattern: re.Pattern[str], text: str) -> str:
    hit = pattern.search(text)
    return hit["value"].strip() if hit else ""
