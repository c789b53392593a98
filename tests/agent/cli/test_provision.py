"""`refit-agent provision`: what it makes, what it says, and how it fails."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refit_agent.authoring.demo_bundle import write_demo_bundle

from .command import Cli

Edit = Callable[[Callable[[Any], None]], Path]


def test_first_makes_then_hits(cli: Cli, bundle: Path) -> None:
    """The document holds what an installer needs, and the second time says that it was a hit."""
    first = cli("provision", bundle, "--json")
    assert first.code == 0, first.err
    (made,) = first.document["engines"]
    assert (made["hit"], made["model"], made["profile"], made["target"]) == (False, "classifier", None, "cpu")
    assert made["runtime"] == "onnxruntime" and made["tier"] == "cpu" and made["attempts"] == []
    assert Path(made["path"]).is_file() and made["key"] in made["path"]
    assert made["path"].startswith(str(cli.home))
    assert cli.leftovers() == []

    second = cli("provision", bundle, "--json")
    (hit,) = second.document["engines"]
    assert hit["hit"] is True
    assert hit["path"] == made["path"]
    assert 0 < hit["seconds"] < made["seconds"]
    assert second.err == "", "a hit has no progress to show"


def test_for_people(cli: Cli, bundle: Path) -> None:
    """One engine: how, where, why on standard output; the progress apart from it."""
    made = cli("provision", bundle)
    assert made.code == 0
    assert "classifier: made in" in made.out and "why: runs on the CPU" in made.out
    hit = cli("provision", bundle)
    assert "classifier: in the cache, found in" in hit.out


def test_progress_lines(cli: Cli, bundle: Path) -> None:
    """Without a terminal every phase has a line, the percentage never falls, and there is no escape sequence."""
    lines = cli("provision", bundle, "--json").err.splitlines()
    percents = [int(re.fullmatch(r"classifier: +(\d+)% .+", line)[1]) for line in lines]  # type: ignore[index]
    assert percents == sorted(percents) and percents[-1] == 100
    assert len(lines) > 5
    assert not any("\x1b" in line for line in lines)


def test_one_models_error_stops_no_other(cli: Cli, edited: Edit) -> None:
    """The exit code is that of the first error; the other models are ready all the same."""

    def change(manifest: Any) -> None:
        (model,) = manifest["models"]
        for name in ("broken", "sound"):
            manifest["models"].append(copy.deepcopy(model) | {"name": name})
        del manifest["models"][0]
        manifest["models"][0]["onnx"]["path"] = "classifier/missing.onnx"
        manifest["models"][0]["onnx"]["sha256"] = "0" * 64

    ran = cli("provision", edited(change), "--json")
    broken, sound = ran.document["engines"]
    assert ran.code == 3
    assert broken["model"] == "broken" and broken["error"]["code"] == "bundle-file-missing"
    assert broken["error"]["hint"] and broken["error"]["facts"]["path"].endswith("missing.onnx")
    assert sound["model"] == "sound" and Path(sound["path"]).is_file()

    spoken = cli("provision", cli.home.parent / "edited")
    assert spoken.code == 3
    assert re.search(r"^error \[bundle-file-missing\]: broken: .*\n  hint: ", spoken.err, re.MULTILINE)
    assert spoken.out.startswith("sound: in the cache")


def test_damaged_weights_are_refused(cli: Cli, bundle: Path, edited: Edit) -> None:
    """One changed byte in the weights: an error that names the file, and nothing in the cache."""
    damaged = edited(lambda manifest: None)
    onnx = damaged / "classifier" / "classifier.onnx"
    data = bytearray(onnx.read_bytes())
    data[len(data) // 2] ^= 1
    onnx.write_bytes(data)
    ran = cli("provision", damaged)
    assert ran.code == 3
    assert "error [bundle-file-mismatch]" in ran.err and "classifier.onnx" in ran.err
    assert list((cli.cache / "engines").iterdir()) == [] and cli.leftovers() == []


def test_profiles(cli: Cli, edited: Edit) -> None:
    """--all-profiles provides every profile, --profile one, and an unknown one is an error that lists them."""

    def change(manifest: Any) -> None:
        (model,) = manifest["models"]
        (engine,) = model["engines"]
        model["engines"] = [engine | {"profile": name} for name in ("small", "large")]
        model["default_profile"] = "small"

    changed = edited(change)
    assert [e["profile"] for e in cli("provision", changed, "--json").document["engines"]] == ["small"]
    every = cli("provision", changed, "--all-profiles", "--json").document["engines"]
    assert [e["profile"] for e in every] == ["small", "large"]
    unknown = cli("provision", changed, "--profile", "huge", "--json")
    assert unknown.code == 3
    assert unknown.document["engines"][0]["error"]["code"] == "unknown-profile"
    assert "small, large" in unknown.document["engines"][0]["error"]["message"]


def test_target_all(cli: Cli, bundle: Path, edited: Edit, pretend_gpus: Callable[[], None]) -> None:
    """One engine per kind of GPU that the model is for; a model with CPU engines alone gets its CPU engine."""

    def change(manifest: Any) -> None:
        (model,) = manifest["models"]
        (engine,) = model["engines"]
        gpu = engine | {"runtime": "tensorrt", "built_with": "11.4.0.106", "os": ["linux"], "version_compatible": True}
        del gpu["min_runtime"]
        both = copy.deepcopy(model) | {"name": "both"}
        both["engines"] = [gpu | {"compute_capabilities": ["9.0"]}, gpu | {"compute_capabilities": ["8.9"]}]
        manifest["models"].append(both)

    pretend_gpus()
    ran = cli("provision", edited(change), "--target", "all", "--json")
    engines = ran.document["engines"]
    assert (engines[0]["model"], engines[0]["target"]) == ("classifier", "cpu")
    assert [(e["model"], e["target"]) for e in engines[1:]] == [("both", "cuda:0"), ("both", "cuda:2")]
    # There is no GPU in truth, and the plan is none: what matters is that both were tried.
    assert all("error" in e for e in engines[1:]) and ran.code == 3


def test_deadline_failure_is_remembered_until_retry_or_more_time(cli: Cli, bundle: Path) -> None:
    """What failed is not tried in vain again, `doctor` says so, and `explain` if it counts for the usual deadline;
    --retry and a longer deadline try it."""
    late = cli("path", bundle, "classifier", "--deadline", "0.001", "--json")
    assert late.code == 6 and late.document["error"]["code"] == "worker-timeout"
    again = cli("path", bundle, "classifier", "--deadline", "0.001")
    assert again.code == 6 and "'refit-agent provision --retry' does" in again.err

    def failed_before() -> Any:
        return cli("explain", bundle, "--json").document["models"][0]["candidates"][0]["failed_before"]

    assert failed_before() is None
    (note,) = (cli.home / "state/failures").iterdir()
    note.write_text(note.read_text().replace('"seconds":0.001', '"seconds":900.0'))
    assert failed_before()["code"] == "worker-timeout"
    assert "try it with --retry" in cli("explain", bundle).out
    checks = {c["name"]: c for c in cli("doctor", "--json").document["checks"]}
    assert checks["failures"]["status"] == "warn" and "worker-timeout" in checks["failures"]["lines"][0]
    skipped = cli("provision", bundle, "--json")
    assert skipped.code == 6 and skipped.document["engines"][0]["error"]["code"] == "worker-timeout"
    assert cli("provision", bundle, "--retry").code == 0
    assert failed_before() is None


def test_logs_are_json_on_standard_error(cli: Cli, bundle: Path) -> None:
    """--verbose logs to standard error as JSON lines; standard output stays one document."""
    import json

    ran = cli("--verbose", "provision", bundle, "--json")
    assert ran.document["engines"]
    logged = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    assert any(line["event"] == "engine published" and line["level"] == "info" for line in logged)


def test_background_and_other_errors(cli: Cli, bundle: Path) -> None:
    """Options of wrong value or sense are usage errors; an unknown target lists the known ones."""
    assert cli("provision", bundle, "--background").code == 0
    assert cli("provision", bundle, "--deadline", "0").code == 2
    assert cli("provision", bundle, "--profile", "a", "--all-profiles").code == 2
    unknown = cli("provision", bundle, "--target", "cuda:99")
    assert unknown.code == 5 and "there are: cpu" in unknown.err
    missing = cli("provision", bundle, "--model", "nope", "--json")
    assert missing.code == 3 and missing.document["error"]["code"] == "unknown-model"


def test_own_weights(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """--weights takes another ONNX file of the same model; it needs one model, and the file must be there."""
    from refit_agent.bundle import Bundle

    model = Bundle.open(bundle).manifest.models[0]
    data = bytearray((bundle / model.onnx.path).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "better.onnx").write_bytes(data)
    old = cli("provision", bundle, "--json").document["engines"][0]
    new = cli("provision", bundle, "--weights", tmp_path / "better.onnx", "--json").document["engines"][0]
    assert (old["hit"], new["hit"]) == (False, False)
    assert old["key"] != new["key"]
    missing = cli("provision", bundle, "--weights", tmp_path / "missing.onnx")
    assert missing.code == 2 and "missing.onnx" in missing.err and "Reinstall" not in missing.err


def test_the_file_of_another_model_is_the_caller_s_mistake(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """As a missing file is: the app's vendor can do nothing about it."""
    other = tmp_path / "other"
    write_demo_bundle(str(other), width=16)
    onnx = other / "classifier/classifier.onnx"
    for file in (onnx, tmp_path / "missing.onnx"):
        ran = cli("provision", bundle, "--weights", file)
        assert ran.code == 2 and "error [own-weights-invalid]: " in ran.err and str(file) in ran.err
        assert "hint: Give an ONNX file of the same model" in ran.err


def test_a_gpu_that_is_not_there_is_the_reason(cli: Cli, bundle: Path) -> None:
    """As with one that is named; no engine that the vendor could add would help."""
    named = cli("provision", bundle, "--target", "cuda:0")
    why = named.err.split("No GPU can be used here: ")[1].splitlines()[0].rstrip(".")
    for target in ("gpu", "cuda"):
        ran = cli("provision", bundle, "--target", target)
        assert ran.code == 5 and "The only engine of model 'classifier' in " in ran.err
        assert f"here: it needs another target than {target} (no GPU can be used here: {why})." in ran.err
        assert f"hint: The bundle has an engine for the CPU: leave the target {target} out." in ran.err
