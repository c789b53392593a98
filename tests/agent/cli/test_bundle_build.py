"""`refit-agent bundle build`: the options as trtexec spells them and as we do, and what is said at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fakes_tensorrt_builder import machine, told, write_builder
from refit_agent.authoring.build import engines
from refit_agent.authoring.build.options import BuildOptions
from refit_agent.authoring.build.shapes import Profile, Range
from refit_agent.cli.main import main

from .command import Cli


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "net.onnx"
    onnx.save_model(made, str(path))
    return path


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 10.16 on a machine with an H100."""
    folder = write_builder(tmp_path / "runtime")
    monkeypatch.setattr(engines, "detect", lambda: machine(("tensorrt", "10.16.1.11", str(folder))))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command asks of the library, for the given arguments."""

    def ask(*arguments: str) -> tuple[BuildOptions, dict[str, Any]]:
        calls: list[tuple[Any, ...]] = []

        def record(model: str, folder: str, options: BuildOptions, **how: Any) -> tuple[()]:
            calls.append((options, {"model": model, "folder": folder, **how}))
            return ()

        monkeypatch.setattr(engines, "build_engines", record)
        assert main(["bundle", "build", *arguments]) == 0
        options, how = calls[0]
        return options, how

    return ask


def _range(*shape: int) -> Range:
    return Range(min=shape, opt=shape, max=shape)


# ---------------------------------------------------------------- options


def test_defaults(asked: Any) -> None:
    """Everything is left to TensorRT and to the version at hand."""
    options, how = asked("some/net.onnx")
    assert options == BuildOptions()
    assert (how["model"], how["folder"], how["name"], how["canonical"], how["kind"]) == ("some/net.onnx", "net.engines", "net", True, "tensorrt")  # fmt: skip
    assert (how["version"], how["device"], how["deadline_s"], how["force"]) == ("", None, 3600.0, False)


OURS = ["--strip", "zeros", "--version-compatible", "--exclude-lean-runtime", "--hardware-compatibility", "ampere-plus", "--fp16", "--no-tf32", "--builder-optimization-level", "2", "--mem-pool-size", "workspace:1G", "--min-shapes", "x:1x64", "--opt-shapes", "x:2x64", "--max-shapes", "x:4x64"]  # fmt: skip
TRTEXEC = ["--strip", "zeros", "--versionCompatible", "--excludeLeanRuntime", "--hardwareCompatibilityLevel=ampere+", "--fp16", "--noTF32", "--builderOptimizationLevel=2", "--memPoolSize=workspace:1024", "--minShapes=x:1x64", "--optShapes=x:2x64", "--maxShapes=x:4x64"]  # fmt: skip
SHORT = ["--strip=zeros", "--vc", "--excludeLeanRuntime", "--hardwareCompatibilityLevel=ampere+", "--fp16", "--noTF32", "--builderOptimizationLevel=2", "--workspace=1024", "--minShapes=x:1x64", "--optShapes=x:2x64", "--maxShapes=x:4x64"]  # fmt: skip


@pytest.mark.parametrize("arguments", [OURS, TRTEXEC, SHORT])
def test_both_spellings(asked: Any, arguments: list[str]) -> None:
    """trtexec's own command line does what it did there."""
    options, _ = asked("net.onnx", *arguments)
    shapes = {"x": Range(min=(1, 64), opt=(2, 64), max=(4, 64))}
    assert options == BuildOptions(
        strip="zeros",
        version_compatible=True,
        exclude_lean_runtime=True,
        hardware_compatibility="ampere-plus",
        fp16=True,
        tf32=False,
        optimization_level=2,
        memory_pools={"workspace": 1 << 30},
        profiles=(Profile(shapes=shapes),),
    )


def test_all_other_options(asked: Any) -> None:
    """Each arrives where it belongs."""
    options, how = asked(
        "net.onnx", "-o", "out", "--name", "other", "--refittable", "a", "--refittable", "b.*", "--bf16", "--fp8",
        "--timing-cache-file", "times", "--include-refit", "--no-canonical", "--runtime", "tensorrt-rtx",
        "--builder-version", "10.16", "--device", "1", "--deadline", "5", "--force", "--hardware-compatibility", "sameComputeCapability",
    )  # fmt: skip
    assert options == BuildOptions(
        refittable=("a", "b.*"),
        bf16=True,
        fp8=True,
        timing_cache=str(Path("times").absolute()),
        include_refit=True,
        hardware_compatibility="same-compute-capability",
    )
    named = ("folder", "name", "canonical", "kind", "version", "device", "deadline_s", "force")
    assert [how[key] for key in named] == ["out", "other", False, "tensorrt-rtx", "10.16", 1, 5.0, True]
    assert asked("net.onnx", "--stronglyTyped")[0] == asked("net.onnx", "--strongly-typed")[0] == BuildOptions(strongly_typed=True)  # fmt: skip
    assert asked("net.onnx", "--int8", "--tf32")[0] == BuildOptions(int8=True)


