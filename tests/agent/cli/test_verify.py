"""`refit-agent verify`: every file, sound or at fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .command import Cli

Edit = Callable[[Callable[[Any], None]], Path]


def test_sound(cli: Cli, bundle: Path) -> None:
    """Every file of the manifest is listed once."""
    ran = cli("verify", bundle)
    assert ran.code == 0 and ran.out.count("ok    classifier/") == 4 and "4 files" in ran.out
    document = cli("verify", bundle, "--json").document
    assert document["ok"] is True and all(f["ok"] for f in document["files"]) and len(document["files"]) == 4


def test_every_fault_is_listed(cli: Cli, edited: Edit) -> None:
    """A changed byte, a missing file and a link out of the bundle: all three are named, the fourth is sound."""
    damaged = edited(lambda manifest: None)
    onnx = damaged / "classifier" / "classifier.onnx"
    data = bytearray(onnx.read_bytes())
    data[1000] ^= 1
    onnx.write_bytes(data)
    (damaged / "classifier" / "golden-image.npy").unlink()
    scores = damaged / "classifier" / "golden-scores.npy"
    outside = damaged.parent / "outside.npy"
    os.rename(scores, outside)
    scores.symlink_to(outside)

    ran = cli("verify", damaged, "--json")
    assert ran.code == 3 and ran.document["ok"] is False
    found = {os.path.basename(f["path"]): f.get("error", {}).get("code") for f in ran.document["files"]}
    assert found == {
        "classifier.onnx": "bundle-file-mismatch",
        "golden-image.npy": "bundle-file-missing",
        "golden-scores.npy": "unsafe-path",
        "classifier.cpu.onnx": None,
    }
    spoken = cli("verify", damaged)
    assert spoken.code == 3 and spoken.out.count("FAULT") == 3 and "3 with faults" in spoken.out


def test_what_the_manifest_does_not_name_is_no_fault(cli: Cli, edited: Edit) -> None:
    """Notes, leftovers, a plan that somebody forgot to add: named, and some of many."""
    more = edited(lambda manifest: None)
    assert "notice" not in cli("verify", more).out and cli("verify", more, "--json").document["unnamed_files"] == []
    (more / "classifier" / "old plans").mkdir()
    (more / "classifier" / "old plans" / "forgotten.plan").write_bytes(b"plan")
    (more / "notes.txt").symlink_to("nowhere")
    (more / ".refit-agent-staging-1").mkdir()
    (more / ".refit-agent-staging-1" / "half.plan").touch()
    ran = cli("verify", more)
    assert ran.code == 0 and "4 files, " in ran.out and ran.out.count("notice: ") == 2
    assert "notice: classifier/old plans/forgotten.plan is in the folder, and the manifest does not name it" in ran.out
    assert cli("verify", more, "--json").document["unnamed_files"] == ["notes.txt", "classifier/old plans/forgotten.plan"]  # fmt: skip
    for number in range(30):
        (more / f"{number}.log").touch()
    ran = cli("verify", more)
    assert ran.out.count("notice: ") == 21 and "neither does it name 12 more files" in ran.out


def test_no_bundle(cli: Cli, tmp_path: Path) -> None:
    """A folder without a manifest, and a manifest that is none."""
    assert cli("verify", tmp_path).code == 3
    (tmp_path / "bundle.json").write_text("{")
    ran = cli("verify", tmp_path, "--json")
    assert ran.code == 3 and ran.document["error"]["code"] == "manifest-invalid"


def test_weights_that_are_elsewhere_are_no_fault(cli: Cli, edited: Edit) -> None:
    """Said by name, with where they are; those that are here are compared."""
    url = "https://cdn.example.org/classifier.onnx"
    away = edited(lambda manifest: manifest["models"][0]["onnx"].update(url=url))
    assert "ok    classifier/classifier.onnx" in cli("verify", away).out
    (away / "classifier" / "classifier.onnx").unlink()
    ran = cli("verify", away)
    assert ran.code == 0 and f"away  classifier/classifier.onnx, fetched from {url}" in ran.out
    assert [f.get("elsewhere") for f in cli("verify", away, "--json").document["files"]].count(url) == 1


def test_the_query_of_a_url_is_not_shown(cli: Cli, edited: Edit) -> None:
    """It may be a token, and reports are passed on."""
    url = "https://cdn.example.org/c.onnx?token=secret"
    away = edited(lambda manifest: manifest["models"][0]["onnx"].update(url=url))
    (away / "classifier" / "classifier.onnx").unlink()
    for ran in (cli("verify", away), cli("verify", away, "--json")):
        assert ran.code == 0 and "https://cdn.example.org/c.onnx" in ran.out and "secret" not in ran.out
