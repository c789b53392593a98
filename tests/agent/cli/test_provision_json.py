"""`refit-agent provision --progress=json`: what an installer reads, whatever happens."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from bundles import add_broken_engine
from refit_agent.cli import progress_events
from several_models import WaitingRuntime, several_models

from .command import Cli
from .lines import Lines

fcntl = pytest.importorskip("fcntl", reason="pipes of a size of our own")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and signals as POSIX has them")
SCHEMA = Path(__file__).parents[3] / "packaging/installer/progress.schema.json"
Edit = Callable[[Callable[[Any], None]], Path]
IN_LINES = ("--progress=json",)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three models. Never changed."""
    return several_models(tmp_path_factory.mktemp("three") / "bundle", 3)


def _until(condition: Callable[[], Any], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def _made(cli: Cli) -> int:
    return len([*(cli.cache / "engines").glob("*")])


def test_made_and_then_found(cli: Cli, three: Path) -> None:
    """Start, steps, an engine each, one result; the second time hits at once. Standard error stays empty."""
    ran = cli("provision", three, *IN_LINES, "--deadline", "500")
    lines = Lines(ran.out)
    assert (ran.code, ran.err) == (0, "")
    start = lines.start
    assert (start["bundle"], start["engines"], start["deadline_s"]) == (str(three), 3, 500)
    assert (start["app"], start["app_version"]) == ("org.example.test", "1.0")
    assert lines.steps[0]["phase"] == "prepare" and lines.steps[0]["number"] is None
    phases = [step["phase"] for step in lines.steps if step["model"] == "m2"]
    assert phases[0] in ("prepare", "start") and phases[-1] == "ready", "none is left of the engine before"
    assert {"start", "unpack", "refit", "write", "check"} <= {*phases}
    assert {step["engines"] for step in lines.steps} == {3}
    assert all(step["unit"] == ("weights" if step["phase"] == "refit" else "bytes") for step in lines.steps)
    assert [e["engine"]["model"] for e in lines.engines] == ["m1", "m2", "m3"]
    assert [round(e["percent"]) for e in lines.engines] == [33, 67, 100]
    result = lines.result
    assert (result["ok"], result["exit_code"], result["error"], result["deadline_passed"]) == (True, 0, None, False)
    assert all(e["hit"] is False and Path(e["path"]).is_file() for e in result["engines"])

    again = Lines(cli("provision", three, *IN_LINES).out)
    assert again.percent == 100 and len(again.steps) == 1
    as_document = cli("provision", three, "--json").document["engines"]
    for one, other in zip(again.result["engines"], as_document, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}, "the same as in the document of --json"


def test_the_schema_is_that_of_the_lines(cli: Cli, three: Path) -> None:
    """The file is what the types give, and real lines hold it: good ones, and errors."""
    assert json.loads(SCHEMA.read_text()) == progress_events.schema(), "python -m refit_agent.cli.progress_events"
    check = jsonschema.Draft202012Validator(progress_events.schema())
    for ran in (cli("provision", three, *IN_LINES), cli("provision", three / "m1", *IN_LINES)):
        for line in Lines(ran.out).all:
            check.validate(line)
    with pytest.raises(jsonschema.ValidationError):
        check.validate({"event": "progress", "percent": "41"})


def test_one_fails_and_the_others_do_not(cli: Cli, tmp_path: Path) -> None:
    """The percentage goes on, the code is the first error's, and so is ``error``."""
    bundle = several_models(tmp_path / "bundle", 3)
    (bundle / "m2/models/mlp.onnx").unlink()
    ran = cli("provision", bundle, *IN_LINES)
    lines = Lines(ran.out)
    assert ran.code == lines.result["exit_code"] == 3 and lines.percent == 100
    assert [e["ok"] for e in lines.engines] == [True, False, True]
    assert lines.result["ok"] is False and lines.result["error"]["code"] == "bundle-file-missing"
    assert lines.engines[1]["engine"] == {
        "model": "m2",
        "profile": None,
        "target": None,
        "error": lines.result["error"],
    }


def test_a_fallback_does_not_go_back(cli: Cli, tmp_path: Path) -> None:
    """A better engine that turns out to be no good, and the next one: `Lines` sees that no number falls."""
    bundle = several_models(tmp_path / "bundle", 2)
    part = bundle / "m1"
    (part / "bundle.json").write_text(json.dumps({"models": [{"engines": []}]}))
    add_broken_engine(part)
    (entry,) = json.loads((part / "bundle.json").read_text())["models"][0]["engines"]
    document = json.loads((bundle / "bundle.json").read_text())
    document["models"][0]["engines"].insert(0, entry | {"path": f"m1/{entry['path']}"})
    (bundle / "bundle.json").write_text(json.dumps(document))
    ran = cli("provision", bundle, *IN_LINES)
    first, second = Lines(ran.out).engines
    assert ran.code == 0 and [a["engine"] for a in first["engine"]["attempts"]] == ["m1/plans/broken.cpu"]
    assert first["percent"] == pytest.approx(50, abs=1) and second["engine"]["attempts"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["nowhere"], 3, "bundle-missing"),
        (["BUNDLE", "--model", "nope"], 3, "unknown-model"),
        (["BUNDLE", "--public-key", "nonsense"], 2, None),
        (["BUNDLE", "--target", "cuda:7"], 5, "unknown-target"),
        (["BUNDLE", "--weights", "missing.onnx"], 2, "usage"),
        (["BUNDLE", "--model", "m1", "--weights", "/missing.onnx"], 2, "own-weights-invalid"),
        (["BUNDLE", "--json"], 2, "usage"),
        (["BUNDLE", "--profile", "a", "--all-profiles"], 2, "usage"),
        (["BUNDLE", "--deadline", "nan"], 2, "usage"),
        (["BUNDLE", "--deadline", "soon"], 2, "usage"),
        (["BUNDLE", "--frobnicate"], 2, "usage"),
        ([], 2, "usage"),
    ],
)
def test_errors_end_in_a_result_too(cli: Cli, three: Path, arguments: list[str], code: int, error: str | None) -> None:
    """Of the bundle, of the machine and of usage: one result line, and words for people on standard error."""
    given = [str(three) if a == "BUNDLE" else a for a in arguments]
    ran = cli("provision", *given, "--progress", "json")
    result = Lines(ran.out).result
    assert ran.code == result["exit_code"] == code and result["ok"] is False
    assert result["error"]["code"] == (error or result["error"]["code"]) and result["error"]["message"]
    of_an_engine = error in ("unknown-target", "own-weights-invalid")
    assert bool(result["engines"]) == of_an_engine and (of_an_engine or ran.err)


