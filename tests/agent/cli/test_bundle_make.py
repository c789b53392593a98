"""`refit-agent bundle init|add-model|add-engine`: the commands as the documentation shows them, and used wrongly."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from pathlib import Path

import onnx
import pytest

from bundles import make_onnx
from plan_files import leave_record, tree, write_plan

from .command import Cli

SAID = ["--os", "linux", "--compute-capability", "8.9", "--version-compatible", "--precision", "fp16", "--strip", "plan", "--refit", "any"]  # fmt: skip


@pytest.fixture
def root(cli: Cli, tmp_path: Path) -> Path:
    """A draft with a model, made by the commands."""
    made = cli("bundle", "init", tmp_path / "b", "--id", "com.example.photo", "--name", "Photo", "--version", "2.3.0")
    assert made.code == 0 and "com.example.photo, Photo 2.3.0" in made.out, made.err
    make_onnx(tmp_path / "mlp.onnx")
    added = cli("bundle", "add-model", tmp_path / "b", "denoiser", tmp_path / "mlp.onnx")
    assert added.code == 0 and "added models/denoiser/mlp.onnx, 18.4 KiB" in added.out, added.err
    assert "the bundle is not finished, and no app will take it: no engine yet for 'denoiser'" in added.out
    return tmp_path / "b"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "p.plan")


def test_from_nothing_to_a_checked_engine(cli: Cli, root: Path) -> None:
    """The way that the help shows, and at its end a path."""
    added = cli("bundle", "add-engine", root, "denoiser", "--cpu")
    assert added.code == 0 and "not finished" not in added.out, added.err
    assert "added engines/denoiser/cpu-fp32.onnx.zst" in added.out and "tolerance 0.002" in added.out
    assert "ONNX Runtime 1.18+, for CPU" in added.out and "older" not in added.out
    assert cli("bundle", "golden", root, "denoiser").code == 0
    assert cli("bundle", "verify", root).code == 0
    made = cli("provision", root, "--json").document["engines"][0]
    assert made["check"] == "golden"


def test_why_no_older_onnx_runtime_is_enough(cli: Cli, root: Path, tmp_path: Path) -> None:
    """Said where the developer can still do something about it."""
    model = onnx.load(str(tmp_path / "mlp.onnx"))
    model.opset_import[0].version = 21
    model.ir_version = 10
    onnx.save(model, str(tmp_path / "mlp.onnx"))
    cli("bundle", "add-model", root, "denoiser", tmp_path / "mlp.onnx", "--replace")
    added = cli("bundle", "add-engine", root, "denoiser", "--cpu")
    assert (
        "  not for an older release of ONNX Runtime than this one: its opset is 21, above 20" in added.out.splitlines()
    )
    assert "1.18+" not in added.out and "ONNX Runtime 1." in added.out


def test_init_as_json(cli: Cli, tmp_path: Path) -> None:
    """One document; a second init is refused."""
    arguments = ["bundle", "init", tmp_path / "b", "--id", "a.b", "--name", "n", "--version", "1", "--json"]
    assert cli(*arguments).document == {
        "bundle": str(tmp_path / "b"),
        "app": {"id": "a.b", "name": "n", "version": "1"},
    }
    again = cli(*arguments)
    assert (again.code, again.document["error"]["code"]) == (3, "bundle-exists")


def test_add_model_as_json_and_again(cli: Cli, root: Path, tmp_path: Path) -> None:
    """A name that is taken needs --replace, which says what went with the old model."""
    cli("bundle", "add-engine", root, "denoiser", "--cpu")
    arguments = ["bundle", "add-model", root, "denoiser", tmp_path / "mlp.onnx"]
    assert cli(*arguments).code == 3
    same = cli(*arguments, "--replace", "--version", "2", "--json").document
    assert (same["model"]["version"], same["dropped"]) == ("2", {"engines": 0, "golden": 0})
    make_onnx(tmp_path / "mlp.onnx", seed=9)
    other = cli(*arguments, "--replace", "--link")
    assert "1 engine and 0 sets of golden data were removed with the old model" in other.out


def test_add_engine(cli: Cli, root: Path, plan: Path) -> None:
    """Everything said by options; once more it is refused, and --replace takes its place."""
    added = cli("bundle", "add-engine", root, "denoiser", plan, *SAID)
    assert added.code == 0, added.err
    assert added.out.splitlines() == [
        "added engines/denoiser/sm89-fp16-linux.plan.zst",
        "  TensorRT 10.16.1.11 (version-compatible), for 8.9, linux, fp16",
        added.out.splitlines()[2],
        "  tolerance 0.01",
    ]
    assert re.fullmatch(r"  39\.1 KiB as \d\.\d KiB \(zstd, \d+ % less\)", added.out.splitlines()[2])
    before = tree(root)
    again = cli("bundle", "add-engine", root, "denoiser", plan, *SAID)
    assert again.code == 3 and "error [engine-refused]" in again.err and "--replace" in again.err
    assert tree(root) == before
    replaced = cli("bundle", "add-engine", root, "denoiser", plan, *SAID, "--replace", "--json").document
    assert replaced["replaced"] == ["engines/denoiser/sm89-fp16-linux.plan.zst"]


def test_what_is_missing_is_listed_at_once(cli: Cli, root: Path, plan: Path) -> None:
    """Where nobody can be asked: exit code 2, and the options that say it."""
    ran = cli("bundle", "add-engine", root, "denoiser", plan, "--os", "linux")
    assert ran.code == 2
    assert "does not say of itself: compute capabilities, version compatible, precision, strip, refit" in ran.err
    assert "--compute-capability or --ampere-plus; --version-compatible or --exact-version; --precision; --strip; --refit." in ran.err  # fmt: skip
    assert cli("bundle", "add-engine", root, "denoiser", plan, "--json").document["error"]["code"] == "facts-missing"


def test_a_record_says_all(cli: Cli, root: Path, plan: Path) -> None:
    """And an option that contradicts it is refused."""
    leave_record(plan, root / "models" / "denoiser" / "mlp.onnx")
    wrong = cli("bundle", "add-engine", root, "denoiser", plan, "--exact-version")
    assert wrong.code == 3 and "the record of its build says True" in wrong.err
    assert cli("bundle", "add-engine", root, "denoiser", plan).code == 0


def test_every_option_of_add_engine(cli: Cli, root: Path, plan: Path, tmp_path: Path) -> None:
    """Each reaches the manifest."""
    (tmp_path / "map.json").write_text(json.dumps({"a": {"from": "w1"}}))
    (tmp_path / "lean.so").write_bytes(b"library")
    ran = cli(
        "bundle", "add-engine", root, "denoiser", plan, "--os", "linux", "--os", "windows", "--ampere-plus", "8.6",
        "--gpu", "NVIDIA L4", "--min-driver", "525.60", "--version-compatible", "--profile", "big", "--precision", "int8",
        "--strip", "plan", "--refit", "individual", "--weight-map", tmp_path / "map.json", "--tolerance", "0.25",
        "--include-refit", "--host-code", "--lean-runtime", tmp_path / "lean.so", "--compression", "none",
        "--name", "gpu/big.plan", "--first", "--json",
    )  # fmt: skip
    engine = ran.document["engine"]
    assert engine | {"size": 0, "sha256": "", "plan_sha256": "", "lean_runtime": engine["lean_runtime"]["path"]} == {
        "path": "gpu/big.plan",
        "size": 0,
        "sha256": "",
        "runtime": "tensorrt",
        "built_with": "10.16.1.11",
        "plan_size": 40_000,
        "plan_sha256": "",
        "version_compatible": True,
        "os": ["linux", "windows"],
        "min_compute_capability": "8.6",
        "hardware_compatibility": "ampere-plus",
        "gpu": "NVIDIA L4",
        "min_driver": "525.60",
        "profile": "big",
        "precision": "int8",
        "refit": "individual",
        "weight_map": {"a": {"from": "w1"}},
        "tolerance": 0.25,
        "include_refit": True,
        "lean_runtime": "engines/denoiser/lean.so",
        "host_code": True,
    }
    same = cli("bundle", "add-engine", root, "denoiser", plan, *SAID, "--same-compute-capability", "--json").document
    assert same["engine"]["hardware_compatibility"] == "same-compute-capability"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "Give either PLAN or --cpu"),
        (["--cpu", "PLAN"], "Give either PLAN or --cpu"),
        (["--cpu", "--os", "linux"], "--cpu has no os"),
        (["--cpu", "--record", "PLAN"], "--cpu has no record"),
        (["PLAN", "--ampere-plus", "8.0", "--same-compute-capability"], "exclude each other"),
        (["PLAN", "--os", "mac"], "'mac' is not one of"),
        (["PLAN", "--compute-capability", "89"], "compute capabilities is '89'"),
        (["PLAN", "--tolerance", "much"], "'much' is not a valid float"),
        (["PLAN", "--weight-map", "NONE"], "--weight-map"),
        (["PLAN", "--weight-map", "PLAN"], "a JSON file that can be read"),
        (["PLAN", "--compression", "xz"], "'xz' is not one of"),
    ],
)
def test_wrong_usage(cli: Cli, root: Path, plan: Path, tmp_path: Path, options: list[str], says: str) -> None:
    """Exit code 2, with the reason, and nothing changed."""
    before = tree(root)
    given = [str(plan) if o == "PLAN" else str(tmp_path / "none") if o == "NONE" else o for o in options]
    ran = cli("bundle", "add-engine", root, "denoiser", *given)
    assert ran.code == 2 and says in ran.err, ran.err
    assert tree(root) == before


def test_a_change_ends_the_signature_and_says_so(cli: Cli, root: Path, plan: Path, tmp_path: Path) -> None:
    """An app that pins the key would refuse it."""
    cli("bundle", "add-engine", root, "denoiser", "--cpu")
    cli("bundle", "keygen", tmp_path / "key.pem")
    assert cli("bundle", "sign", root, "--key", tmp_path / "key.pem").code == 0
    assert "sign it again" in cli("bundle", "add-engine", root, "denoiser", plan, *SAID).out
    assert not (root / "bundle.sig").exists()


def test_a_draft_is_neither_signed_nor_verified_nor_used(cli: Cli, root: Path, tmp_path: Path) -> None:
    """It cannot ship by mistake."""
    cli("bundle", "keygen", tmp_path / "key.pem")
    for command in (["bundle", "sign", root, "--key", tmp_path / "key.pem"], ["verify", root], ["provision", root]):
        ran = cli(*command)
        assert ran.code == 3 and "not finished: no engine yet for 'denoiser'" in ran.err, ran.err


def test_stopped_in_the_middle(cli: Cli, root: Path, tmp_path: Path) -> None:
    """Ctrl+C leaves the bundle as it was."""
    large = write_plan(tmp_path / "large.plan", version=(8, 6, 0, 12), size=300 << 20)
    before = tree(root)
    said = ["--os", "linux", "--compute-capability", "8.9", "--exact-version", "--precision", "fp32"]
    process = cli.start("bundle", "add-engine", root, "denoiser", large, *said)
    assert process.stderr is not None
    for line in process.stderr:
        if "compressing" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert tree(root) == before


# ---------------------------------------------------------------- at a terminal


def _converse(cli: Cli, answers: list[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run at a pseudo-terminal and give an answer whenever a question stands there; code, what was seen, stdout."""
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        cli.command(*arguments), env=cli.env | {"TERM": "dumb"}, stdin=terminal, stderr=terminal, stdout=subprocess.PIPE
    )
    os.close(terminal)
    seen, asked = b"", 0
    left = list(answers)
    try:
        while select.select([main], [], [], 30)[0]:
            try:
                data = os.read(main, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
            if seen[asked:].rstrip().endswith(b":") and left:
                asked = len(seen)
                os.write(main, left.pop(0).encode())
    finally:
        os.close(main)
    assert process.stdout is not None
    with process.stdout:
        out = process.stdout.read().decode()
    return process.wait(timeout=30), seen.decode(), out


def test_questions(cli: Cli, root: Path, plan: Path) -> None:
    """Asked for is what is missing, a wrong answer is asked for again, and standard output has the answer alone."""
    answers = ["mac\n", "both\n", "89\n", "8.6, 8.9\n", "y\n", "fp17\n", "fp16\n", "maybe\n", "plan\n", "identical\n"]
    code, seen, out = _converse(cli, answers, "bundle", "add-engine", root, "denoiser", plan)
    assert code == 0, seen
    assert "The plan says that tensorrt 10.16.1.11 built it." in seen
    assert "'mac' is not linux, windows or both" in seen and "'89' is no compute capability such as 8.9" in seen
    assert out.startswith("added engines/denoiser/sm86-sm89-fp16.plan.zst\n")
    engine = json.loads((root / "bundle.json").read_bytes())["models"][0]["engines"][0]
    assert engine["refit"] == "identical" and engine["weights_sha256"]


def test_a_plan_for_ampere_and_later_at_a_terminal(cli: Cli, root: Path, plan: Path) -> None:
    """Said by a plus."""
    said = ["--os", "linux", "--exact-version", "--precision", "fp16", "--strip", "plan", "--refit", "any"]
    code, seen, out = _converse(cli, ["8.0+ 8.6\n", "8.0+\n"], "bundle", "add-engine", root, "denoiser", plan, *said)
    assert code == 0 and "one least compute capability" in seen
    assert "for 8.0 and newer, linux" in out


def test_nobody_answers(cli: Cli, root: Path, plan: Path) -> None:
    """At the end of the input what is still missing is listed."""
    code, seen, out = _converse(cli, ["linux\n", "\x04"], "bundle", "add-engine", root, "denoiser", plan)
    assert (code, out) == (2, "")
    assert "does not say of itself: compute capabilities, version compatible, precision, strip, refit" in seen
