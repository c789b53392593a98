"""The manifest, ``bundle.json``: what an app ships, decoded and checked, with no file but itself read.

    Manifest ─┬─ app        App
              └─ models     Model ─┬─ onnx, external   FileRef   the weights, once
                                   ├─ golden           Golden    inputs with the outputs they must give
                                   └─ engines          Engine    one stripped plan each

Unknown fields are ignored, so that an older agent reads a newer bundle of the same schema; a newer
schema is refused. Every path is relative, forward-slashed and confined to the bundle's folder, by
the rules of POSIX and of Windows at once, since one bundle serves both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from refit_agent.errors import ManifestInvalid, ManifestTooNew, UnsafePath

SCHEMA = 1
#: A manifest is text about files, not the files: more than this is a mistake or an attack.
MAX_MANIFEST_BYTES = 16 << 20

Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d{1,3}\.\d{1,2}$")]
Version = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+){1,3}$")]

Compression = Literal["none", "zstd", "xz"]
RuntimeKind = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
HardwareCompatibility = Literal["none", "same-compute-capability", "ampere-plus"]


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the bundle: its path below the bundle's folder, size in bytes and SHA-256."""

    path: Name
    size: Bytes
    sha256: Sha256


class App(msgspec.Struct, frozen=True, kw_only=True):
    """Whose bundle it is; ``id`` in reverse-DNS form."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]+(\.[A-Za-z0-9_-]+)+$", max_length=200)]
    name: Name
    version: Name


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and the outputs that they must give, as ``.npy`` files by tensor name.

    ``tolerance`` is the relative L2 error allowed per output, ``profile`` the one profile it is for
    (None: every profile).
    """

    inputs: dict[str, FileRef]
    outputs: dict[str, FileRef]
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-2
    profile: str | None = None


class Engine(FileRef, frozen=True, kw_only=True):
    """One stripped plan as it is shipped: ``path``, ``size`` and ``sha256`` are of the compressed file.

    ``plan_size`` and ``plan_sha256`` describe the plan once unpacked. ``compute_capabilities`` lists
    what the plan was built for; an ampere-plus plan gives ``min_compute_capability`` instead.
    ``gpu`` is the GPU model that it was built on, as NVML names it. ``weights_sha256`` names the weights
    that an ``identical`` plan was built from, see `Model.weights_digest`. ``weight_map`` overrides the naming rules.
    ``include_refit`` asks that the finished plan can itself be refitted by the host app.
    """

    runtime: RuntimeKind
    built_with: Version
    plan_size: Bytes
    plan_sha256: Sha256 | None = None
    compression: Compression = "none"
    version_compatible: bool = False
    os: tuple[Literal["linux", "windows"], ...] = ()
    compute_capabilities: tuple[ComputeCapability, ...] = ()
    min_compute_capability: ComputeCapability | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    gpu: str | None = None
    min_driver: Version | None = None
    profile: str | None = None
    precision: str = "fp32"
    strip: Literal["plan", "zeros", "none"] = "plan"
    refit: Literal["identical", "any", "individual"] = "any"
    weights_sha256: Sha256 | None = None
    weight_map: dict[str, dict[str, Any]] | None = None
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    include_refit: bool = False
    lean_runtime: FileRef | None = None
    host_code: bool = False

    @property
    def plan_digest(self) -> str:
        """What names the plan in the cache key: the unpacked plan's SHA-256, else the shipped file's."""
        return self.plan_sha256 or self.sha256


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One ONNX model with the plans made from it."""

    name: Name
    onnx: FileRef
    engines: tuple[Engine, ...]
    version: str = ""
    external: tuple[FileRef, ...] = ()
    golden: tuple[Golden, ...] = ()
    default_profile: str | None = None

    def files(self) -> Iterator[FileRef]:
        """Every file that the model names."""
        yield self.onnx
        yield from self.external
        for golden in self.golden:
            yield from golden.inputs.values()
            yield from golden.outputs.values()
        for engine in self.engines:
            yield engine
            if engine.lean_runtime is not None:
                yield engine.lean_runtime

    def weights_digest(self) -> str:
        """What ``weights_sha256`` must be: the ONNX file's SHA-256, or with external data, where the weights are
        in other files, that of the text ``sha256``, then ``path:sha256`` of each, one a line."""
        if not self.external:
            return self.onnx.sha256
        lines = [self.onnx.sha256, *(f"{f.path}:{f.sha256}" for f in self.external)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def fitting_golden(self, profile: str | None) -> tuple[Golden, ...]:
        """The golden data that an engine for ``profile`` is checked with."""
        return tuple(g for g in self.golden if g.profile is None or g.profile == profile)

    def profiles(self) -> tuple[str, ...]:
        """Names of the profiles that some engine was built for, in manifest order."""
        return tuple(dict.fromkeys(e.profile for e in self.engines if e.profile is not None))


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A whole ``bundle.json``."""

    schema: int
    app: App
    models: Annotated[tuple[Model, ...], msgspec.Meta(min_length=1)]

    def model(self, name: str) -> Model | None:
        """The model of that name, or None."""
        return next((m for m in self.models if m.name == name), None)