def test_an_unforeseen_error(cli: Cli, three: Path, tmp_path: Path) -> None:
    """Ends in a result as well; the traceback only for those who ask."""
    (tmp_path / "structlog.py").write_text("raise RuntimeError('broken installation')")
    ran = cli("provision", three, *IN_LINES, PYTHONPATH=str(tmp_path))
    result = Lines(ran.out).result
    assert ran.code == result["exit_code"] == 1 and result["error"]["code"] == "internal"
    assert "broken installation" in result["error"]["message"] and "Traceback" not in ran.err


def test_who_takes_the_arguments_after_two_dashes_for_options(cli: Cli) -> None:
    """They are none: an error of usage is words then."""
    ran = cli("provision", "--", "a", "--progress=json")
    assert (ran.code, ran.out) == (2, "")


def test_no_progress_at_all(cli: Cli, three: Path) -> None:
    """--progress=none says nothing on the way, the answer all the same."""
    ran = cli("provision", three, "--progress=none")
    assert (ran.code, ran.err) == (0, "") and "m3: made in" in ran.out


def test_nothing_else_gets_onto_standard_output(cli: Cli, three: Path, tmp_path: Path) -> None:
    """Neither what Python code prints in this process nor what a native library does, also not at exit."""
    noise = """
    import atexit, os, sys
    import refit_agent.gpu.detect as detect
    real = detect.detect
    def loud(*args, **options):
        print("printed")
        os.write(1, b"written\\n")
        return real(*args, **options)
    detect.detect = loud
    atexit.register(os.write, 1, b"at the end\\n")
    import refit_agent.cli.main
    sys.exit(refit_agent.cli.main.main(sys.argv[1:]))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(noise), "provision", str(three), *IN_LINES],
        env=cli.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0 and Lines(ran.stdout).result["ok"]
    assert all(word in ran.stderr for word in ("printed", "written", "at the end"))


def test_a_sign_of_life(cli: Cli, three: Path, tmp_path: Path) -> None:
    """While the runtime is busy and says nothing, lines come all the same, and promise nothing that is not so."""
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=1)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    process = cli.start("provision", three, *IN_LINES)
    _until(lambda: waiting.imports() == 1)
    time.sleep(3.5)
    waiting.go()
    out, _ = process.communicate(timeout=60)
    lines = Lines(out)
    silent = max(lines.steps, key=lambda step: [s["phase"] for s in lines.steps].count(step["phase"]))["phase"]
    beats = [s for s in lines.steps if s["model"] == "m1" and s["phase"] == silent]
    assert len(beats) >= 3 and beats[-1]["elapsed_s"] - beats[0]["elapsed_s"] >= 2
    assert len({b["percent"] for b in beats}) == 1, "it stands still while nobody knows better"
    assert lines.result["ok"]


def test_before_an_engine_says_anything(cli: Cli, three: Path) -> None:
    """Nothing is told of it that is left of the one before."""
    slow = """
    import sys, time
    from refit_agent.cli import main, provision_run
    real = provision_run.ensure
    def ensure(*args, **options):
        time.sleep(1.5)
        return real(*args, **options)
    provision_run.ensure = ensure
    main.run()
    """
    command = [sys.executable, "-c", textwrap.dedent(slow), "provision", str(three), *IN_LINES]
    ran = subprocess.run(command, env=cli.env, capture_output=True, text=True, check=False)
    second = [step for step in Lines(ran.stdout).steps if step["model"] == "m2"]
    assert (second[0]["phase"], second[0]["number"], second[0]["done"]) == ("prepare", 2, 0)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal(cli: Cli, three: Path, tmp_path: Path, signum: int, code: int) -> None:
    """What is ready stays and is reported, what is not has an error; and the last line is there, whole."""
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=2)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    process = cli.start("provision", three, *IN_LINES)
    _until(lambda: waiting.imports() == 2)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    result = Lines(out).result
    assert process.returncode == result["exit_code"] == code
    assert result["error"]["code"] == "stopped" and "Nothing half-done" in err
    codes = [e["error"]["code"] if "error" in e else None for e in result["engines"]]
    assert codes == [None, "stopped", "stopped"] and result["percent"] < 100
    assert cli.leftovers() == [] and _made(cli) == 1
    waiting.go()
    again = Lines(cli("provision", three, *IN_LINES).out)
    assert [e["hit"] for e in again.result["engines"]] == [True, False, False]


def test_a_reader_who_goes_away(cli: Cli, three: Path, tmp_path: Path) -> None:
    """Ends the work as with the other commands: 141, nothing half-done, no worker; what is ready stays."""
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=2)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    process = cli.start("provision", three, *IN_LINES)
    _until(lambda: waiting.imports() == 2)
    assert process.stdout is not None and process.stderr is not None
    (worker,) = psutil.Process(process.pid).children()
    process.stdout.close()
    assert process.wait(30) == 141
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert not worker.is_running() and cli.leftovers() == [] and _made(cli) == 1


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes of a size of our own are Linux's")
def test_a_reader_who_does_not_read(cli: Cli, three: Path) -> None:
    """Holds up no work; who reads at last gets whole lines with all that counts. Who never does gets the exit code."""

    def start(patience_s: float) -> subprocess.Popen[str]:
        code = f"""
        import sys
        from refit_agent.cli import line_writer, main
        line_writer.LAST_WORDS_S = {patience_s}
        main.run()
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), "provision", str(three), *IN_LINES],
            env=cli.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        return process

    late = start(100)
    _until(lambda: _made(cli) == 3)
    out, _ = late.communicate(timeout=60)
    lines = Lines(out)
    assert late.returncode == 0 and len(lines.engines) == 3 and lines.result["ok"]

    cli.env["REFIT_AGENT_HOME"] = str(cli.home / "other")
    never = start(0.1)
    assert never.wait(60) == 0
    assert never.stdout is not None and len([*(cli.home / "other/cache/engines").iterdir()]) == 3
    never.communicate()


