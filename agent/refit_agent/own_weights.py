"""Weights that the caller brings in place of the bundle's: an ONNX file with its external data."""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec

from refit_agent.digest import hash_file
from refit_agent.errors import BundleError, BundleFileMissing, OwnWeightsInvalid
from refit_agent.manifest import FileRef, Model
from refit_agent.refit.messages import Located
from refit_agent.weights import OnnxWeights

#: As `manifest.Name`.
_LONGEST_NAME = 200


class OwnWeights(NamedTuple):
    """An ONNX file and its external data files, hashed."""

    onnx: Located
    external: tuple[Located, ...]

    def in_place_of(self, model: Model) -> Model:
        """The model as it would be with these weights: no golden data, since that belongs to the old ones."""
        external = tuple(f.ref for f in self.external)
        return msgspec.structs.replace(model, onnx=self.onnx.ref, external=external, golden=())


def own_weights(path: str | os.PathLike[str]) -> OwnWeights:
    """Read which files the model at ``path`` keeps its weights in, and hash them all.

    Raises:
        OwnWeightsInvalid: a file is missing, or not sound.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise OwnWeightsInvalid(path=ascii(os.fspath(path)), detail="its path is not UTF-8.") from error
    try:
        return _own_weights(path)
    except BundleError as error:
        # The bundle is sound; its reader must not be sent to reinstall the app.
        detail = f"{error.facts['detail']}." if isinstance(error, BundleFileMissing) else str(error)
        raise OwnWeightsInvalid(path=os.fspath(path), detail=detail) from error


def _own_weights(path: str | os.PathLike[str]) -> OwnWeights:
    main = os.path.abspath(os.fspath(path))
    folder = os.path.realpath(os.path.dirname(main))
    with OnnxWeights(main) as weights:
        _ = weights.model  # looks at every tensor, those in attributes too
        files = {str(file) for file in weights.external_files()}
    return OwnWeights(
        _located(main, os.path.basename(main)),
        tuple(_located(f, os.path.relpath(f, folder).replace(os.sep, "/")) for f in sorted(files)),
    )


def _located(path: str, name: str) -> Located:
    try:
        digest, size = hash_file(path)
    except OSError as error:
        raise BundleFileMissing(path=path, detail=error.strerror or str(error)) from error
    # The worker takes no longer names than the manifest's; only their end tells files of one model apart.
    return Located(path=path, ref=FileRef(path=name[-_LONGEST_NAME:], size=size, sha256=digest))
