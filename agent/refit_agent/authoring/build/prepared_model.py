"""The model that plans are built from and refitted from: its canonical form in the output folder, or the caller's file."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from refit_agent.authoring.build.record import BuildRecord, RecordedFile, read_record
from refit_agent.authoring.errors import OutputInTheWay, RecordInvalid
from refit_agent.digest import hash_file
from refit_agent.errors import BundleFileMismatch, OnnxExternalMissing
from refit_agent.errors.bundle import file_error
from refit_agent.weights import OnnxWeights

Identity = tuple[int, ...]


class Source(NamedTuple):
    """The caller's model: its files, absolute, hashed as they were when `identities` were taken."""

    path: str
    files: tuple[RecordedFile, ...]
    identities: dict[str, Identity]


class Prepared(NamedTuple):
    """What is built from. ``path`` is the ONNX file, in the staging folder if ``fresh``: it was made just now, and its
    weights may still be brought into another order. ``notes`` say what the canonical form left out or changed."""

    path: str
    canonical: bool
    fresh: bool
    notes: tuple[str, ...] = ()


def read_source(model: str) -> Source:
    """Hash the caller's model and its external data.

    Raises:
        BundleFileMissing, OnnxError: it cannot be read, or is not sound.
    """
    path = os.path.abspath(model)
    identities: dict[str, Identity] = {}
    files = []
    for file in model_files(path):
        identities[file] = _identity(file)
        files.append(recorded(file, ""))
    return Source(path, tuple(files), identities)


def model_files(path: str) -> list[str]:
    """The ONNX file at ``path`` and the files of its external data, as real paths but for the first."""
    with OnnxWeights(path) as weights:
        _ = weights.model  # makes every reference, and so knows every file
        for key in weights:
            _ = weights[key]
        return [path, *sorted(os.path.realpath(f) for f in weights.external_files())]


def require_unchanged(source: Source) -> None:
    """Raise BundleFileMismatch if a file of the model is not what it was when it was hashed."""
    for file, identity in source.identities.items():
        if _identity(file) != identity:
            raise BundleFileMismatch(path=file, detail="it changed while the engine was built")


def _identity(path: str) -> Identity:
    try:
        s = os.stat(path)
    except OSError as error:
        raise file_error(path, error) from error
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def recorded(path: str, folder: str) -> RecordedFile:
    """The file at ``path``, hashed now, as a record in ``folder`` names it.

    Raises:
        OnnxExternalMissing: it cannot be read.
    """
    try:
        digest, size = hash_file(path)
    except OSError as error:
        raise OnnxExternalMissing(path=path, offset=0, location=path, detail=error.strerror or str(error)) from error
    shown = os.path.abspath(path)
    # Real paths: the folder may have been given by a link, and external data is known by its real path alone.
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if folder and real.startswith(os.path.join(root, "")):
        shown = os.path.relpath(real, root).replace(os.sep, "/")
    return RecordedFile(path=shown, size=size, sha256=digest)


def prepare(
    source: Source,
    folder: str,
    staging: str,
    name: str,
    shapes: Mapping[str, Sequence[int]],
    *,
    canonical: bool,
    force: bool,
) -> Prepared:
    """The model to build from, as ``NAME.onnx`` in ``folder`` (for now in ``staging``) if ``canonical``.

    One that an earlier build wrote there from the same model is used again as it is: plans of several GPUs
    and precisions share one file, whose order of weights must not change under them. A new one is compared with the
    model by ONNX Runtime, with inputs of ``shapes`` by name.

    Raises:
        OutputInTheWay: there is another file of that name and not ``force``, or it is the caller's own.
        AuthoringError, OnnxError, OSError
    """
    if not canonical:
        return Prepared(source.path, canonical=False, fresh=False)
    target = os.path.join(folder, f"{name}.onnx")
    for path in (target, target + ".data"):
        if any(_same_file(path, file) for file in source.identities):
            raise OutputInTheWay(path=path, detail=", and it is the model itself", hint="Give another place or name.")
    if os.path.exists(target):
        if _made_from(source, folder, os.path.basename(target)):
            return Prepared(target, canonical=True, fresh=False)
        if not force:
            raise OutputInTheWay(path=target, detail=", and no record there says that it was made from this model")
    from refit_agent.authoring.canonical import canonicalize

    fresh = os.path.join(staging, f"{name}.onnx")
    report = canonicalize(source.path, fresh, input_shapes=shapes)
    notes = list(report.notes)
    if not report.check.done:
        notes.append(f"The canonical form was not compared with the model: {report.check.reason}.")
    return Prepared(fresh, canonical=True, fresh=True, notes=tuple(notes))


def _made_from(source: Source, folder: str, name: str) -> bool:
    """Whether the canonical model ``name`` in ``folder`` is what a record there says that it made of ``source``."""
    return any(_speaks_of(record, source, folder, name) for record in _records(folder))


def _records(folder: str) -> Iterable[BuildRecord]:
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.plan.json"))):
        try:
            yield read_record(path)
        except RecordInvalid:
            continue  # it says nothing, so nothing is built on it


def _speaks_of(record: BuildRecord, source: Source, folder: str, name: str) -> bool:
    if not record.canonical or record.onnx.path != name:
        return False
    then = sorted(f.sha256 for f in (record.source, *record.source_external))
    if then != sorted(f.sha256 for f in source.files) or record.source.sha256 != source.files[0].sha256:
        return False
    for file in (record.onnx, *record.external):
        try:
            digest, _ = hash_file(os.path.join(folder, file.path))
        except OSError:
            return False
        if digest != file.sha256:
            return False
    return True


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
