"""Folders as TensorRT-LLM leaves them: engines with a config.json, and the checkpoints they were built from.

Two layers over tensor-parallel ranks: each rank has a part of every matrix, and all have the same norms. The plans
are those of `fakes_tensorrt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fakes_tensorrt import plan
from safetensors_bytes import of_arrays

Arrays = dict[str, np.ndarray[Any, Any]]
PLUGIN = "GPTAttentiontensorrt_llm"
GPU = "NVIDIA H100 80GB HBM3"
_MEMBERS = {"float32": "FLOAT", "float16": "HALF", "uint16": "BF16", "int8": "INT8"}
_CODES = {"uint16": "BF16"}


def weights_of(rank: int, *, seed: int = 0) -> Arrays:
    """What rank ``rank`` of the model has."""
    rng = np.random.default_rng([seed, rank])
    same = np.random.default_rng(seed)
    found: Arrays = {"transformer.ln_f.weight": same.standard_normal(6).astype(np.float16)}
    for layer in range(2):
        name = f"transformer.layers.{layer}.attention"
        found[f"{name}.qkv.weight"] = rng.standard_normal((4, 6)).astype(np.float16)
        found[f"{name}.dense.weight"] = rng.integers(0, 1 << 15, (6, 2)).astype(np.uint16)  # bfloat16
    return found


def pretrained(tp: int = 1, pp: int = 1, **more: Any) -> dict[str, Any]:
    """A model's description, with a field that nobody here knows."""
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "hidden_size": 6,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp, "gpus_per_node": 8},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        **more,
    }


def config(tp: int = 1, pp: int = 1, *, strip: bool = True, model: Any = None, **build: Any) -> dict[str, Any]:
    """An engine's config.json."""
    return {
        "version": "0.21.0",
        "pretrained_config": model or pretrained(tp, pp),
        "build_config": {
            "use_strip_plan": strip,
            "use_refit": False,
            "plugin_config": {"gemm_plugin": "auto"},
            **build,
        },
    }


def plan_of(weights: Mapping[str, np.ndarray[Any, Any]], **more: Any) -> bytes:
    """A stripped plan that asks for these weights, and for a plugin."""
    specs = {name: (_MEMBERS[str(array.dtype)], array.size) for name, array in weights.items()}
    return plan(specs, (), **{"plugins": [PLUGIN], **more})


def write_engine(folder: Path, ranks: list[Arrays], document: dict[str, Any] | None = None, **more: Any) -> Path:
    """An engine folder of a plan for each of ``ranks``; ``more`` goes into every plan."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, weights in enumerate(ranks):
        (folder / f"rank{number}.engine").write_bytes(plan_of(weights, **more))
    (folder / "config.json").write_text(json.dumps(document or config(tp=len(ranks))))
    return folder


def write_checkpoint(folder: Path, ranks: list[Arrays], document: dict[str, Any] | None = None) -> Path:
    """A checkpoint with a file for each of ``ranks``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, weights in enumerate(ranks):
        (folder / f"rank{number}.safetensors").write_bytes(file_of(weights))
    (folder / "config.json").write_text(json.dumps(document or pretrained(tp=len(ranks))))
    return folder


def file_of(weights: Arrays) -> bytes:
    """A safetensors file of these weights; uint16 stands for bfloat16."""
    return of_arrays(weights, {n: _CODES[str(a.dtype)] for n, a in weights.items() if str(a.dtype) in _CODES})


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document on disk."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def write_plugins(folder: Path, code: str = "") -> Path:
    """A package tensorrt_llm that registers the plugin with the module tensorrt, after ``code``.

    Its plugins would wait for the other ranks for ever unless they are told that nothing is to run.
    """
    package = folder / "tensorrt_llm"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(
        f"{code}\nimport os, tensorrt\nassert os.environ['IS_BUILDING'] == '1'\ntensorrt.plugins.add({PLUGIN!r})\n"
    )
    return folder
