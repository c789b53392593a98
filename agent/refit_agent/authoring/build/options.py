"""What a build is asked for: one frozen record, checked without TensorRT, and settled for the builder at hand.

The names are those of trtexec, in our spelling. Sources of what excludes what: trtexec's own checks,
NVIDIA's API reference for 10.16 and 11.4, and the assertions inside the libraries of 8.6.0 and of
TensorRT-RTX 1.7.1 ("kVERSION_COMPATIBLE can not be set if kREFIT is set"; "kREFIT, kREFIT_IDENTICAL and
kREFIT_INDIVIDUAL are mutually exclusive"; kEXCLUDE_LEAN_RUNTIME wants kVERSION_COMPATIBLE).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

from refit_agent.authoring.build.shapes import Profile, require_distinct
from refit_agent.authoring.errors import BuilderLacks, BuildOptionsInvalid
from refit_agent.machine import version_tuple
from refit_agent.manifest import HardwareCompatibility

Strip = Literal["plan", "zeros", "none"]
Refit = Literal["identical", "any", "individual"]
BuilderKind = Literal["tensorrt", "tensorrt-rtx"]
Pool = Literal["workspace", "tactic-shared-memory"]
PRECISIONS = ("fp16", "bf16", "int8", "fp8")


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides what is built; the defaults are TensorRT's, but for ``strip``.

    Attributes:
        strip: "plan": with STRIP_PLAN; "zeros": from a copy of the model whose weights are zero; "none":
            with its weights. None: the best that the builder has.
        refit: what a refit may bring: "identical" weights, "any" of the same model, or "individual": any for
            the weights in ``refittable``, while the others stay in the plan. None: "individual" where
            ``refittable`` is given, else "identical" for "plan", "any" for "zeros", no refit for "none".
        refittable: names of weights, or patterns as of ``fnmatch``.
        version_compatible: the lean runtime of this and later versions may load the plan.
        exclude_lean_runtime: the plan brings no lean runtime, which is code, of its own.
        hardware_compatibility: which other GPUs it is for; as in the manifest.
        fp16, bf16, int8, fp8: types that the builder may use besides fp32.
        tf32: whether it may use TF32 for fp32.
        strongly_typed: types are those of the model, and the builder chooses none.
        optimization_level: 0 (built soonest) to 5 (searched longest); None: the builder's own.
        memory_pools: most bytes of a pool.
        timing_cache: absolute path of a file with measured times, read if it is there and written; "": none.
        include_refit: the finished plan is to stay refittable, for the app itself.
        profiles: one plan is built for each; none for a model without dynamic shapes.
    """

    strip: Strip | None = None
    refit: Refit | None = None
    refittable: tuple[str, ...] = ()
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    fp8: bool = False
    tf32: bool = True
    strongly_typed: bool = False
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    memory_pools: dict[Pool, int] = {}
    timing_cache: str = ""
    include_refit: bool = False
    profiles: tuple[Profile, ...] = ()

    @property
    def precisions(self) -> tuple[str, ...]:
        """The types that were allowed besides fp32."""
        return tuple(name for name in PRECISIONS if getattr(self, name))


class BuilderVersion(NamedTuple):
    """Which builder: its kind, and the version as its package gives it."""

    kind: BuilderKind
    version: str

    @property
    def always_typed(self) -> bool:
        """Whether it builds strongly typed networks only: TensorRT from 11 on, and TensorRT-RTX."""
        return self.kind == "tensorrt-rtx" or version_tuple(self.version) >= (11,)

    @property
    def before_10(self) -> bool:
        """Whether it is a TensorRT without STRIP_PLAN and the finer kinds of refit."""
        return self.kind == "tensorrt" and version_tuple(self.version) < (10,)


def check_options(options: BuildOptions) -> None:
    """Raise BuildOptionsInvalid for what contradicts itself, whatever the builder."""
    for detail in _contradictions(options):
        raise BuildOptionsInvalid(detail=detail)
    require_distinct(options.profiles)


def _contradictions(options: BuildOptions) -> Iterator[str]:
    if options.refittable and options.refit not in (None, "individual"):
        yield f"--refittable names single weights, which needs --refit individual, not {options.refit}"
    if options.refit == "individual" and not options.refittable:
        yield "--refit individual needs --refittable: without it no weight could be set"
    if options.strip == "zeros" and options.refit == "identical":
        yield "--refit identical takes only the weights that the plan was built from, and --strip zeros builds it from zeros"
    if options.strip == "zeros" and (options.refit == "individual" or options.refittable):
        yield "--refit individual keeps the other weights in the plan, and --strip zeros would keep them there as zeros"
    if options.exclude_lean_runtime and not options.version_compatible:
        yield "--exclude-lean-runtime needs --version-compatible"
    if options.strongly_typed and options.precisions:
        yield f"--strongly-typed takes the types from the model, and excludes --{options.precisions[0]}"
    if options.int8 and options.fp8:
        yield "--int8 and --fp8 exclude each other"
    if options.include_refit and options.strip == "none" and options.refit is None:
        yield "--include-refit needs --refit: a plan built without it cannot be refitted"
    for pool, size in options.memory_pools.items():
        if not 0 <= size < 2**63:
            yield f"the memory pool {pool} cannot have {size} bytes"


def settle(options: BuildOptions, builder: BuilderVersion) -> BuildOptions:
    """The options with ``strip`` and ``refit`` decided for this builder (``refit`` stays None where no refit is meant).

    Raises:
        BuildOptionsInvalid: they contradict themselves.
        BuilderLacks: this version cannot do it; says what does instead.
    """
    check_options(options)
    strip: Strip = options.strip or ("zeros" if builder.before_10 else "plan")
    refit = options.refit
    if refit is None and options.refittable:
        refit = "individual"
    elif refit is None and strip != "none":
        refit = "identical" if strip == "plan" else "any"
    settled = msgspec.structs.replace(options, strip=strip, refit=refit)
    check_options(settled)  # what was left open may have been decided against the rest
    for detail in _lacks(settled, builder):
        raise BuilderLacks(builder=builder.kind, version=builder.version, detail=detail)
    return settled


def _lacks(options: BuildOptions, builder: BuilderVersion) -> Iterator[str]:
    version = version_tuple(builder.version)
    if builder.always_typed and options.precisions:
        yield (
            f"it takes all types from the model, so there is no --{options.precisions[0]}: leave it out, and convert the "
            "ONNX file instead"
        )
    if builder.kind == "tensorrt-rtx":
        if options.version_compatible:
            yield "version-compatible plans are TensorRT's"
        if options.hardware_compatibility != "none":
            yield "its plans run on every GPU that it supports, and there is no hardware compatibility to choose"
        return
    if version < (8, 6):
        yield "8.6 is the oldest version that is supported"
    if builder.before_10:
        if options.strip == "plan":
            yield "STRIP_PLAN came with 10.0: use --strip zeros"
        if options.refit in ("identical", "individual"):
            yield f"it has no --refit {options.refit}: use --refit any"
        if options.version_compatible and options.refit is not None:
            yield "before 10.0 a plan is either version-compatible or refittable"
        if options.hardware_compatibility == "same-compute-capability":
            yield "it knows no hardware compatibility but ampere-plus"
    if version < (9,):
        if options.bf16:
            yield "BF16 came with 9.0"
        if options.strongly_typed:
            yield "strongly typed networks came with 9.0"
