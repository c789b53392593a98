"""`refit-agent explain` and `refit-agent gpus`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .command import Cli

Edit = Callable[[Callable[[Any], None]], Path]


def _with_gpu_engine(manifest: Any) -> None:
    (model,) = manifest["models"]
    (engine,) = model["engines"]
    gpu = {"runtime": "tensorrt", "built_with": "8.6.0.12", "os": ["linux"], "compute_capabilities": ["7.5"]}
    model["engines"].append(engine | gpu | {"path": "classifier/turing.plan", "min_runtime": None})


def test_explain_before_and_after(cli: Cli, bundle: Path) -> None:
    """The candidate with its reason and loader; whether it is in the cache changes when it is made."""
    before = cli("explain", bundle, "--json")
    (candidate,) = before.document["models"][0]["candidates"]
    assert before.code == 0
    assert candidate["module"] == "onnxruntime" and candidate["module_version"] and candidate["reason"]
    assert candidate["cached"] is False and candidate["failed_before"] is None
    assert "not in the cache yet" in cli("explain", bundle).out

    made = cli("provision", bundle, "--json").document["engines"][0]
    after = cli("explain", bundle, "--json").document["models"][0]["candidates"][0]
    assert after["cached"] is True and after["key"] == made["key"]
    text = cli("explain", bundle).out
    assert f"in the cache as {made['key'][:12]}" in text and "loaded by onnxruntime" in text


def test_explain_refusals(cli: Cli, edited: Edit) -> None:
    """Every engine that is not a candidate has its reason, also under a target."""
    changed = edited(_with_gpu_engine)
    (model,) = cli("explain", changed, "--target", "cpu", "--json").document["models"]
    assert [r["engine"] for r in model["refusals"]] == ["classifier/turing.plan"]
    assert model["refusals"][0]["reason"] and model["refusals"][0]["code"] == "other-target"
    assert "  not classifier/turing.plan: " in cli("explain", changed).out
    nothing = cli("explain", changed, "--target", "gpu")
    assert "nothing in the bundle can be used here" in nothing.out


def test_explain_errors(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """Unknown names and missing bundles are errors, with a document under --json."""
    assert cli("explain", bundle, "--model", "nope").code == 3
    assert cli("explain", tmp_path, "--json").document["error"]["code"] == "bundle-missing"
    profile = cli("explain", bundle, "--profile", "huge", "--json")
    assert profile.code == 3 and profile.document["models"][0]["error"]["code"] == "unknown-profile"
    assert "error [unknown-profile]: classifier: " in cli("explain", bundle, "--profile", "huge").err


def test_names_from_a_hostile_bundle_are_harmless_on_a_terminal(cli: Cli, edited: Edit) -> None:
    """Escape sequences and invisible characters of a manifest are shown, not sent."""

    def change(manifest: Any) -> None:
        manifest["models"][0]["name"] = "evil\x1b[31m[bold]\u202e"

    changed = edited(change)
    text = cli("explain", changed).out
    assert "\x1b" not in text and "\u202e" not in text
    assert "model evil\\x1b[31m[bold]\\u202e" in text
    assert cli("explain", changed, "--json").document["models"][0]["model"] == "evil\x1b[31m[bold]\u202e"


def test_gpus_without_any(cli: Cli) -> None:
    """The machine as selection sees it, with the runtimes; a reason stands where GPUs are missing."""
    ran = cli("gpus", "--fresh", "--json")
    assert ran.code == 0
    assert bool(ran.document["gpus"]) != bool(ran.document["no_gpu_reason"])
    assert "onnxruntime" in [r["module"] for r in ran.document["runtimes"]]
    text = cli("gpus").out
    assert "onnxruntime" in text and (ran.document["no_gpu_reason"] in text)


def test_gpus_with_some(cli: Cli, pretend_gpus: Callable[[], None]) -> None:
    """Each GPU has a line with target, name and UUID."""
    pretend_gpus()
    lines = cli("gpus").out.splitlines()
    assert lines[0].endswith("NVIDIA driver 580.159.04, CUDA up to 13.0")
    assert lines[2].split() == ["cuda:0", "NVIDIA", "H100", "9.0", "80.0", "GiB", "-", "GPU-1"]
    assert [line.split()[0] for line in lines[2:5]] == ["cuda:0", "cuda:1", "cuda:2"]
