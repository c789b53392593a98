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

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from refit_agent.errors import ManifestInvalid, ManifestTooNew, NotAnOnnxModel, UnsafePath

SCHEMA = 1
#: A manifest is text about files, not the files: more than this is a mistake or an attack.
MAX_MANIFEST_BYTES = 16 << 20
#: TensorRT-LLM's have some kilobytes.
_MAX_CONFIG_BYTES = 16 << 20

Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d{1,3}\.\d{1,2}$")]
Version = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+){1,3}$")]

Compression = Literal["none", "zstd", "xz"]
RuntimeKind = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
HardwareCompatibility = Literal["none", "same-compute-capability", "ampere-plus"]


class FileRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of the bundle: its path below the bundle's folder, size in bytes and SHA-256.

    With ``url`` the file need not be there: it is fetched when it is needed. Only a model's weights (ONNX file
    with external data, or safetensors) may be elsewhere. ``copied`` marks weights that refit-agent put into the bundle itself,
    and so may remove: without it they are somebody's own file.
    """

    path: Name
    size: Bytes
    sha256: Sha256
    url: Annotated[str, msgspec.Meta(max_length=2000, pattern=r"^[a-z][a-z0-9+.-]*://[\x21-\x7e]+$")] | None = None
    copied: bool = False


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


class Plan(FileRef, frozen=True, kw_only=True):
    """One stripped plan as it is shipped: ``path``, ``size`` and ``sha256`` are of the compressed file.

    ``plan_size`` and ``plan_sha256`` describe the plan once unpacked. ``safetensors`` are the paths of those of the
    model's safetensors files that it takes its weights from; none named: all of them.
    """

    plan_size: Bytes
    plan_sha256: Sha256 | None = None
    compression: Compression = "none"
    safetensors: tuple[Name, ...] = ()

    @property
    def plan_digest(self) -> str:
        """What names the plan in the cache key: the unpacked plan's SHA-256, else the shipped file's."""
        return self.plan_sha256 or self.sha256


class Engine(Plan, frozen=True, kw_only=True):
    """A plan, or of a model that is spread over several GPUs all of its plans, with what they need.

    ``compute_capabilities`` lists what the plan was built for; an ampere-plus plan gives
    ``min_compute_capability`` instead. ``gpu`` is the GPU model that it was built on, as NVML names it.
    ``weights_sha256`` names the weights that an ``identical`` plan was built from, see `Model.weights_digest`.
    ``weight_map`` overrides the naming rules. ``include_refit`` asks that the finished plan can itself be refitted
    by the host app.

    ``config`` makes it an engine of TensorRT-LLM: that file is put beside the finished plans as ``config.json``. Its
    own plan is that of rank 0, ``ranks`` are those of rank 1 and so on, for one GPU each, all of one GPU model.
    """

    runtime: RuntimeKind
    built_with: Version
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
    config: FileRef | None = None
    ranks: tuple[Plan, ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan of it, in the order of the ranks."""
        return (self, *self.ranks)


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model with the plans made from it: an ONNX file with its external data, or safetensors files."""

    name: Name
    onnx: FileRef | None = None
    safetensors: tuple[FileRef, ...] = ()
    engines: tuple[Engine, ...]
    version: str = ""
    external: tuple[FileRef, ...] = ()
    golden: tuple[Golden, ...] = ()
    default_profile: str | None = None

    def files(self) -> Iterator[FileRef]:
        """Every file that the model names."""
        yield from self.weight_files()
        for golden in self.golden:
            yield from golden.inputs.values()
            yield from golden.outputs.values()
        for engine in self.engines:
            yield from engine.plans
            yield from (file for file in (engine.lean_runtime, engine.config) if file is not None)

    def weight_files(self) -> tuple[FileRef, ...]:
        """The files that the weights are in: the ONNX file and then its external data, or the safetensors files."""
        return self.safetensors if self.onnx is None else (self.onnx, *self.external)

    def weight_files_of(self, engine: Engine) -> tuple[FileRef, ...]:
        """Those of `weight_files` that the engine takes its weights from."""
        if self.onnx is not None or any(not plan.safetensors for plan in engine.plans):
            return self.weight_files()
        named = {path for plan in engine.plans for path in plan.safetensors}
        return tuple(file for file in self.safetensors if file.path in named)

    def require_onnx(self) -> FileRef:
        """The ONNX file. Raises NotAnOnnxModel."""
        if self.onnx is None:
            raise NotAnOnnxModel(model=self.name)
        return self.onnx

    def weights_digest(self) -> str:
        """What ``weights_sha256`` must be: the SHA-256 of the one file that the weights are in.

        With external data that of the text ``sha256``, then ``path:sha256`` of each, one a line; with several
        safetensors files that of the text of their ``sha256``, one a line.
        """
        first, *others = self.weight_files()
        if not others:
            return first.sha256
        lines = [first.sha256, *(f.sha256 if self.onnx is None else f"{f.path}:{f.sha256}" for f in others)]
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
    models: tuple[Model, ...]

    def model(self, name: str) -> Model | None:
        """The model of that name, or None."""
        return next((m for m in self.models if m.name == name), None)


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
    # Of all models together: who compares a file once would believe the other's entry of it unseen.
    listed: dict[str, FileRef] = {}
    for model in manifest.models:
        if model.name in seen:
            raise ManifestInvalid(path=path, detail=f"the model name {model.name!r} stands there twice")
        seen.add(model.name)
        for file in model.files():
            fault = path_fault(file.path)
            if fault:
                raise UnsafePath(owner=path, path=file.path, detail=fault)
            other = listed.setdefault(file.path, file)
            for what in ("sha256", "size", "url"):
                if getattr(other, what) != getattr(file, what):
                    kind = {"sha256": "hashes", "size": "sizes", "url": "urls"}[what]
                    raise ManifestInvalid(path=path, detail=f"{file.path!r} is listed with two different {kind}")
            fault = "" if file.url is None else url_fault(file.url)
            if fault:
                # Without the url itself: what is wrong with it may be a password.
                raise ManifestInvalid(path=path, detail=f"the url of {file.path!r} {fault}")
        elsewhere = next((f.path for f in model.files() if f.url and f not in model.weight_files()), None)
        if elsewhere is not None:
            detail = f"{elsewhere!r} has a url, which only the ONNX file and its external data, or safetensors files, may have"
            raise ManifestInvalid(path=path, detail=detail)
        detail = _weights_fault(model)
        if detail:
            raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}]`")
        for number, golden in enumerate(model.golden):
            if not golden.outputs:
                # Nothing compared would count as nothing wrong.
                detail = "golden data must give at least one output"
                raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}].golden[{number}]`")
        for number, engine in enumerate(model.engines):
            detail = _engine_fault(engine) or _trt_llm_fault(engine, model)
            if detail:
                raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}].engines[{number}]`")
        for golden in model.golden:
            if golden.profile is not None and golden.profile not in model.profiles():
                detail = f"no engine of {model.name!r} has the profile {golden.profile!r} of its golden data"
                raise ManifestInvalid(path=path, detail=detail)


def url_fault(url: str) -> str:
    """Why nothing must be fetched from ``url``, as the end of a sentence; "" if it may. The scheme is not judged."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "cannot be understood"
    user, at, _ = parts.netloc.rpartition("@")
    # abfs://CONTAINER@ACCOUNT is Azure's way to name a container; a password is none there either.
    if at and (parts.scheme not in ("abfs", "abfss") or not user or ":" in user or "@" in user):
        return "has a user or password in it, which everybody with the bundle could read"
    http = parts.scheme in ("http", "https")
    if http and not host:
        return "names no host"
    # fsspec would open what follows as a source of its own, whatever kinds are allowed. An IPv6 host is no chain.
    if "::" in (f"{parts.path}?{parts.query}" if http else url):
        return "holds '::', which chains it to another source"
    if "#" in url:
        return "has a fragment ('#'), which no server ever sees"
    return ""


