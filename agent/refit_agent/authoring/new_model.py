"""Put a model into a bundle: its ONNX file, and the files of its external data beside it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from refit_agent.authoring.change import BundleChange, not_copied
from refit_agent.authoring.errors import ModelUnsupported, NameTaken, NameUnusable, UrlUnusable
from refit_agent.authoring.places import MODELS, Places, inside, require_folder_name
from refit_agent.authoring.sources import copy_hashed, hash_source, link_hashed, source_size
from refit_agent.authoring.steps import Steps
from refit_agent.errors import BundleFileMissing, BundleFileUnreadable, OnnxError
from refit_agent.manifest import FileRef, Manifest, Model, path_fault, url_fault
from refit_agent.progress import ProgressCallback
from refit_agent.settings import DEFAULT_PROTOCOLS
from refit_agent.shown_url import shown
from refit_agent.weights import OnnxWeights


class AddedModel(NamedTuple):
    """The model as the manifest has it now, and of the one that it replaced how many engines and sets of golden
    data were dropped with it. ``left_over`` are its files that were never copied in: they stay, named by nothing."""

    model: Model
    dropped_engines: int
    dropped_golden: int
    left_over: tuple[str, ...] = ()


class _File(NamedTuple):
    """A file to take: where it is, and where it belongs relative to the ONNX file."""

    path: str
    location: str


def add_model(
    root: str | os.PathLike[str],
    name: str,
    onnx: str | os.PathLike[str],
    *,
    version: str = "",
    default_profile: str | None = None,
    link: bool = False,
    replace: bool = False,
    url: str | None = None,
    progress: ProgressCallback | None = None,
) -> AddedModel:
    """Copy the ONNX file with its external data into the bundle at ``root`` as the model ``name``.

    The external data must lie beside the file or below it. A model that lies in the bundle's folder already is
    left where it is. With ``link`` files get a second name instead of being copied, and so must not be changed
    afterwards. ``replace`` takes the place of a model of that name; if its weights are others, its engines
    and golden data go with it, since they belong to the weights that they were made with.

    ``url`` is the address below which the bundle's files can be fetched by their paths. The model's are copied into the
    bundle all the same: they are needed to make the rest of it, and left out when it is shipped.

    Raises:
        UrlUnusable: ``url`` is none that a user's machine would fetch from.
        NameUnusable: the name cannot be a folder's on every operating system.
        NameTaken: there is such a model, and ``replace`` was not given.
        OnnxError: the file is not a sound model, or its external data is missing or elsewhere.
        SourceUnreadable, BundleUnwritable, BundleError
    """
    require_folder_name(name, "a model's name")
    base = None if url is None else _base(url)
    source = os.path.abspath(os.fspath(onnx))
    with BundleChange(root) as change:
        _require_new(change.bundle.manifest, name, change.root, replace)
        files = _model_files(source)
        steps = Steps(progress, copy=1.0)
        steps.begin("copy", "copying the model", sum(source_size(file.path) for file in files))
        staged, refs = change.folder(), []
        at_home = _at_home(change.root, files)
        for file in files:
            if at_home is not None:
                digest, size = hash_source(file.path, steps.add)
            else:
                target = os.path.join(staged, *file.location.split("/"))
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if link:
                    digest, size = link_hashed(file.path, target, change.root, steps.add)
                else:
                    digest, size = copy_hashed(file.path, target, steps.add)
            refs.append(FileRef(path=file.location, size=size, sha256=digest))
        if at_home is None:
            _model_files(os.path.join(staged, files[0].location))  # what ships must stand on its own
        dropped: tuple[int, int] = (0, 0)
        left_over: tuple[str, ...] = ()

        def edit(manifest: Manifest, places: Places) -> Manifest:
            nonlocal dropped, left_over
            _require_new(manifest, name, change.root, replace)
            if at_home is not None:
                paths = at_home
            else:
                folder = places.free(f"{MODELS}/{name}")
                paths = [places.put(os.path.join(staged, *ref.path.split("/")), f"{folder}/{ref.path}") for ref in refs]
            copied = at_home is None
            here = [_placed(ref, path, base, copied) for ref, path in zip(refs, paths, strict=True)]
            model = Model(
                name=name,
                version=version,
                onnx=here[0],
                external=tuple(here[1:]),
                engines=(),
                default_profile=default_profile,
            )
            new, dropped = _with_model(manifest, model)
            named = {ref.path for other in new.models for ref in other.files()}
            left_over = tuple(sorted(not_copied(manifest) - named))
            return new

        manifest = change.commit(edit)
    model = manifest.model(name)
    assert model is not None
    return AddedModel(model, *dropped, left_over)


def _base(url: str) -> str:
    """The address with one slash at its end."""
    fault = url_fault(url)
    if fault:
        raise UrlUnusable(url=shown(url), detail=f"it {fault}")
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PROTOCOLS or not parts.netloc or parts.query or parts.fragment:
        allowed = ", ".join(sorted(DEFAULT_PROTOCOLS))
        raise UrlUnusable(url=url, detail=f"it must be a plain address of one of the kinds {allowed}")
    return url.rstrip("/") + "/"


def _placed(ref: FileRef, path: str, base: str | None, copied: bool) -> FileRef:
    url = None if base is None else base + quote(path)
    return msgspec.structs.replace(ref, path=path, url=url, copied=copied)


def _require_new(manifest: Manifest, name: str, root: str, replace: bool) -> None:
    for model in manifest.models:
        if model.name == name and not replace:
            raise NameTaken(bundle=root, what=f"a model {name!r}")
        if model.name != name and model.name.casefold() == name.casefold():
            detail = f"differs only in case from {model.name!r}, and they would share a folder on Windows"
            raise NameUnusable(name=name, what="a model's name", detail=detail)


def _model_files(onnx: str) -> list[_File]:
    """The ONNX file first, then each file of its external data.

    Raises:
        OnnxError, SourceUnreadable, ModelUnsupported: its external data has names that a bundle cannot have.
    """
    source_size(onnx)
    files = [_File(onnx, os.path.basename(onnx))]
    try:
        with OnnxWeights(onnx) as weights:
            _ = weights.model  # reads every tensor's place, so that all external files are known
            located = dict(_locations(weights))
            found = weights.external_files()
    except (BundleFileMissing, BundleFileUnreadable) as error:
        raise ModelUnsupported(path=onnx, detail=f"it cannot be read: {error.facts.get('detail')}") from error
    except OnnxError as error:
        # Some hints are for users of a bundle that was damaged on its way to them.
        hint = error.hint if type(error).advice != OnnxError.advice else "Export the model anew."
        raise type(error)(**{**error.facts, "hint": hint}) from error
    folder = os.path.realpath(os.path.dirname(onnx))
    for path in found:
        if str(path) not in located.values():  # of a tensor in an attribute, which the mapping does not list
            located[os.path.relpath(path, folder).replace(os.sep, "/")] = str(path)
    files += [_File(path, location) for location, path in located.items()]
    for file in files:
        fault = path_fault(file.location)
        if fault:
            raise ModelUnsupported(path=onnx, detail=f"it needs the file {file.location!r}, and that name {fault}")
    return files


def _locations(weights: OnnxWeights) -> Iterator[tuple[str, str]]:
    """The locations that tensors name, normalized, with the file that each means."""
    for ref in weights.values():
        if ref.payload.external is not None:
            yield posixpath.normpath(ref.payload.external), str(ref.file)


def _at_home(root: str, files: Sequence[_File]) -> list[str] | None:
    """The files' places in the bundle if they lie there already, else None."""
    paths = [inside(root, file.path) for file in files]
    home = [path for path in paths if path is not None]
    if len(home) < len(files) or any(path_fault(path) for path in home):
        return None
    folder = home[0].rpartition("/")[0]
    expected = [posixpath.join(folder, file.location) for file in files]
    return home if home == expected else None


