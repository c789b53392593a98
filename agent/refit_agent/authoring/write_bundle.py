"""Write ``bundle.json`` for files that lie in the bundle's folder already."""

from __future__ import annotations

import os

import msgspec

from refit_agent.bundle import MANIFEST_NAME
from refit_agent.digest import hash_file
from refit_agent.manifest import FileRef, Manifest, decode_manifest


def file_ref(root: str, path: str) -> FileRef:
    """The reference of the file ``path`` (relative to ``root``, forward slashes), hashed now."""
    digest, size = hash_file(os.path.join(root, *path.split("/")))
    return FileRef(path=path, size=size, sha256=digest)


def write_manifest(root: str, manifest: Manifest) -> str:
    """Write the manifest into ``root``, whole or not at all, and give its path.

    Raises:
        BundleError: it would not be accepted when read.
    """
    path = os.path.join(root, MANIFEST_NAME)
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode_manifest(data, path)
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path
