"""What is in a bundle, and what its developer may want to know before it ships."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from refit_agent.authoring.change import LOCK_NAME, STAGING_PREFIX
from refit_agent.authoring.selectable import outranked_by
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.errors import BundleError
from refit_agent.manifest import App, Engine, FileRef, Golden, Model, unfinished, unknown_fields
from refit_agent.signature import SIGNATURE_NAME

_OWN = (MANIFEST_NAME, SIGNATURE_NAME, LOCK_NAME)


class EngineOverview(msgspec.Struct, frozen=True, kw_only=True):
    """An engine; ``golden`` counts the sets that it is checked with. ``outranked_by`` is the path of an entry that
    selection takes before it on every machine that it fits, or ""."""

    engine: Engine
    golden: int
    outranked_by: str


class ModelOverview(msgspec.Struct, frozen=True, kw_only=True):
    """A model with its engines in the manifest's order. ``weights_bytes``: those of all files that its
    weights are in, an ONNX file with external data or safetensors files."""

    name: str
    version: str
    default_profile: str | None
    onnx: FileRef | None
    external: tuple[FileRef, ...]
    safetensors: tuple[FileRef, ...]
    weights_bytes: int
    engines: tuple[EngineOverview, ...]
    golden: tuple[Golden, ...]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not as the manifest says, as far as its size and place tell; contents were not read."""

    path: str
    error: str


class BundleOverview(msgspec.Struct, frozen=True, kw_only=True):
    """The whole bundle. ``unfinished`` is what a draft lacks, as the end of a sentence, or "". ``signed_by`` are
    the public keys of good signatures; ``signature_fault`` says what is wrong with the signature file, or "".
    ``strangers`` are files in the folder that the manifest does not name. ``warnings`` are sentences.
    """

    root: str
    app: App
    unfinished: str
    signed_by: tuple[str, ...]
    signature_fault: str
    models: tuple[ModelOverview, ...]
    faults: tuple[Fault, ...]
    strangers: tuple[str, ...]
    unknown_fields: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect_bundle(root: str | os.PathLike[str]) -> BundleOverview:
    """Look at the bundle or draft in the folder ``root``. No file but the manifest and its signature is read.

    Raises:
        BundleError: there is no bundle, or its manifest is not sound.
    """
    bundle = Bundle.open(root, draft=True)
    with open(os.path.join(bundle.root, MANIFEST_NAME), "rb") as file:
        strange_fields = tuple(unknown_fields(file.read()))
    signed_by, signature_fault = _signature(bundle.root)
    models = tuple(_model(model) for model in bundle.manifest.models)
    strangers = tuple(strangers_in(bundle))
    return BundleOverview(
        root=bundle.root,
        app=bundle.manifest.app,
        unfinished=unfinished(bundle.manifest),
        signed_by=signed_by,
        signature_fault=signature_fault,
        models=models,
        faults=tuple(_faults(bundle)),
        strangers=strangers,
        unknown_fields=strange_fields,
        warnings=tuple(_warnings(bundle, models, strangers, strange_fields, signed=bool(signed_by))),
    )


def _model(model: Model) -> ModelOverview:
    engines = []
    for number, engine in enumerate(model.engines):
        before = outranked_by(model.engines, number)
        golden = len(model.fitting_golden(engine.profile))
        engines.append(EngineOverview(engine=engine, golden=golden, outranked_by="" if before is None else before.path))
    return ModelOverview(
        name=model.name,
        version=model.version,
        default_profile=model.default_profile,
        onnx=model.onnx,
        external=model.external,
        safetensors=model.safetensors,
        weights_bytes=sum(ref.size for ref in model.weight_files()),
        engines=tuple(engines),
        golden=model.golden,
    )


def _signature(root: str) -> tuple[tuple[str, ...], str]:
    if not os.path.lexists(os.path.join(root, SIGNATURE_NAME)):
        return (), ""
    from refit_agent.authoring.signing import good_signatures

    try:
        return good_signatures(root), ""
    except BundleError as error:
        return (), str(error)


def _faults(bundle: Bundle) -> Iterator[Fault]:
    files = {ref.path: ref for model in bundle.manifest.models for ref in model.files()}
    for ref in files.values():
        if is_elsewhere(bundle, ref):
            continue
        try:
            bundle.locate(ref)
        except BundleError as error:
            yield Fault(path=ref.path, error=str(error))


def is_elsewhere(bundle: Bundle, ref: FileRef) -> bool:
    """Whether a file is not in the bundle's folder, but fetched from its URL when it is needed."""
    return ref.url is not None and not os.path.lexists(os.path.join(bundle.root, *ref.path.split("/")))


def strangers_in(bundle: Bundle) -> Iterator[str]:
    """Paths of the files in the bundle's folder that its manifest does not name."""
    named = {ref.path for model in bundle.manifest.models for ref in model.files()}
    for folder, folders, files in os.walk(bundle.root):
        folders[:] = sorted(name for name in folders if not name.startswith(STAGING_PREFIX))
        for name in sorted(files):
            path = os.path.relpath(os.path.join(folder, name), bundle.root).replace(os.sep, "/")
            if path not in named and path not in _OWN:
                yield path


def _warnings(
    bundle: Bundle,
    models: tuple[ModelOverview, ...],
    strangers: tuple[str, ...],
    strange: tuple[str, ...],
    *,
    signed: bool,
) -> Iterator[str]:
    for where in strange:
        yield f"{where} is no field that this version knows: misspelt, or newer; it has no effect"
    for model in bundle.manifest.models:
        yield from _model_warnings(model)
    for shown in models:
        for item in shown.engines:
            yield from _engine_warnings(item, signed=signed)
    if strangers:
        size = sum(_size(os.path.join(bundle.root, path)) for path in strangers)
        few = ", ".join(strangers[:3]) + (f" and {len(strangers) - 3} more" if len(strangers) > 3 else "")
        yield f"the manifest does not name {few} ({size} bytes in all): useless, and shipped if the folder is"


def _model_warnings(model: Model) -> Iterator[str]:
    if not model.engines or model.onnx is None:
        return  # without an ONNX file nothing can be run, here or on a CPU
    if not model.golden:
        yield f"model {model.name!r} has no golden data, so its engines are not checked for right results"
    elif bare := [p for p in model.profiles() if not model.fitting_golden(p)]:
        yield f"model {model.name!r} has no golden data for the profiles {', '.join(bare)}: these engines are not checked for right results"
    if all(engine.runtime != "onnxruntime" for engine in model.engines):
        yield f"model {model.name!r} has no engine for the CPU: machines without a fitting NVIDIA GPU get none"
    profiles = model.profiles()
    if len(profiles) > 1 and model.default_profile is None and "default" not in profiles:
        yield f"model {model.name!r} has several profiles and no default one: who asks for none in particular gets no engine"


def _engine_warnings(item: EngineOverview, *, signed: bool) -> Iterator[str]:
    engine = item.engine
    if item.outranked_by:
        yield f"{engine.path} is never the first choice: {item.outranked_by} is taken before it wherever it fits"
    if (engine.host_code or engine.lean_runtime is not None) and not signed:
        yield f"{engine.path} brings code of its own, which is taken only from a signed bundle; this one is not signed"
    if engine.strip == "zeros" and engine.compression == "none":
        yield f"{engine.path} ships the zeros in place of its weights: compress it"


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
