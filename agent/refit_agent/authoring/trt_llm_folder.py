"""A folder with an engine of TensorRT-LLM: ``config.json``, and ``rank0.engine``, ``rank1.engine``, ... for each GPU.

What config.json holds is read off TensorRT-LLM's own builder.py and modeling_utils.py (0.8 to 1.x, ``EngineConfig``).
Much of it changes from version to version: unknown fields are ignored, and what is missing has its default there.
Before 0.8 the file had another form and plans could not be stripped; it is refused.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from refit_agent.authoring.errors import ImportRefused, SourceUnreadable
from refit_agent.authoring.sources import read_head
from refit_agent.plan_header import HEADER_BYTES, PlanHeader, parse_plan_header

CONFIG_NAME = "config.json"
MOST_JSON_BYTES = 16 << 20
_PLAN = re.compile(r"rank(0|[1-9]\d{0,5})\.engine")
_MANAGED = re.compile(r"rank\d+_managed_weights\.safetensors")
_MOST_NAMED = 5

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Mapping(msgspec.Struct, frozen=True):
    """How a model is spread over GPUs: by tensors, by layers, by the sequence."""

    world_size: _Count | None = None
    tp_size: _Count = 1
    pp_size: _Count = 1
    cp_size: _Count = 1
    auto_parallel: bool = False


class _Quantization(msgspec.Struct, frozen=True):
    quant_algo: str | None = None


class Pretrained(msgspec.Struct, frozen=True):
    """A model, as the config.json of an engine and that of a checkpoint describe it."""

    architecture: str
    dtype: str = ""
    mapping: Mapping = msgspec.field(default_factory=Mapping)
    quantization: _Quantization | None = None
    is_pruned: bool = False


class _Plugins(msgspec.Struct, frozen=True):
    use_fused_mlp: Any = None
    manage_weights: Any = None


class _Build(msgspec.Struct, frozen=True):
    use_strip_plan: bool = False
    use_refit: bool = False
    plugin_config: _Plugins = msgspec.field(default_factory=_Plugins)


class _Config(msgspec.Struct, frozen=True):
    pretrained_config: Pretrained
    build_config: _Build = msgspec.field(default_factory=_Build)
    version: str = ""


class EngineFolder(NamedTuple):
    """An engine folder, checked to be complete.

    ``plans`` are the paths of its plans by rank, ``headers`` theirs, alike but for the size, ``config`` is the
    content of its config.json, ``version`` that of TensorRT-LLM. ``stripped`` and ``refittable`` say how it was
    built, ``fused_mlp`` whether two layers of each MLP became one, ``quantization`` the algorithm or "". ``others``
    are files that are no part of the engine.
    """

    path: str
    plans: tuple[str, ...]
    headers: tuple[PlanHeader, ...]
    config: bytes
    model: Pretrained
    version: str
    stripped: bool
    refittable: bool
    fused_mlp: bool
    quantization: str
    others: tuple[str, ...]


def read_engine_folder(place: str | os.PathLike[str]) -> EngineFolder:
    """What lies in the folder ``place``; of the plans only the headers are read.

    Raises:
        SourceUnreadable: it is no folder, or a file cannot be read.
        ImportRefused: its files do not go together, or are not what can be imported.
        PlanInvalid: a plan is none, or cut short.
    """
    folder = os.path.abspath(os.fspath(place))
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise SourceUnreadable(path=folder, detail=getattr(error, "strerror", None) or str(error)) from error
    path = os.path.join(folder, CONFIG_NAME)
    data = _read(path, MOST_JSON_BYTES)
    config = _decoded(data, _Config, path)
    build, model = config.build_config, config.pretrained_config
    managed = [name for name in names if _MANAGED.fullmatch(name)]
    if managed or _is_on(build.plugin_config.manage_weights):
        detail = (
            "its weights are managed ones, which TensorRT-LLM itself loads beside the plans: there is nothing to refit"
        )
        raise ImportRefused(path=folder, detail=detail)
    count = require_mapping(model, path)
    plans = _plans(folder, names, count)
    quantization = (model.quantization and model.quantization.quant_algo) or ""
    return EngineFolder(
        path=folder,
        plans=plans,
        headers=_headers(plans),
        config=data,
        model=model,
        version=config.version,
        stripped=build.use_strip_plan,
        refittable=build.use_refit or build.use_strip_plan,
        fused_mlp=_is_on(build.plugin_config.use_fused_mlp),
        quantization=quantization,
        others=tuple(name for name in names if name != CONFIG_NAME and not _PLAN.fullmatch(name)),
    )


_T = TypeVar("_T")


def read_json(path: str, kind: type[_T], most: int = MOST_JSON_BYTES) -> _T:
    """The JSON document at ``path`` as a ``kind``.

    Raises:
        SourceUnreadable: it cannot be read.
        ImportRefused: it is larger than ``most`` bytes, no JSON, or another document.
    """
    return _decoded(_read(path, most), kind, path)


def _read(path: str, most: int) -> bytes:
    data, size = read_head(path, most)
    if size > most:
        raise ImportRefused(path=path, detail=f"it has {size} bytes, and no such file has more than {most}")
    return data


def _decoded(data: bytes, kind: type[_T], path: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImportRefused(path=path, detail=f"it cannot be understood: {error}") from error


def require_mapping(model: Pretrained, path: str) -> int:
    """The number of GPUs that the model is spread over. Raises ImportRefused if its description contradicts itself."""
    mapping = model.mapping
    count = mapping.tp_size * mapping.pp_size * mapping.cp_size
    if mapping.auto_parallel:
        raise ImportRefused(path=path, detail="the model was spread automatically, which splits its weights anew")
    if mapping.world_size not in (None, count):
        product = f"{mapping.tp_size} x {mapping.pp_size} x {mapping.cp_size} (tp_size, pp_size, cp_size)"
        raise ImportRefused(path=path, detail=f"world_size is {mapping.world_size}, and {product} are {count}")
    return count


def _plans(folder: str, names: list[str], count: int) -> tuple[str, ...]:
    """The paths of the plans by rank; all of them must be there, and no more."""
    found = {int(match[1]) for match in map(_PLAN.fullmatch, names) if match}
    strangers = sorted(rank for rank in found if rank >= count)
    if strangers:
        detail = f"its config.json is for {count} GPUs, and there is a rank{strangers[0]}.engine"
        raise ImportRefused(path=folder, detail=detail)
    if len(found) < count:
        missing = [f"rank{rank}.engine" for rank in range(min(count, len(found) + _MOST_NAMED)) if rank not in found]
        more = ", ..." if len(missing) < count - len(found) else ""
        detail = f"its config.json is for {count} GPUs, and {', '.join(missing)}{more} are missing"
        raise ImportRefused(path=folder, detail=detail)
    return tuple(os.path.join(folder, f"rank{rank}.engine") for rank in range(count))


def _headers(plans: tuple[str, ...]) -> tuple[PlanHeader, ...]:
    """The plans' headers, which must be of one TensorRT."""
    headers = []
    for plan in plans:
        head, size = read_head(plan, HEADER_BYTES)
        headers.append(parse_plan_header(head, size, plan))
    first = headers[0]
    for plan, header in zip(plans, headers, strict=True):
        if header.runtime != "tensorrt":
            raise ImportRefused(
                path=plan, detail=f"it is a plan for {header.runtime}, which TensorRT-LLM does not build"
            )
        if header.version != first.version:
            built = [".".join(map(str, h.version)) for h in (header, first)]
            detail = f"it was built with TensorRT {built[0]}, and {os.path.basename(plans[0])} with {built[1]}"
            raise ImportRefused(path=plan, detail=detail)
    return tuple(headers)


def _is_on(option: object) -> bool:
    """An option of the plugins: true or false, or "enable" or "disable", or nothing, by version."""
    return option not in (None, False, 0, "", "disable", "disabled")
