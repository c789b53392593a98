"""docs/bundle.schema.json: it is the one of this code, and says what the decoder says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bundles import add_broken_engine, make_bundle
from refit_agent.errors import ManifestInvalid
from refit_agent.manifest import decode_manifest
from refit_agent.manifest.schema import manifest_schema

ROOT = Path(__file__).parents[2]
SHIPPED = json.loads((ROOT / "docs/bundle.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SHIPPED)


def test_the_schema_in_the_repository_is_that_of_the_types() -> None:
    """`refit-agent bundle schema > docs/bundle.schema.json` makes it anew."""
    assert json.loads(json.dumps(manifest_schema())) == SHIPPED
    jsonschema.Draft202012Validator.check_schema(SHIPPED)


def test_real_bundles_are_valid(tmp_path: Path) -> None:
    """As the authoring commands write them, with external data and with an engine of another runtime."""
    root = make_bundle(tmp_path / "bundle", external=True, compression="zstd")
    add_broken_engine(root)
    VALIDATOR.validate(json.loads((root / "bundle.json").read_text()))


@pytest.mark.parametrize("page", ["README.md", "docs/bundle-format.md"])
def test_the_manifests_that_the_pages_show_are_valid(page: str) -> None:
    """Hashes that are cut short for reading are made whole first."""
    shown = re.findall(r"^```json\n(\{\s+\"schema\".*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert shown, f"{page} shows no manifest"
    for text in shown:
        document = json.loads(re.sub(r'"([0-9a-f]{4})…"', lambda m: f'"{m[1] * 16}"', text))
        VALIDATOR.validate(document)
        decode_manifest(json.dumps(document).encode(), page)


def _drop(document: dict[str, Any]) -> None:
    del document["models"][0]["engines"][0]["sha256"]


def _runtime(document: dict[str, Any]) -> None:
    document["models"][0]["engines"][0]["runtime"] = "openvino"


def _hash(document: dict[str, Any]) -> None:
    document["models"][0]["onnx"]["sha256"] = "A" * 64


def _size(document: dict[str, Any]) -> None:
    document["models"][0]["onnx"]["size"] = -1


def _id(document: dict[str, Any]) -> None:
    document["app"]["id"] = "photo"


def _schema(document: dict[str, Any]) -> None:
    document["schema"] = 0


@pytest.mark.parametrize("spoil", [_drop, _runtime, _hash, _size, _id, _schema], ids=lambda f: f.__name__)
def test_what_the_schema_refuses_the_decoder_refuses(tmp_path: Path, spoil: Any) -> None:
    """An editor's red line is an error at the user's, not a matter of taste."""
    root = make_bundle(tmp_path / "bundle")
    document = json.loads((root / "bundle.json").read_text())
    spoil(document)
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(ManifestInvalid):
        decode_manifest(json.dumps(document).encode(), "bundle.json")
