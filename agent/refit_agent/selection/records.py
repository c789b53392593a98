"""What a selection answers: plain records, and one sentence made of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from refit_agent.machine import Gpu, InstalledRuntime, version_tuple
from refit_agent.manifest import Engine

Tier = Literal["this-gpu", "same-compute-capability", "same-sm-unpromised", "ampere-plus", "rtx", "cpu"]
#: Best first.
TIERS: tuple[Tier, ...] = ("this-gpu", "same-compute-capability", "same-sm-unpromised", "ampere-plus", "rtx", "cpu")

Code = Literal[
    "driver-too-old",
    "runtime-version",
    "runtime-missing",
    "gpu-unsupported-by-runtime",
    "too-few-gpus",
    "other-gpu-model",
    "wrong-compute-capability",
    "wrong-os",
    "no-gpu",
    "other-profile",
    "other-target",
]
#: What its owner could change soonest comes first: of an engine's refusals that one is told.
CODES: tuple[Code, ...] = (
    "driver-too-old",
    "runtime-version",
    "runtime-missing",
    "gpu-unsupported-by-runtime",
    "too-few-gpus",
    "other-gpu-model",
    "wrong-compute-capability",
    "wrong-os",
    "no-gpu",
    "other-profile",
    "other-target",
)
_MOST_GROUPS = 4


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that may be used. ``number`` is its place in ``model.engines``; ``target`` is "cpu" or
    "cuda:<index>", the first GPU of an engine that needs several; ``runtime`` is what loads it. ``needs_check``
    asks for a check run before the engine is published: nobody promises that it works here. ``reason`` says in
    words why it stands where it does."""

    engine: Engine
    number: int
    target: str
    gpu: Gpu | None
    runtime: InstalledRuntime
    tier: Tier
    needs_check: bool
    reason: str

    @property
    def needs_load(self) -> bool:
        """Whether ONNX Runtime here is older than the one that made the graph: a release that has the operators may
        still lack a kernel, so it has to load the finished model before anybody gets it."""
        if self.engine.min_runtime is None:
            return False  # then no older one is a candidate
        return version_tuple(self.runtime.version)[:2] < version_tuple(self.engine.built_with)[:2]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine was not taken for ``target`` ("": for any target). ``reason`` is a clause with the
    numbers in it; ``need`` is what the engine would need, fit to follow the word "needs"."""

    number: int
    engine_path: str
    target: str
    code: Code
    reason: str
    need: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Candidates best first, and refusals in manifest order. ``profile`` is the one that was chosen by, or
    None in a model whose engines name none."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    profile: str | None


def no_match_detail(selection: Selection) -> str:
    """Why nothing fits, counted by engine: "2 need compute capability 8.6, 1 needs onnxruntime (...)", or of the only
    one: "it needs compute capability 8.6".

    Engines that are candidates are not counted; "" when there is nothing to say.
    """
    chosen = {candidate.number for candidate in selection.candidates}
    told: dict[int, Refusal] = {}
    for refusal in selection.refusals:
        if refusal.number in chosen:
            continue
        best = told.get(refusal.number)
        if best is None or CODES.index(refusal.code) < CODES.index(best.code):
            told[refusal.number] = refusal
    if not told:
        return "" if chosen else "the bundle holds no engine for it"
    if len(told) == 1 and not chosen:
        (only,) = told.values()
        return f"it needs {only.need}"
    counts: dict[str, int] = {}
    for refusal in told.values():
        counts[refusal.need] = counts.get(refusal.need, 0) + 1
    groups = sorted(counts.items(), key=lambda item: -item[1])
    clauses = [f"{count} {'needs' if count == 1 else 'need'} {need}" for need, count in groups[:_MOST_GROUPS]]
    rest = sum(count for _, count in groups[_MOST_GROUPS:])
    if rest:
        clauses.append(f"{rest} {'needs' if rest == 1 else 'need'} something else")
    return ", ".join(clauses)