@pytest.mark.parametrize(
    ("arguments", "strip", "refit"),
    [
        (["--strip", "net.onnx"], None, None),
        (["net.onnx", "--strip"], None, None),
        (["--stripWeights", "net.onnx"], None, None),
        (["--strip", "--refit", "net.onnx"], None, "any"),
        (["--strip", "plan", "--refit", "identical", "net.onnx"], "plan", "identical"),
        (["--refit=individual", "--strip=none", "net.onnx"], "none", "individual"),
    ],
)
def test_options_without_their_value(asked: Any, arguments: list[str], strip: str | None, refit: str | None) -> None:
    """As with trtexec they may stand alone, wherever the model stands."""
    options, how = asked(*arguments)
    assert (options.strip, options.refit, how["model"]) == (strip, refit, "net.onnx")


def test_after_two_dashes_everything_is_a_name(asked: Any) -> None:
    """Also what looks like an option."""
    assert asked("--", "--strip")[1]["model"] == "--strip"


def test_profiles_own_the_shapes_after_them(asked: Any) -> None:
    """In the order in which they stand, in either spelling."""
    options, _ = asked(
        "net.onnx", "--profile", "small", "--opt-shapes", "x:1x64", "--profile=static",
        "--profile", "large", "--maxShapes=x:8x64", "--min-shapes", "x:1x64", "--optShapes", "x:4x64",
    )  # fmt: skip
    assert options.profiles == (
        Profile(name="small", shapes={"x": _range(1, 64)}),
        Profile(name="static"),
        Profile(name="large", shapes={"x": Range(min=(1, 64), opt=(4, 64), max=(8, 64))}),
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["net.onnx", "--opt-shapes", "x:1", "--optShapes", "x:2"], 2, "--opt-shapes stands twice"),
        (["net.onnx", "--profile", "a", "--opt-shapes", "x:1", "--opt-shapes", "x:2"], 2, "profile 'a'"),
        (["net.onnx", "--min-shapes", "x:1"], 2, "build-options-invalid"),
        (["net.onnx", "--opt-shapes", "x"], 2, "build-options-invalid"),
        (["net.onnx", "--mem-pool-size", "nothing"], 2, "build-options-invalid"),
        (["net.onnx", "--workspace", "1", "--mem-pool-size", "workspace:1"], 2, "exclude each other"),
        (["net.onnx", "--refit", "individual"], 2, "needs --refittable"),
        (["net.onnx", "--strip", "zeros", "--refit", "identical"], 2, "builds it from zeros"),
        (["net.onnx", "--builder-optimization-level", "6"], 2, "0<=x<=5"),
        ([], 2, "MODEL"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    """Told at once, with exit code 2, before a builder is looked for."""
    assert main(["bundle", "build", *arguments]) == code
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- for real


def test_a_build(builder: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text for people, progress on standard error."""
    out = tmp_path / "out"
    assert main(["bundle", "build", str(model), "-o", str(out), "--strip", "--opt-shapes", "x:1x64"]) == 0
    said = capsys.readouterr()
    assert f"{out}/net.plan: " in said.out and "tensorrt 10.16.1.11, fp32, strip plan, refit identical, 1 weight" in said.out  # fmt: skip
    assert "for NVIDIA H100 80GB HBM3, compute capability 9.0, linux" in said.out
    assert f"its weights are those of {out}/net.onnx" in said.out
    assert "TensorRT warns: a warning" in said.out
    assert "building the engine" in said.err
    assert told(out / "net.plan")["stripped"] is True


def test_json(builder: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One document with every plan's record in it."""
    arguments = ["--profile", "a", "--opt-shapes", "x:1x64", "--profile", "b", "--opt-shapes", "x:2x64", "--vc", "--json"]  # fmt: skip
    assert main(["bundle", "build", str(model), "-o", str(tmp_path / "out"), *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(tmp_path / "out")
    assert [Path(plan["path"]).name for plan in document["plans"]] == ["net.a.plan", "net.b.plan"]
    for plan in document["plans"]:
        record = json.loads(Path(plan["record_path"]).read_bytes())
        assert {k: v for k, v in plan.items() if k not in ("path", "record_path")} == record
        assert record["host_code"] is True


def test_a_plan_that_brings_code_is_warned_of(
    builder: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end user's machine will refuse it."""
    assert main(["bundle", "build", str(model), "-o", str(tmp_path / "o"), "--vc", "--opt-shapes", "x:1x64"]) == 0
    assert "--exclude-lean-runtime leaves it out" in capsys.readouterr().out


def test_an_error_of_the_library(
    builder: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code and exit code, in text and in JSON."""
    arguments = ["bundle", "build", str(model), "-o", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert "error [build-options-invalid]" in capsys.readouterr().err
    assert main([*arguments, "--builder-version", "9", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "builder-missing"
    assert not (tmp_path / "o").exists()


def test_where_nothing_builds(cli: Cli, model: Path) -> None:
    """The real command, on a machine without a full TensorRT: which package to install."""
    ran = cli("bundle", "build", model)
    assert ran.code == 3 and "error [builder-missing]" in ran.err and "pip install tensorrt" in ran.err


def test_help(cli: Cli) -> None:
    """It lists both spellings and an example, and needs no TensorRT."""
    ran = cli("bundle", "build", "-h")
    assert ran.code == 0
    for word in ("--min-shapes, --minShapes", "--strip", "Example:", "--refittable"):
        assert word in ran.out
