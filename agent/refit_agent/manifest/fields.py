"""What a manifest says: its types, with what can be asked of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from refit_agent.errors import NotAnOnnxModel

#: What a pattern ends with: in Python "$" alone would let a line end behind the text through, which JSON Schema does not.
_END = r"$(?!\n)"

Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
# [0-9] and not \d, which takes the digits of every script; of bounded length, since int() refuses what is endless.
ComputeCapability = Annotated[str, msgspec.Meta(pattern=rf"^[0-9]{{1,3}}\.[0-9]{{1,2}}{_END}")]
Version = Annotated[str, msgspec.Meta(pattern=rf"^[0-9]{{1,9}}(\.[0-9]{{1,9}}){{1,3}}{_END}")]

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
    url: Annotated[str, msgspec.Meta(max_length=2000, pattern=rf"^[a-z][a-z0-9+.-]*://[\x21-\x7e]+{_END}")] | None = (
        None
    )
    copied: bool = False


class App(msgspec.Struct, frozen=True, kw_only=True):
    """Whose bundle it is; ``id`` in reverse-DNS form."""

    id: Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9-]+(\.[A-Za-z0-9_-]+)+{_END}", max_length=200)]
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
    ``min_compute_capability`` instead. ``min_runtime`` is the oldest ONNX Runtime that a graph of the CPU target is
    for; none given, the release ``built_with``. ``gpu`` is the GPU model that it was built on, as NVML names it.
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
    min_runtime: Version | None = None
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
