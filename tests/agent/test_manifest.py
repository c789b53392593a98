from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import model_of
from refit_agent.errors import ManifestInvalid, ManifestTooNew, NotAnOnnxModel, UnsafePath
from refit_agent.manifest import Manifest, Model, decode_manifest, path_fault, unknown_fields

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
        ("models.0.engines.1.min_runtime", "1.18", "only a graph for ONNX Runtime has an oldest version"),
        ("models.0.engines.0.min_runtime", "new", "engines[0].min_runtime"),
        ("models.0.engines.0.min_runtime", "1.21", "made with ONNX Runtime 1.20.1 cannot need 1.21"),
        ("models.0.engines.0.min_runtime", "1.20.2", "made with ONNX Runtime 1.20.1 cannot need 1.20.2"),
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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("models.0.onnx.sha256", HASH + "\n"),
        ("models.0.onnx.url", "https://example.org/m\n"),
        ("app.id", "org.example.test\n"),
        ("models.0.engines.0.built_with", "10.16\n"),
        ("models.0.engines.0.built_with", "9" * 5000 + ".1"),
        ("models.0.engines.0.min_driver", "\u0661\u0660.\u0661"),
        ("models.0.engines.0.compute_capabilities", ["\u0669.\u0660"]),
    ],
    ids=["hash", "url", "id", "version", "endless", "digits", "capability"],
)
def test_what_only_looks_like_it_is_refused(path: str, value: object) -> None:
    """A line end behind the text, digits of another script, a number that Python does not read."""
    doc: Any = document()
    *way, last = path.split(".")
    at = doc
    for part in way:
        at = at[int(part) if part.isdigit() else part]
    at[last] = value
    with pytest.raises(ManifestInvalid, match=re.escape(f".{last}")):
        decode(doc)


def test_what_is_ignored_must_be_text_all_the_same() -> None:
    """Whoever lists it, as `refit-agent verify` does, reads it."""
    data = json.dumps(document()).encode()[:-1] + b', "later": "\xff"}'
    with pytest.raises(ManifestInvalid, match="utf-8"):
        decode_manifest(data, "bundle.json")


def test_what_is_ignored_and_no_value_is_told_to_whoever_lists_it() -> None:
    """It stops nobody who only uses the bundle."""
    data = json.dumps(document()).encode()[:-1] + b', "later": 1e999}'
    assert decode_manifest(data, "bundle.json").schema == 1
    with pytest.raises(ManifestInvalid, match="out of range"):
        unknown_fields(data)


def test_a_model_name_cannot_stand_twice() -> None:
    """Which of two models is meant would be chance."""
    doc = document()
    doc["models"].append(dict(model_of(doc)))
    with pytest.raises(ManifestInvalid, match="'m' stands there twice"):
        decode(doc)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("sha256", "1" * 64, "hashes"), ("size", 11, "sizes"), ("url", "https://example.org/m", "urls")],
)
def test_two_models_agree_on_a_file_that_they_share(field: str, value: object, says: str) -> None:
    """Else one of them would be verified with what the other says of it."""
    doc = document()
    other = json.loads(json.dumps(model_of(doc)))
    other["name"] = "n"
    doc["models"].append(other)
    decode(doc)
    other["onnx"][field] = value
    with pytest.raises(ManifestInvalid, match=f"'m.onnx' is listed with two different {says}"):
        decode(doc)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://[example.org/x", "cannot be understood"),
        ("https://example.org:x/y", "cannot be understood"),
        ("https://example.org:99999/y", "cannot be understood"),
        ("https://user:secret@example.org/x", "user or password"),
        ("s3://user@bucket/x", "user or password"),
        ("abfs://user:secret@account/x", "user or password"),
        ("https:///x", "names no host"),
        ("https://:443/x", "names no host"),
        ("s3://bucket/x::file:///etc/passwd", "chains it"),
        ("https://example.org/x::file:///y", "chains it"),
        ("https://example.org/x#y", "fragment"),
    ],
)
def test_a_url_that_means_more_than_a_place_is_refused(url: str, says: str) -> None:
    """Before anything is fetched from it, and without showing what may be a secret."""
    doc = document()
    model_of(doc)["onnx"]["url"] = url
    with pytest.raises(ManifestInvalid, match=says) as info:
        decode(doc)
    assert "secret" not in str(info.value)


@pytest.mark.parametrize(
    "url", ["https://[::1]:8443/x?sig=a", "s3://bucket/x", "abfs://box@account.dfs.core.windows.net/x"]
)
def test_a_url_that_is_a_place_is_taken(url: str) -> None:
    """An IPv6 address is no chain, and a container of Azure no user."""
    doc = document()
    model_of(doc)["onnx"]["url"] = url
    assert decode(doc).models[0].require_onnx().url == url


def llm() -> dict[str, Any]:
    """A manifest with an engine of TensorRT-LLM for two GPUs."""
    file = {"size": 10, "sha256": HASH}
    doc = document()
    plan = {"path": "p/rank1", **file, "plan_size": 30, "compression": "zstd", "safetensors": ["w1"]}
    engine = {
        **model_of(doc)["engines"][1],
        "gpu": "NVIDIA L4",
        "config": {"path": "p/config.json", **file},
        "safetensors": ["w0"],
        "ranks": [plan],
    }
    files = [{"path": path, **file} for path in ("w0", "w1", "w2")]
    doc["models"] = [{"name": "m", "safetensors": files, "engines": [engine]}]
    return doc


