"""What an engine folder of TensorRT-LLM, its checkpoint and the caller tell of the engine, put together.

By name only what TensorRT-LLM hands to TensorRT as it stands in the checkpoint can be put back. What it computes
or rearranges while it loads a checkpoint is refused here, where that can be seen: quantized weights, MLP layers that
were joined (use_fused_mlp), and GPT-J's biases, of which every rank but the first gets zeros.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import EngineRefused, ImportRefused
from refit_agent.authoring.import_facts import known_plan
from refit_agent.authoring.new_engine import KnownPlan
from refit_agent.authoring.trt_llm_checkpoint import Checkpoint, read_checkpoint
from refit_agent.authoring.trt_llm_folder import CONFIG_NAME, EngineFolder, read_engine_folder

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class KnownFolder(NamedTuple):
    """An engine folder and its checkpoint, with what is known of the engine; ``known.missing`` must still be said."""

    engine: EngineFolder
    checkpoint: Checkpoint
    known: KnownPlan


def know_engine_folder(
    engine_dir: str | os.PathLike[str],
    checkpoint_dir: str | os.PathLike[str],
    facts: EngineFacts | None = None,
    *,
    as_it_is: bool = False,
) -> KnownFolder:
    """What the folder and the checkpoint tell, together with ``facts``; nothing but headers and JSON is read.

    TensorRT-LLM's config.json says neither the operating system nor the GPU: ``os``, ``compute_capabilities`` and
    ``gpu`` must come from ``facts``. ``as_it_is`` promises that every tensor of the checkpoint is, byte for byte,
    the weight of its name that TensorRT-LLM gave to the engine, whatever config.json lets one expect.

    Raises:
        SourceUnreadable, ImportRefused, PlanInvalid, SafetensorsMalformed: as `read_engine_folder` and
            `read_checkpoint`; or the engine's weights are not those of the checkpoint.
        EngineRefused: config.json and ``facts`` contradict each other, or say what cannot be.
    """
    engine = read_engine_folder(engine_dir)
    checkpoint = read_checkpoint(checkpoint_dir, engine)
    if not as_it_is:
        _require_by_name(engine, checkpoint)
    said = facts or EngineFacts()
    _require_trt_llm(said, engine)
    known = known_plan(engine.headers[0], said, _found(engine, said), engine.path, CONFIG_NAME)
    _require_weight_map(known.facts, checkpoint, engine)
    if known.facts.gpu is None and known.facts.hardware_compatibility == "none":
        known = known._replace(missing=(*known.missing, "gpu"))
    return KnownFolder(engine, checkpoint, known)


def _found(engine: EngineFolder, said: EngineFacts) -> EngineFacts:
    """What config.json tells of the engine."""
    if not engine.stripped and said.strip is None:
        built = "with refit, so its weights may be zeros" if engine.refittable else "without --strip_plan"
        raise ImportRefused(
            path=engine.path,
            detail=f"it was built {built}, and config.json does not say whether it holds weights",
            hint="Build it with trtllm-build --strip_plan; or say strip none to ship it with its weights, and zeros "
            "if it was built from zeroed ones.",
        )
    precision = _PRECISIONS.get(engine.model.dtype, engine.model.dtype or None)
    return EngineFacts(
        version_compatible=False,
        precision=engine.quantization.lower() or precision,
        strip="plan" if engine.stripped else said.strip,
        # What --strip_plan promises; whoever built it with REFIT knows better.
        refit=said.refit or ("identical" if engine.stripped else "any"),
    )


def _require_trt_llm(said: EngineFacts, engine: EngineFolder) -> None:
    """Refuse what may be said of other engines and not of one of TensorRT-LLM."""
    for name in ("lean_runtime", "host_code", "tolerance", "min_compute_capability"):
        if getattr(said, name):
            raise EngineRefused(plan=engine.path, detail=f"an engine of TensorRT-LLM has no {name}")


def _require_by_name(engine: EngineFolder, checkpoint: Checkpoint) -> None:
    """Refuse an engine whose weights are known not to be the checkpoint's tensors as they are."""
    reason = ""
    if engine.quantization:
        what = f"its weights are quantized ({engine.quantization})"
        reason = f"{what}, and TensorRT-LLM rearranges such weights when it loads a checkpoint"
    elif engine.model.architecture == "GPTJForCausalLM" and engine.model.mapping.tp_size > 1:
        reason = "TensorRT-LLM gives some biases of GPT-J to the first rank alone, and zeros to the others"
    elif engine.fused_mlp and any(name.endswith(".mlp.gate.weight") for name in checkpoint.tensors):
        reason = "it was built with use_fused_mlp, which joins the layers gate and fc of each MLP into one"
    if reason:
        raise ImportRefused(
            path=engine.path,
            detail=f"{reason}, so its weights are not those of the checkpoint",
            hint="Build it otherwise (for joined layers: --use_fused_mlp disable), or bring a checkpoint whose tensors "
            "are the engine's weights as they are, and say so.",
        )


def _require_weight_map(facts: EngineFacts, checkpoint: Checkpoint, engine: EngineFolder) -> None:
    for name, entry in (facts.weight_map or {}).items():
        source = entry.get("from")
        if list(entry) != ["from"] or source not in checkpoint.tensors:
            detail = (
                f'the weight map\'s entry {name!r} must be {{"from": a tensor of the checkpoint}}, and is {entry!r}'
            )
            raise EngineRefused(plan=engine.path, detail=detail)
