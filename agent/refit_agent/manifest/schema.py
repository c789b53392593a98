"""The JSON Schema of ``bundle.json``, made from the types that decode it."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from refit_agent.manifest.decode import SCHEMA
from refit_agent.manifest.fields import Manifest

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def manifest_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of the manifest, for editors and for tools in other languages.

    Every ``bundle.json`` that `decode_manifest` takes is valid by it. The reverse does not hold: what the schema
    cannot say (paths that stay in the folder, names that are not there twice, which fields need each other) is
    checked by `decode_manifest` alone. Fields that it does not name are allowed, as they are ignored.
    """
    schema = msgspec.json.schema(Manifest)
    for kind in schema["$defs"].values():
        if "description" in kind:
            kind["description"] = inspect.cleandoc(kind["description"])
    schema["$defs"]["Manifest"]["properties"]["schema"] |= {"minimum": 1, "maximum": SCHEMA}
    return {"$schema": _DIALECT, "title": f"bundle.json, schema {SCHEMA}", **schema}
