"""From the bytes of ``bundle.json`` to a manifest that keeps every rule; what a draft lacks, what is unknown in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec

from refit_agent.errors import ManifestInvalid, ManifestTooNew
from refit_agent.manifest.fields import Manifest
from refit_agent.manifest.rules import check

SCHEMA = 1
#: A manifest is text about files, not the files: more than this is a mistake or an attack.
MAX_MANIFEST_BYTES = 16 << 20


class _SchemaOnly(msgspec.Struct):
    schema: int


_full = msgspec.json.Decoder(Manifest)
_schema = msgspec.json.Decoder(_SchemaOnly)


def decode_manifest(data: bytes, path: str, *, draft: bool = False) -> Manifest:
    """The manifest in ``data``; ``path`` is only for messages. A ``draft`` may lack what is still to be made: it
    may have no model, models without engines, or none of the default profile. Only those who make bundles take one.

    Raises:
        ManifestTooNew: a schema that this version does not know.
        ManifestInvalid: not JSON, a field missing or wrong (the message says where), a name twice, not finished.
        UnsafePath: a path that could leave the bundle.
    """
    try:
        if not data.isascii():
            data.decode()  # what is skipped is not looked at otherwise, and whoever lists it later would stumble
        schema = _schema.decode(data).schema
        if schema > SCHEMA:
            # Asked first: a newer manifest need not even decode by today's rules.
            raise ManifestTooNew(path=path, schema=schema, newest=SCHEMA)
        manifest = _full.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(path=path, detail=str(error)) from error
    if schema < 1:
        raise ManifestInvalid(path=path, detail=f"schema {schema} has never existed")
    check(manifest, path)
    missing = "" if draft else unfinished(manifest)
    if missing:
        hint = "Its developer finishes it with 'refit-agent bundle add-model' and 'add-engine'."
        raise ManifestInvalid(path=path, detail=f"it is not finished: {missing}", hint=hint)
    return manifest


def unfinished(manifest: Manifest) -> str:
    """What a draft lacks to be a bundle, as the end of a sentence; "" if nothing."""
    if not manifest.models:
        return "it has no model yet"
    bare = [repr(model.name) for model in manifest.models if not model.engines]
    if bare:
        return f"no engine yet for {', '.join(bare)}"
    for model in manifest.models:
        if model.default_profile is not None and model.default_profile not in model.profiles():
            return f"no engine of {model.name!r} has the default profile {model.default_profile!r}"
    return ""


def unknown_fields(data: bytes) -> list[str]:
    """Where a manifest has fields that this version does not know, as JSON paths: newer ones, or misspelt.

    They are ignored when it is read; whoever makes a bundle wants to know, since a misspelt "golden"
    is a check that never happens. ``data`` must be one that `decode_manifest` takes.

    Raises:
        ManifestInvalid: what such a field holds is no JSON value that could be read: a number without end, say.
    """
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = f"it has a field that is not known and cannot be read: {error}"
        raise ManifestInvalid(path="bundle.json", detail=detail) from error
    return list(_unknown(document, Manifest, "$"))


def _unknown(value: Any, kind: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}
        for name, item in value.items():
            if name not in fields:
                yield f"{where}.{name}"
                continue
            for inner in _structs(fields[name]):
                yield from _unknown(item, inner, f"{where}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown(item, kind, f"{where}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _unknown(item, kind[dict], f"{where}.{name}") if isinstance(kind, dict) else ()


def _structs(kind: Any) -> Iterator[Any]:
    """The Struct types inside an annotation; a mapping's values as ``{dict: Struct}``."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        return
    arguments = get_args(kind)
    for argument in arguments:
        for inner in _structs(argument):
            yield {dict: inner} if get_origin(kind) is dict else inner