def _weights_fault(model: Model) -> str:
    """What contradicts itself in where the weights are, or ""."""
    if (model.onnx is None) == (not model.safetensors):
        return "a model needs either an ONNX file (onnx) or safetensors files (safetensors)"
    if model.onnx is None and model.external:
        return "only an ONNX file has external data (external)"
    paths = {file.path for file in model.safetensors}
    if len(paths) != len(model.safetensors):
        return "a safetensors file stands there twice"
    for engine in model.engines:
        strangers = [path for plan in engine.plans for path in plan.safetensors if path not in paths]
        if strangers:
            return f"{engine.path!r} takes weights from {strangers[0]!r}, which is not among the model's safetensors"
        if model.onnx is None and engine.runtime == "onnxruntime":
            return f"{engine.path!r} is for ONNX Runtime, which needs a model with an ONNX file"
    return ""


def _trt_llm_fault(engine: Engine, model: Model) -> str:
    """What contradicts itself in an engine of TensorRT-LLM, or ""."""
    if engine.config is None:
        return (
            "an engine of several plans (ranks) is one of TensorRT-LLM, and must have its config"
            if engine.ranks
            else ""
        )
    if model.onnx is not None:
        return "an engine of TensorRT-LLM (config) takes its weights from safetensors files"
    if engine.runtime != "tensorrt" or engine.version_compatible or engine.lean_runtime or engine.host_code:
        return "an engine of TensorRT-LLM (config) is one of TensorRT, and for its version alone"
    if engine.config.size > _MAX_CONFIG_BYTES:
        return f"a config.json has no {engine.config.size} bytes; at most {_MAX_CONFIG_BYTES} are taken"
    if engine.gpu is None and engine.hardware_compatibility == "none":
        return "an engine of TensorRT-LLM (config) must name the GPU model that it was built on (gpu)"
    if model.golden:
        return "an engine of TensorRT-LLM (config) cannot be run by itself, so its model can have no golden data"
    return ""


def _engine_fault(engine: Engine) -> str:
    """What makes the entry contradict itself, or ""."""
    for plan in engine.plans:
        if plan.compression == "none" and plan.plan_size != plan.size:
            return f"an uncompressed plan of {plan.size} bytes cannot unpack to plan_size {plan.plan_size}"
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
