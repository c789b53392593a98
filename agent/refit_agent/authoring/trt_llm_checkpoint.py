"""A checkpoint as the weights of an engine of TensorRT-LLM: safetensors files, by rank.

    config.json                       the model, as in the engine's config.json (optional)
    rank0.safetensors ...             the weights by rank: how TensorRT-LLM writes its checkpoints
    model.safetensors                 or one file for all ranks
    model.safetensors.index.json      or several, with a list of what is where: {"weight_map": {TENSOR: FILE}}

Ranks that share one part of the model share a file: those that differ in their part of the sequence (cp) alone, see
``PretrainedModel.from_checkpoint`` in TensorRT-LLM's modeling_utils.py.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import NamedTuple

import msgspec

from refit_agent.authoring.errors import ImportRefused, SourceUnreadable
from refit_agent.authoring.trt_llm_folder import (
    CONFIG_NAME,
    EngineFolder,
    Mapping,
    Pretrained,
    read_json,
    require_mapping,
)
from refit_agent.errors import BundleFileMissing, BundleFileUnreadable
from refit_agent.manifest import path_fault
from refit_agent.weights.safetensors import SafetensorsWeights

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_INDEX_BYTES = 256 << 20


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class Checkpoint(NamedTuple):
    """The names of its files, which lie in the folder ``path``, and for each rank which of them it takes its weights
    from. ``tensors`` are the names of all tensors."""

    path: str
    files: tuple[str, ...]
    of_rank: tuple[tuple[str, ...], ...]
    tensors: frozenset[str]

    def place(self, name: str) -> str:
        """The path of one of the files."""
        return os.path.join(self.path, name)


def read_checkpoint(path: str | os.PathLike[str], engine: EngineFolder) -> Checkpoint:
    """The checkpoint in the folder ``path`` that is to give the weights of ``engine``; only headers are read.

    Raises:
        SourceUnreadable: a file is missing, or cannot be read.
        ImportRefused: it is of another model, was pruned, or its index is not that of its files.
        SafetensorsMalformed: a file is not sound, or two files of one rank have a tensor of one name.
    """
    folder = os.path.abspath(os.fspath(path))
    config = os.path.join(folder, CONFIG_NAME)
    if os.path.lexists(config):
        _require_same_model(read_json(config, Pretrained), engine.model, config)
    index: dict[str, str] | None = None
    of_rank: list[tuple[str, ...]]
    if os.path.lexists(os.path.join(folder, "rank0.safetensors")):
        of_rank = [(f"rank{_file_number(rank, engine.model.mapping)}.safetensors",) for rank in _ranks(engine)]
    elif os.path.lexists(os.path.join(folder, _WHOLE)):
        of_rank = [(_WHOLE,) for _ in _ranks(engine)]
    elif os.path.lexists(os.path.join(folder, _INDEX)):
        index = _read_index(os.path.join(folder, _INDEX))
        shards = tuple(sorted(set(index.values())))
        of_rank = [shards for _ in _ranks(engine)]
    else:
        detail = f"it has no rank0.safetensors, {_WHOLE} or {_INDEX}"
        raise SourceUnreadable(path=folder, detail=detail)
    checkpoint = Checkpoint(
        folder, tuple(dict.fromkeys(f for files in of_rank for f in files)), tuple(of_rank), frozenset()
    )
    tensors: dict[str, str] = {}
    for names in dict.fromkeys(of_rank):
        found = _tensors(checkpoint, names)
        if index is not None:
            _require_indexed(found, index, os.path.join(folder, _INDEX))
        tensors |= found
    return checkpoint._replace(tensors=frozenset(tensors))


def _ranks(engine: EngineFolder) -> range:
    return range(len(engine.plans))


def _file_number(rank: int, mapping: Mapping) -> int:
    """Which rank's file holds the weights of ``rank``: cp ranks share those of their tp and pp rank."""
    tp, cp = mapping.tp_size, mapping.cp_size
    return rank % tp + rank // (tp * cp) * tp


def _require_same_model(found: Pretrained, wanted: Pretrained, path: str) -> None:
    if found.is_pruned:
        raise ImportRefused(path=path, detail="the checkpoint was pruned, so its weights are not in it")
    if found.architecture != wanted.architecture:
        detail = f"the checkpoint is of a {found.architecture}, and the engine of a {wanted.architecture}"
        raise ImportRefused(path=path, detail=detail)
    require_mapping(found, path)
    sizes = [(m.mapping.tp_size, m.mapping.pp_size) for m in (found, wanted)]
    if sizes[0] != sizes[1]:
        words = [f"tp_size {tp} and pp_size {pp}" for tp, pp in sizes]
        raise ImportRefused(
            path=path, detail=f"the checkpoint was split with {words[0]}, and the engine with {words[1]}"
        )


def _read_index(path: str) -> dict[str, str]:
    index = read_json(path, _Index, _MOST_INDEX_BYTES).weight_map
    if not index:
        raise ImportRefused(path=path, detail="it lists no tensor")
    for name in dict.fromkeys(index.values()):
        fault = path_fault(name) if name else "is empty"
        if not fault and "/" in name:
            fault = "is not beside it"
        if fault:
            raise ImportRefused(path=path, detail=f"it names the file {name!r}, which {fault}")
    return index


def _tensors(checkpoint: Checkpoint, names: tuple[str, ...]) -> dict[str, str]:
    """Every tensor of the files with the name of its file."""
    try:
        with closing(SafetensorsWeights(*map(checkpoint.place, names))) as weights:
            return {tensor: ref.file.name for tensor, ref in weights.items()}
    except (BundleFileMissing, BundleFileUnreadable) as error:
        raise SourceUnreadable(path=str(error.facts["path"]), detail=str(error.facts["detail"])) from error


def _require_indexed(found: dict[str, str], index: dict[str, str], path: str) -> None:
    """A tensor that lies in another place than the list says may be another one than is meant."""
    for tensor in sorted(index.keys() ^ found.keys()):
        where = f"is not in {index[tensor]!r}" if tensor in index else f"is in {found[tensor]!r}"
        raise ImportRefused(path=path, detail=f"the tensor {tensor!r} {where}, other than it says")
    for tensor, file in found.items():
        if index[tensor] != file:
            raise ImportRefused(path=path, detail=f"the tensor {tensor!r} is in {file!r}, and not in {index[tensor]!r}")
