from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import model_of
from refit_agent.errors import ManifestInvalid, ManifestTooNew, UnsafePath
from refit_agent.manifest import Manifest, decode_manifest, path_fault

HASH = "0" * 64


def document() -> dict[str, Any]:
    """The smallest manifest with an engine of each kind."""
    file = {"size": 10, "sha256": HASH}
    cpu = {"path": "p/cpu", **file, "runtime": "onnxruntime", "built_with": "1.20.1", "plan_size": 10}
    gpu = {
        "path": "p/gpu",
        **file,
        "runtime": "tensorrt",
        "built_with": "10.0.1",
        "plan_size": 10,
        "os": ["linux"],
        "compute_capabilities": ["8.6"],
        "profile": "small",
    }
    model = {"name": "m", "onnx": {"path": "m.onnx", **file}, "engines": [cpu, gpu]}
    return {"schema": 1, "app": {"id": "org.example.app", "name": "App", "version": "1"}, "models": [model]}


def decode(doc: object) -> Manifest:
    return decode_manifest(json.dumps(doc).encode(), "bundle.json")


def test_a_sound_manifest_decodes_and_unknown_fields_are_ignored() -> None:
    """An older agent reads a newer bundle of the same schema."""
    doc = document()
    doc["later"] = model_of(doc)["engines"][0]["later"] = {"x": [1]}
    manifest = decode(doc)
    model = manifest.model("m")
    assert model is not None
    assert model.profiles() == ("small",)
    assert [f.path for f in model.files()] == ["m.onnx", "p/cpu", "p/gpu"]
    assert manifest.model("other") is None


def test_a_newer_schema_is_refused_although_nothing_else_of_it_decodes() -> None:
    """The message names both schemas and the remedy."""
    with pytest.raises(ManifestTooNew) as info:
        decode({"schema": 2, "apps": "elsewhere"})
    assert "schema 2" in str(info.value)
    assert "up to 1" in str(info.value)
    assert info.value.hint == "Update refit-agent."


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b'{"schema": 1, "app"', "truncated"),
        (b"no json", "malformed"),
        (b"\xff\xfe", ""),
        (b'{"schema": 1, "app": "\xff"}', ""),
        (b'{"schema": "1"}', "$.schema"),
        (b'{"schema": 1}', "app"),
        (b"[" * 100_000, ""),
        (b'{"schema": 1, "app": ' + b"[" * 100_000, ""),
    ],
)
def test_what_does_not_parse_is_refused_with_the_place(data: bytes, says: str) -> None:
    """Broken JSON and broken types are one error, which names the file and what is wrong."""
    with pytest.raises(ManifestInvalid) as info:
        decode_manifest(data, "/b/bundle.json")
    assert says in str(info.value)
    assert str(info.value).startswith("/b/bundle.json is not a valid manifest")


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(doc: dict[str, Any]) -> None:
        node: Any = doc
        *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        for part in way:
            node = node[part]
        if value is KeyError:
            del node[last]
        else:
            node[last] = value

    return change


GOLDEN = {"inputs": {}, "outputs": {}}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema", 0, "schema 0 has never existed"),
        ("schema", -5, "schema -5 has never existed"),
        ("app.id", "no dots", "$.app.id"),
        ("models.0.onnx.size", -1, "$.models[0].onnx.size"),
        ("models.0.onnx.size", 1 << 60, "$.models[0].onnx.size"),
        ("models.0.onnx.sha256", "ABC", "$.models[0].onnx.sha256"),
        ("models.0.onnx.path", "", "$.models[0].onnx.path"),
        ("models.0.engines.0.runtime", "tflite", "$.models[0].engines[0].runtime"),
        ("models.0.engines.0.compression", "rar", "$.models[0].engines[0].compression"),
        ("models.0.engines.0.built_with", "10", "$.models[0].engines[0].built_with"),
        ("models.0.engines.0.tolerance", 0, "$.models[0].engines[0].tolerance"),
        ("models.0.engines.0.plan_size", 11, "cannot unpack to plan_size 11 - at `$.models['m'].engines[0]`"),
        ("models.0.engines.1.os", [], "(os) - at `$.models['m'].engines[1]`"),
        ("models.0.engines.1.compute_capabilities", [], "(compute_capabilities)"),
        ("models.0.engines.1.hardware_compatibility", "ampere-plus", "must give min_compute_capability"),
        ("models.0.engines.1.refit", "identical", "(weights_sha256)"),
        ("models.0.engines.1.sha256", KeyError, "sha256"),
        ("models.0.engines.1.path", "m.onnx", ""),
        ("models.0.default_profile", "huge", "no engine of 'm' has the default profile 'huge'"),
        ("models.0.golden", [GOLDEN], "at least one output - at `$.models['m'].golden[0]`"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_its_place(path: str, value: object, says: str) -> None:
    """Whoever wrote the manifest finds the field."""
    doc = document()
    _set(path, value)(doc)
    if path.endswith(".path") and value:
        _set("models.0.engines.1.sha256", "1" * 64)(doc)
        says = "'m.onnx' is listed with two different hashes"
    with pytest.raises(ManifestInvalid) as info:
        decode(doc)
    assert says in str(info.value)


def test_a_model_name_cannot_stand_twice() -> None:
    """Which of two models is meant would be chance."""
    doc = document()
    doc["models"].append(dict(model_of(doc)))
    with pytest.raises(ManifestInvalid, match="'m' stands there twice"):
        decode(doc)


UNSAFE = {
    "/etc/passwd": "absolute",
    "../x": "'..'",
    "a/../../x": "'..'",
    "a/..": "'..'",
    "a\\b": "backslash",
    "..\\x": "backslash",
    "C:/x": "colon",
    "a/b:stream": "colon",
    "a//b": "empty",
    "./a": "'.'",
    "a/.": "'.'",
    "a/": "empty",
    "a.": "ends in",
    "a /b": "ends in",
    "NUL": "device",
    "x/con.txt": "device",
    "x/con .txt": "device",
    "Com1.plan": "device",
    "com¹": "device",
    "CONIN$": "device",
    "a\nb": "control",
    "a\0b": "control",
}


@pytest.mark.parametrize("path", UNSAFE)
@pytest.mark.parametrize("place", ["onnx", "external", "engine", "golden", "lean"])
def test_a_path_that_could_leave_the_bundle_is_refused_wherever_it_stands(path: str, place: str) -> None:
    """By the rules of both operating systems, in every field that names a file."""
    doc = document()
    model = model_of(doc)
    ref = {"path": path, "size": 10, "sha256": HASH}
    if place == "onnx":
        model["onnx"] = ref
    elif place == "external":
        model["external"] = [ref]
    elif place == "golden":
        model["golden"] = [{"inputs": {}, "outputs": {"y": ref}}]
    elif place == "lean":
        model["engines"][1]["lean_runtime"] = ref
    else:
        model["engines"][0]["path"] = path
    with pytest.raises(UnsafePath) as info:
        decode(doc)
    assert UNSAFE[path] in str(info.value)
    assert repr(path) in str(info.value)
    assert info.value.code == "unsafe-path"


@given(st.text(alphabet="ab./\\: \0\n~-", min_size=1, max_size=12))
def test_a_path_without_fault_stays_below_the_folder(path: str) -> None:
    """Whatever passes is the plain way to one file below the root."""
    if path_fault(path) == "":
        root = Path("/bundle")
        assert os.path.normpath(root / path) == str(root / path)
        assert (root / path).is_relative_to(root)
        assert (root / path) != root
        assert not re.search(r"[\\:\0-\x1f]", path)
