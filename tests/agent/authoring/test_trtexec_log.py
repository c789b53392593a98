"""What a log of trtexec tells of a plan."""

from __future__ import annotations

from typing import Any

import pytest

from foreign_plans import trtexec_log
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.import_facts import library_version
from refit_agent.authoring.trtexec_log import facts_of, find_runs


def facts(options: str, **more: Any) -> EngineFacts:
    (run,) = find_runs(trtexec_log(options, **more))
    return facts_of(run)


def test_an_ordinary_build() -> None:
    """Version, program, plan and GPU, and what follows from the options."""
    (run,) = find_runs(trtexec_log())
    assert (run.version, run.program, run.plan, run.gpu, run.compute_capability) == (
        (10, 16, 1, 11),
        "trtexec",
        "engine.trt",
        "NVIDIA GeForce RTX 4090",
        "8.9",
    )
    assert facts_of(run) == EngineFacts(
        compute_capabilities=("8.9",),
        hardware_compatibility="none",
        gpu="NVIDIA GeForce RTX 4090",
        version_compatible=False,
        precision="fp16",
        strip="plan",
        refit="identical",
    )


@pytest.mark.parametrize(
    ("options", "strip", "refit"),
    [
        ("", None, None),
        ("--refit", None, "any"),
        ("--stripWeights", "plan", "identical"),
        ("--stripWeights --refit", "plan", "any"),
        ("--stripAllWeights", "plan", "any"),
        ("--stripWeightsNot", None, None),
    ],
)
def test_how_the_weights_were_left_out(options: str, strip: str | None, refit: str | None) -> None:
    """As trtexec's help says it."""
    found = facts(options)
    assert (found.strip, found.refit) == (strip, refit)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ("", "fp32"),
        ("--noTF32", "fp32"),
        ("--fp16 --int8", "fp16+int8"),
        ("--int8 --bf16", "bf16+int8"),
        ("--best", None),
        ("--stronglyTyped", None),
    ],
)
def test_the_precision(options: str, precision: str | None) -> None:
    """None where the model or trtexec itself decided."""
    assert facts(options).precision == precision


def test_from_11_on_the_model_has_the_types() -> None:
    """There are no options for them."""
    assert facts("", version="110400", build=" [b106]").precision is None


@pytest.mark.parametrize(
    ("options", "compatible", "code"),
    [
        ("--versionCompatible", True, True),
        ("--vc --excludeLeanRuntime", True, None),
        ("--excludeLeanRuntime", False, None),
    ],
)
def test_version_compatibility(options: str, compatible: bool, code: bool | None) -> None:
    """A version-compatible plan brings the lean runtime unless it was left out."""
    found = facts(options)
    assert (found.version_compatible, found.host_code) == (compatible, code)


def test_other_gpus() -> None:
    """An Ampere-plus plan has a least compute capability, whatever it was built on."""
    found = facts("--hardwareCompatibilityLevel=ampere+")
    assert (found.hardware_compatibility, found.min_compute_capability, found.compute_capabilities) == ("ampere-plus", "8.0", None)  # fmt: skip
    found = facts("--hardwareCompatibilityLevel=sameComputeCapability")
    assert (found.hardware_compatibility, found.compute_capabilities) == ("same-compute-capability", ("8.9",))
    assert facts("--hardwareCompatibilityLevel=turing+").hardware_compatibility is None


@pytest.mark.parametrize(
    ("options", "program", "system"),
    [
        ("", "trtexec", None),
        ("", "/usr/src/tensorrt/bin/trtexec", ("linux",)),
        ("", "C:\\TensorRT\\bin\\trtexec", ("windows",)),
        ("", "trtexec.exe", ("windows",)),
        ("--runtimePlatform=WindowsAMD64", "/usr/bin/trtexec", ("windows",)),
        ("--runtimePlatform=SameAsBuild", "/usr/bin/trtexec", ("linux",)),
        ("--runtimePlatform=Amiga", "/usr/bin/trtexec", None),
    ],
)
def test_the_operating_system(options: str, program: str, system: tuple[str, ...] | None) -> None:
    """The one asked for, else that of the machine where its path shows it."""
    assert facts(options, program=program).os == system


def test_several_runs_and_those_that_built_nothing() -> None:
    """Each has its own GPU; measuring a plan is no build."""
    other = trtexec_log("--int8", gpu="NVIDIA L4", save="C:\\b\\other.plan")
    measured = (
        "&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # trtexec --onnx=a.onnx --loadEngine=engine.trt\n"
    )
    broken = "&&&& RUNNING TensorRT.trtexec [TensorRT v7] # trtexec --onnx=a\n"
    runs = find_runs(trtexec_log() + measured + broken + other)
    assert [(run.gpu, run.plan) for run in runs] == [
        ("NVIDIA GeForce RTX 4090", "engine.trt"),
        ("NVIDIA L4", "other.plan"),
    ]


@pytest.mark.parametrize("text", ["", "no log", "&&&& RUNNING TensorRT.trtexec [TensorRT v101601] # ", "\0\xff" * 100])
def test_what_is_no_log(text: str) -> None:
    """Nothing is found, and nothing is wrong."""
    assert find_runs(text) == []


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("101601", (10, 16, 1)),
        ("110400", (11, 4, 0)),
        ("10701", (1, 7, 1)),
        ("8600", (8, 6, 0)),
        ("8612", (8, 6, 12)),
        ("10.16.1.11", (10, 16, 1, 11)),
        ("1.0", (1, 0)),
        ("", None),
        ("12", None),
        ("10.x", None),
        ("-1.0", None),
        ("\u0661\u0660.0", None),
        ("9" * 5000, None),
    ],
)
def test_versions_as_libraries_spell_them(text: str, version: tuple[int, ...] | None) -> None:
    """Three of them as getInferLibVersion of 10.16.1, 11.4.0 and TensorRT-RTX 1.7.1 gave them."""
    assert library_version(text) == version