class _SchemaOnly(msgspec.Struct):
    schema: int


_full = msgspec.json.Decoder(Manifest)
_schema = msgspec.json.Decoder(_SchemaOnly)


def decode_manifest(data: bytes, path: str) -> Manifest:
    """The manifest in ``data``; ``path`` is only for messages.

    Raises:
        ManifestTooNew: a schema that this version does not know.
        ManifestInvalid: not JSON, a field missing or wrong (the message says where), a name twice.
        UnsafePath: a path that could leave the bundle.
    """
    try:
        schema = _schema.decode(data).schema
        if schema > SCHEMA:
            # Asked first: a newer manifest need not even decode by today's rules.
            raise ManifestTooNew(path=path, schema=schema, newest=SCHEMA)
        manifest = _full.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(path=path, detail=str(error)) from error
    if schema < 1:
        raise ManifestInvalid(path=path, detail=f"schema {schema} has never existed")
    _check(manifest, path)
    return manifest


def unknown_fields(data: bytes) -> list[str]:
    """Where a manifest has fields that this version does not know, as JSON paths: newer ones, or misspelt.

    They are ignored when it is read; whoever makes a bundle wants to know, since a misspelt "golden"
    is a check that never happens. ``data`` must decode.
    """
    return list(_unknown(msgspec.json.decode(data), Manifest, "$"))


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


def _check(manifest: Manifest, path: str) -> None:
    seen: set[str] = set()
    for model in manifest.models:
        if model.name in seen:
            raise ManifestInvalid(path=path, detail=f"the model name {model.name!r} stands there twice")
        seen.add(model.name)
        digests: dict[str, str] = {}
        for file in model.files():
            fault = path_fault(file.path)
            if fault:
                raise UnsafePath(owner=path, path=file.path, detail=fault)
            if digests.setdefault(file.path, file.sha256) != file.sha256:
                raise ManifestInvalid(path=path, detail=f"{file.path!r} is listed with two different hashes")
        for number, golden in enumerate(model.golden):
            if not golden.outputs:
                # Nothing compared would count as nothing wrong.
                detail = "golden data must give at least one output"
                raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}].golden[{number}]`")
        for number, engine in enumerate(model.engines):
            detail = _engine_fault(engine)
            if detail:
                raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}].engines[{number}]`")
        for golden in model.golden:
            if golden.profile is not None and golden.profile not in model.profiles():
                detail = f"no engine of {model.name!r} has the profile {golden.profile!r} of its golden data"
                raise ManifestInvalid(path=path, detail=detail)
        if model.default_profile is not None and model.default_profile not in model.profiles():
            raise ManifestInvalid(
                path=path, detail=f"no engine of {model.name!r} has the default profile {model.default_profile!r}"
            )


def _engine_fault(engine: Engine) -> str:
    """What makes the entry contradict itself, or ""."""
    if engine.compression == "none" and engine.plan_size != engine.size:
        return f"an uncompressed plan of {engine.size} bytes cannot unpack to plan_size {engine.plan_size}"
    if engine.runtime == "onnxruntime":
        return ""
    if not engine.os:
        return "a TensorRT plan must name the operating systems it was built for (os)"
    if engine.hardware_compatibility == "ampere-plus":
        if engine.min_compute_capability is None:
            return "an ampere-plus plan must give min_compute_capability"
    elif not engine.compute_capabilities:
        return "a TensorRT plan must name the compute capabilities it was built for (compute_capabilities)"
    if engine.refit == "identical" and engine.weights_sha256 is None:
        return "an identical-refit plan must name the weights it was built from (weights_sha256)"
    return ""


#: Names that Windows gives to devices, whatever their extension.
_WINDOWS_DEVICES = frozenset(
    [
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{port}{i}" for port in ("com", "lpt") for i in "0123456789¹²³"),
    ]
)


def path_fault(path: str) -> str:
    """Why ``path`` must not be opened below a bundle's folder, as the end of a sentence; "" if it may.

    Symbolic links are not seen here: `bundle.Bundle.locate` checks them when it opens.
    """
    if "\0" in path or any(ord(c) < 32 for c in path):
        return "holds a control character"
    if "\\" in path:
        return "holds a backslash; use forward slashes"
    if path.startswith("/"):
        return "is absolute"
    for part in path.split("/"):
        if part == "..":
            return "leaves the folder by '..'"
        if part in ("", "."):
            return "has an empty or '.' part"
        if ":" in part:
            return "holds a colon, which names a drive or a stream on Windows"
        if part.endswith((" ", ".")):
            return "has a part that ends in a space or a dot, which Windows drops"
        if part.split(".")[0].rstrip(" ").lower() in _WINDOWS_DEVICES:
            return f"has the part {part!r}, a device on Windows"
    return ""
