"""Write ``bundle.json`` for files that lie in the bundle's folder already."""

from __future__ import annotations

import contextlib
import os

import msgspec

from refit_agent.authoring.change import bundle_lock
from refit_agent.bundle import MANIFEST_NAME
from refit_agent.digest import hash_file
from refit_agent.manifest import FileRef, Manifest, decode_manifest
from refit_agent.signature import SIGNATURE_NAME


def file_ref(root: str, path: str) -> FileRef:
    """The reference of the file ``path`` (relative to ``root``, forward slashes), hashed now."""
    digest, size = hash_file(os.path.join(root, *path.split("/")))
    return FileRef(path=path, size=size, sha256=digest)


def write_manifest(root: str, manifest: Manifest) -> str:
    """Write the manifest into ``root``, whole or not at all, and give its path. A signature of another manifest
    is removed: it is good for nothing any more.

    Raises:
        BundleError: it would not be accepted when read.
        BundleBusy, BundleUnwritable: another command holds the bundle, or it cannot be locked.
    """
    path = os.path.join(root, MANIFEST_NAME)
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode_manifest(data, path)
    temporary = path + ".tmp"
    with bundle_lock(root):
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if _content(path) != data:
            # First: no crash may leave a signature beside what it is not of.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(root, SIGNATURE_NAME))
        os.replace(temporary, path)
    return path


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