def test_a_full_disk_behind_standard_output(cli: Cli, three: Path) -> None:
    """As with the other commands."""
    with open("/dev/full", "w") as full:
        process = cli.start("provision", three, *IN_LINES, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "output-failed" in err and "Traceback" not in err
    assert cli.leftovers() == []


def test_without_standard_streams(cli: Cli, three: Path) -> None:
    """Started without any, it works, and its exit code is all that there is."""
    ran = subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&-', "sh", *cli.command("provision", three, *IN_LINES)], env=cli.env, check=False
    )
    assert ran.returncode == 0 and _made(cli) == 3


def test_target_all(cli: Cli, bundle: Path, edited: Edit, pretend_gpus: Callable[[], None]) -> None:
    """The number of engines depends on the GPUs then: it is not in the first line, but in all after the look at them."""

    def change(manifest: Any) -> None:
        (model,) = manifest["models"]
        (engine,) = model["engines"]
        gpu = engine | {"runtime": "tensorrt", "built_with": "11.4.0.106", "os": ["linux"], "version_compatible": True}
        del gpu["min_runtime"]
        both = copy.deepcopy(model) | {"name": "both"}
        both["engines"] = [gpu | {"compute_capabilities": ["9.0"]}, gpu | {"compute_capabilities": ["8.9"]}]
        manifest["models"].append(both)

    pretend_gpus()
    lines = Lines(cli("provision", edited(change), "--target", "all", *IN_LINES).out)
    assert lines.start["engines"] is None and lines.steps[0]["engines"] is None
    assert [e["engines"] for e in lines.engines] == [3, 3, 3]
    assert [e["engine"]["target"] for e in lines.engines] == ["cpu", "cuda:0", "cuda:2"]
    assert [e["ok"] for e in lines.engines] == [True, False, False]
