"""The manifest, ``bundle.json``: what an app ships, decoded and checked, with no file but itself read.

    Manifest ─┬─ app        App
              └─ models     Model ─┬─ onnx, external   FileRef   the weights, once
                                   ├─ safetensors      FileRef   or these, where there is no ONNX file
                                   ├─ golden           Golden    inputs with the outputs they must give
                                   └─ engines          Engine ─┬ one stripped plan each
                                                               └ ranks   Plan   those of further GPUs

Unknown fields are ignored, so that an older agent reads a newer bundle of the same schema; a newer
schema is refused. Every path is relative, forward-slashed and confined to the bundle's folder, by
the rules of POSIX and of Windows at once, since one bundle serves both.
"""

from __future__ import annotations

from refit_agent.manifest.decode import (
    MAX_MANIFEST_BYTES,
    SCHEMA,
    decode_manifest,
    unfinished,
    unknown_fields,
)
from refit_agent.manifest.fields import (
    App,
    Bytes,
    Compression,
    ComputeCapability,
    Engine,
    FileRef,
    Golden,
    HardwareCompatibility,
    Manifest,
    Model,
    Name,
    Plan,
    RuntimeKind,
    Sha256,
    Version,
)
from refit_agent.manifest.places import (
    path_fault,
    url_fault,
)

__all__ = [
    "MAX_MANIFEST_BYTES",
    "SCHEMA",
    "App",
    "Bytes",
    "Compression",
    "ComputeCapability",
    "Engine",
    "FileRef",
    "Golden",
    "HardwareCompatibility",
    "Manifest",
    "Model",
    "Name",
    "Plan",
    "RuntimeKind",
    "Sha256",
    "Version",
    "decode_manifest",
    "path_fault",
    "unfinished",
    "unknown_fields",
    "url_fault",
]