def test_a_model_may_have_its_weights_in_safetensors_files() -> None:
    """With an engine of several plans, each of which says which of them it takes."""
    manifest = decode(llm())
    model = manifest.models[0]
    (engine,) = model.engines
    assert [plan.path for plan in engine.plans] == ["p/gpu", "p/rank1"]
    assert [f.path for f in model.files()] == ["w0", "w1", "w2", "p/gpu", "p/rank1", "p/config.json"]
    assert [f.path for f in model.weight_files_of(engine)] == ["w0", "w1"]
    data = msgspec.json.encode(manifest)
    assert decode_manifest(data, "") == manifest
    assert unknown_fields(data) == []
    with pytest.raises(NotAnOnnxModel, match="'m' has no ONNX file"):
        model.require_onnx()


def test_a_plan_that_names_no_safetensors_file_takes_them_all() -> None:
    """One such plan is enough."""
    doc = llm()
    del model_of(doc)["engines"][0]["ranks"][0]["safetensors"]
    model = decode(doc).models[0]
    assert model.weight_files_of(model.engines[0]) == model.safetensors


def test_fields_of_a_further_plan_that_nobody_knows_are_listed() -> None:
    """A misspelt one has no effect, and whoever makes the bundle wants to know."""
    doc = llm()
    model_of(doc)["engines"][0]["ranks"][0]["safetensor"] = ["w1"]
    assert unknown_fields(json.dumps(doc).encode()) == ["$.models[0].engines[0].ranks[0].safetensor"]


ONNX = {"path": "m.onnx", "size": 10, "sha256": HASH}
CPU = {"path": "p/cpu", "size": 10, "sha256": HASH, "runtime": "onnxruntime", "built_with": "1.20.1", "plan_size": 10}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("models.0.safetensors", KeyError, "either an ONNX file (onnx) or safetensors files (safetensors) - at `$.models['m']`"),
        ("models.0.onnx", ONNX, "either an ONNX file (onnx) or safetensors files"),
        ("models.0.external", [ONNX], "only an ONNX file has external data"),
        ("models.0.safetensors.1.path", "w0", "stands there twice"),
        ("models.0.engines.0.safetensors", ["w9"], "takes weights from 'w9', which is not among"),
        ("models.0.engines.0.ranks.0.safetensors", ["w9"], "takes weights from 'w9', which is not among"),
        ("models.0.engines.1", CPU, "'p/cpu' is for ONNX Runtime, which needs a model with an ONNX file"),
        ("models.0.engines.0.config", KeyError, "must have its config"),
        ("models.0.engines.0.ranks.0.plan_size", -1, "ranks[0].plan_size"),
        ("models.0.engines.0.ranks.0.compression", "none", "10 bytes cannot unpack to plan_size 30"),
        ("models.0.engines.0.config.size", 17 << 20, "a config.json has no 17825792 bytes"),
        ("models.0.engines.0.config.url", "https://example.org/c", "'p/config.json' has a url"),
        ("models.0.engines.0.ranks.0.url", "https://example.org/c", "'p/rank1' has a url"),
        ("models.0.engines.0.runtime", "tensorrt-rtx", "is one of TensorRT, and for its version alone"),
        ("models.0.engines.0.version_compatible", True, "for its version alone"),
        ("models.0.engines.0.host_code", True, "for its version alone"),
        ("models.0.engines.0.lean_runtime", {"path": "l", "size": 1, "sha256": HASH}, "for its version alone"),
        ("models.0.engines.0.gpu", KeyError, "must name the GPU model"),
        ("models.0.golden", [{"inputs": {}, "outputs": {"y": ONNX}}], "can have no golden data"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_in_such_a_model_is_named(path: str, value: object, says: str) -> None:
    """Whoever wrote it finds the field."""
    doc = llm()
    if path == "models.0.engines.1":
        model_of(doc)["engines"].append(value)
    else:
        _set(path, value)(doc)
    with pytest.raises(ManifestInvalid) as info:
        decode(doc)
    assert says in str(info.value)


def test_an_onnx_model_has_no_engine_of_tensorrt_llm() -> None:
    """Its weights have other names."""
    doc = llm()
    model = model_of(doc)
    del model["safetensors"]
    model["onnx"] = ONNX
    for plan in (model["engines"][0], model["engines"][0]["ranks"][0]):
        del plan["safetensors"]
    with pytest.raises(ManifestInvalid, match="takes its weights from safetensors files"):
        decode(doc)


def test_safetensors_may_be_elsewhere() -> None:
    """Like an ONNX file."""
    doc = llm()
    model_of(doc)["safetensors"][0]["url"] = "https://example.org/w0"
    model = decode(doc).model("m")
    assert isinstance(model, Model)
    assert model.safetensors[0].url == "https://example.org/w0"


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
@pytest.mark.parametrize("place", ["onnx", "external", "engine", "golden", "lean", "safetensors", "rank", "config"])
def test_a_path_that_could_leave_the_bundle_is_refused_wherever_it_stands(path: str, place: str) -> None:
    """By the rules of both operating systems, in every field that names a file."""
    doc = llm() if place in ("safetensors", "rank", "config") else document()
    model = model_of(doc)
    ref = {"path": path, "size": 10, "sha256": HASH}
    if place == "safetensors":
        model["safetensors"][2] = ref
    elif place == "rank":
        model["engines"][0]["ranks"][0]["path"] = path
    elif place == "config":
        model["engines"][0]["config"] = ref
    elif place == "onnx":
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
