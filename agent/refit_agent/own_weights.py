"""Weights that the caller brings in place of the bundle's: an ONNX file with its external data."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

import msgspec

from refit_agent.digest import hash_file
from refit_agent.errors import BundleError, BundleFileMissing, BundleFileUnreadable, OwnWeightsInvalid
from refit_agent.errors.bundle import file_error
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


def require_replaceable(model: Model, path: str | os.PathLike[str]) -> None:
    """Raise OwnWeightsInvalid if the file at ``path`` can be no match for where the model has its weights."""
    if model.onnx is None:
        detail = (
            f"the weights of {model.name!r} are in safetensors files, and only those of an ONNX file can be replaced."
        )
        raise OwnWeightsInvalid(path=ascii(os.fspath(path)), detail=detail, hint="Give none: the bundle's are used.")


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
        of_file = isinstance(error, (BundleFileMissing, BundleFileUnreadable))
        detail = f"{error.facts['detail']}." if of_file else str(error)
        raise OwnWeightsInvalid(path=os.fspath(path), detail=detail) from error


def _own_weights(path: str | os.PathLike[str]) -> OwnWeights:
    main = os.path.abspath(os.fspath(path))
    with OnnxWeights(main) as weights:
        _ = weights.model  # looks at every tensor, those in attributes too
        files = weights.external_locations()
    # By the locations that the model names, not by the files' own names: links may be exchanged.
    external = tuple(_located(str(file), location) for location, file in sorted(files.items()))
    return OwnWeights(_located(main, os.path.basename(main)), external)


def _located(path: str, name: str) -> Located:
    try:
        digest, size = hash_file(path)
    except OSError as error:
        raise file_error(path, error) from error
    if len(name) > _LONGEST_NAME:
        # The worker takes no longer names than the manifest's; cut off, two of them could be one.
        name = hashlib.sha256(name.encode()).hexdigest()
    return Located(path=path, ref=FileRef(path=name, size=size, sha256=digest))