def _with_model(manifest: Manifest, model: Model) -> tuple[Manifest, tuple[int, int]]:
    """The manifest with the model in the place of its namesake, or behind the others; and what was dropped."""
    models = list(manifest.models)
    for number, old in enumerate(models):
        if old.name != model.name:
            continue
        if _same_weights(old, model):
            models[number] = _heir(model, old)
            return msgspec.structs.replace(manifest, models=tuple(models)), (0, 0)
        models[number] = model
        return msgspec.structs.replace(manifest, models=tuple(models)), (len(old.engines), len(old.golden))
    return msgspec.structs.replace(manifest, models=(*models, model)), (0, 0)


def _heir(model: Model, old: Model) -> Model:
    """The new model with what was made for the old one of the same weights."""
    digest = model.weights_digest()  # it has the paths of external data in it
    engines = [
        engine if engine.weights_sha256 is None else msgspec.structs.replace(engine, weights_sha256=digest)
        for engine in old.engines
    ]
    default = old.default_profile if model.default_profile is None else model.default_profile
    return msgspec.structs.replace(model, engines=tuple(engines), golden=old.golden, default_profile=default)


def _same_weights(one: Model, other: Model) -> bool:
    return [f.sha256 for f in one.weight_files()] == [f.sha256 for f in other.weight_files()]
