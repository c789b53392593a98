"""`refit-agent bundle import`, as a developer runs it."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from foreign_plans import build_result, ordinary, require_sound, selected, trtexec_log
from plan_files import located, plan_bytes, tree
from refit_agent.manifest import Engine
from refit_agent.runtimes.ep_context import context_model
from trt_llm_folders import GPU, weights_of, write_checkpoint, write_engine

from .command import Cli

MODEL = "classifier"


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return build_result(tmp_path / "build_result.zip", ordinary())


@pytest.fixture
def context(own: Path, tmp_path: Path) -> Path:
    """An EPContext model beside the model that it was made from, with its engine in a file."""
    folder = tmp_path / "cache"
    folder.mkdir()
    shutil.copy(own / "classifier" / "classifier.onnx", folder)
    (folder / "a.stripped.engine").write_bytes(plan_bytes())
    engine = Engine(path="p", size=1, sha256="0" * 64, plan_size=1, runtime="tensorrt", built_with="10.16.1")
    data = context_model(located(folder / "classifier.onnx"), engine, "a.stripped.engine", "10.16.1.11", "8.9")
    (folder / "classifier_ctx.onnx").write_bytes(data)
    return folder / "classifier_ctx.onnx"


def test_a_zip_of_trt_cloud(cli: Cli, own: Path, result: Path) -> None:
    """Known by its first bytes; then the bundle verifies, and the engine is chosen."""
    ran = cli("bundle", "import", own, MODEL, result, "--os", "linux")
    assert ran.code == 0, ran.err
    assert "added engines/classifier/sm89-fp16-linux.plan.zst" in ran.out
    assert f"from {result}:build_result/engine.trt" in ran.out
    assert f"4 notes in {own}.notes/classifier/sm89-fp16-linux" in ran.out
    assert cli("verify", own).code == 0
    assert selected(own, MODEL).candidates[0].engine.path == "engines/classifier/sm89-fp16-linux.plan.zst"


def test_the_answer_as_a_document(cli: Cli, own: Path, result: Path) -> None:
    """Entry, source and notes."""
    ran = cli("bundle", "import", own, MODEL, result, "--os", "linux", "--no-notes", "--compression", "none", "--json")
    found = ran.document
    assert (found["kind"], found["model"], found["engine"]["gpu"]) == ("trt-cloud", MODEL, "NVIDIA GeForce RTX 4090")
    assert found["engine"]["path"].endswith("-linux.plan") and found["remarks"] == []
    assert {note["reason"] for note in found["notes"]} == {"notes are not wanted"}
    again = cli("bundle", "import", own, MODEL, result, "--os", "linux", "--no-notes", "--replace", "--json")
    assert again.document["replaced"] == [found["engine"]["path"]]


def test_a_folder_of_trt_cloud(cli: Cli, own: Path, tmp_path: Path) -> None:
    """A folder without config.json."""
    (tmp_path / "build_result").mkdir()
    for name, content in ordinary().items():
        (tmp_path / "build_result" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    ran = cli("bundle", "import", own, MODEL, tmp_path / "build_result", "--os", "linux", "--json")
    assert ran.code == 0 and ran.document["kind"] == "trt-cloud"


def test_an_ep_context_model(cli: Cli, own: Path, context: Path) -> None:
    """With what it does not tell."""
    ran = cli("bundle", "import", own, MODEL, context, "--os", "linux", "--exact-version", "--precision", "fp16")
    assert ran.code == 0, ran.err
    assert f"from {context.parent / 'a.stripped.engine'}" in ran.out
    assert cli("verify", own).code == 0
    assert selected(own, MODEL).candidates[0].engine.strip == "plan"


def test_the_onnx_file_of_an_ep_context_model(cli: Cli, own: Path, context: Path) -> None:
    """Given by the caller where it is not beside it."""
    (context.parent / "classifier.onnx").unlink()
    said = ("--os", "linux", "--exact-version", "--precision", "fp16", "--json")
    ran = cli("bundle", "import", own, MODEL, context, *said)
    assert (ran.code, ran.document["error"]["code"]) == (3, "import-refused")
    assert "--onnx" in ran.document["error"]["hint"]
    ran = cli("bundle", "import", own, MODEL, context, "--onnx", own / "classifier" / "classifier.onnx", *said)
    assert ran.code == 0


@pytest.fixture
def trt_llm(tmp_path: Path) -> tuple[Path, Path]:
    """An engine of two ranks and its checkpoint."""
    ranks = [weights_of(0), weights_of(1)]
    return write_engine(tmp_path / "engine", ranks), write_checkpoint(tmp_path / "checkpoint", ranks)


def test_an_engine_of_tensorrt_llm(cli: Cli, own: Path, trt_llm: tuple[Path, Path]) -> None:
    """A folder with a config.json; both ranks in one entry of a model of its own."""
    folder, checkpoint = trt_llm
    said = ("--os", "linux", "--compute-capability", "9.0", "--gpu", GPU)
    ran = cli("bundle", "import", own, "llama", folder, "--checkpoint", checkpoint, "--version", "2", *said)
    assert ran.code == 0, ran.err
    assert "  2 plans, " in ran.out and f"from {folder}" in ran.out
    assert cli("verify", own).code == 0
    engine = selected(own, "llama", "9.0", gpu=GPU, gpus=2).candidates[0].engine
    assert len(engine.ranks) == 1 and require_sound(own).model("llama").version == "2"


def test_what_an_engine_of_tensorrt_llm_does_not_tell(cli: Cli, own: Path, trt_llm: tuple[Path, Path]) -> None:
    """Its checkpoint, and with the rest the GPU."""
    folder, checkpoint = trt_llm
    ran = cli("bundle", "import", own, "llama", folder)
    assert ran.code == 2 and "--checkpoint" in ran.err
    ran = cli("bundle", "import", own, "llama", folder, "--checkpoint", checkpoint, "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, "facts-missing")
    assert "--gpu" in ran.document["error"]["hint"]


def test_what_is_missing_is_listed_with_its_options(cli: Cli, own: Path, context: Path) -> None:
    """All at once, as a usage error, and nothing is changed."""
    before = tree(own)
    ran = cli("bundle", "import", own, MODEL, context, "--json")
    error = ran.document["error"]
    assert (ran.code, error["code"]) == (2, "facts-missing")
    assert error["hint"] == "Give --os; --version-compatible or --exact-version; --precision."
    assert tree(own) == before


def test_what_is_missing_is_asked_for_on_a_terminal(cli: Cli, own: Path, result: Path) -> None:
    """And only that."""
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    command = cli.command("bundle", "import", own, MODEL, result)
    process = subprocess.Popen(
        command, env=cli.env | {"TERM": "dumb"}, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    os.write(main, b"windows\n")
    received = b""
    while select.select([main], [], [], 30)[0]:
        try:
            data = os.read(main, 65536)
        except OSError:
            break  # Linux says EIO when the last writer has closed
        if not data:
            break
        received += data
    os.close(main)
    assert process.wait(timeout=30) == 0, received
    assert received.count(b"?") == 1 and b"Operating systems" in received
    assert selected(own, MODEL, system="windows").candidates


def test_a_plan_is_for_add_engine(cli: Cli, own: Path, tmp_path: Path) -> None:
    """Told so, not tried as a model."""
    (tmp_path / "a.plan").write_bytes(plan_bytes())
    ran = cli("bundle", "import", own, MODEL, tmp_path / "a.plan")
    assert ran.code == 2 and "add-engine" in ran.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--onnx", "a.onnx"), "--onnx is not for trt-cloud"),
        (("--checkpoint", "folder"), "--checkpoint is not for trt-cloud"),
        (("--record", "a.json"), "No such option"),
        (("--kind", "ep-context", "--no-notes"), "--no-notes is not for ep-context"),
        (("--kind", "ep-context", "--entry", "a"), "--entry is not for ep-context"),
    ],
)
def test_options_of_another_kind(cli: Cli, own: Path, result: Path, options: tuple[str, ...], says: str) -> None:
    """Are mistakes, and have no effect that one would look for in vain."""
    ran = cli("bundle", "import", own, MODEL, result, *options)
    assert ran.code == 2 and says in ran.err


def test_several_plans(cli: Cli, own: Path, tmp_path: Path) -> None:
    """One is taken by its name."""
    files = {"a.trt": plan_bytes(), "b.trt": plan_bytes(), "a.log": trtexec_log(save="a.trt")}
    result = build_result(tmp_path / "b.zip", files)
    ran = cli("bundle", "import", own, MODEL, result, "--os", "linux", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (3, "import-refused")
    ran = cli("bundle", "import", own, MODEL, result, "--os", "linux", "--entry", "a.trt", "--json")
    assert ran.code == 0 and ran.document["plan"].endswith("build_result/a.trt")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"PK\5\6" + bytes(18), b"no model", b"\x08\x08"])
def test_files_that_are_nothing(cli: Cli, own: Path, tmp_path: Path, content: bytes) -> None:
    """A clear error, in the family of the bundle."""
    (tmp_path / "x").write_bytes(content)
    before = tree(own)
    ran = cli("bundle", "import", own, MODEL, tmp_path / "x", "--json")
    assert ran.code == 3 and ran.document["error"]["code"] in ("import-refused", "onnx-malformed")
    assert tree(own) == before


def test_a_file_that_is_not_there(cli: Cli, own: Path, tmp_path: Path) -> None:
    """As everywhere."""
    ran = cli("bundle", "import", own, MODEL, tmp_path / "none", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (3, "source-unreadable")


def test_an_ordinary_model_is_no_ep_context_model(cli: Cli, own: Path) -> None:
    """It has no engine."""
    ran = cli("bundle", "import", own, MODEL, own / "classifier" / "classifier.onnx")
    assert ran.code == 3 and "no EPContext node" in ran.err
