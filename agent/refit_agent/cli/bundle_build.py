"""`refit-agent bundle build`: weight-free plans from an ONNX file, with the options of trtexec."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from refit_agent.cli import output, stop
from refit_agent.cli.ensure import LazyView, lazy_view
from refit_agent.cli.group import json_option
from refit_agent.cli.option_types import Seconds
from refit_agent.errors import RefitAgentError

if TYPE_CHECKING:
    from refit_agent.authoring.build.options import BuildOptions
    from refit_agent.authoring.build.publish import BuiltPlan
    from refit_agent.progress import Progress

#: Options that may stand without a value, what they mean then, and the values that they take.
_BARE: dict[str, tuple[str, tuple[str, ...]]] = {
    "--strip": ("auto", ("auto", "plan", "zeros", "none")),
    "--stripWeights": ("auto", ()),
    "--refit": ("any", ("identical", "any", "individual")),
}
_HARDWARE = {
    "none": "none",
    "ampere-plus": "ampere-plus",
    "ampere+": "ampere-plus",
    "same-compute-capability": "same-compute-capability",
    "sameComputeCapability": "same-compute-capability",
}
_PROFILES = "refit_agent.profiles"
_KINDS = {"min_shapes": "min", "opt_shapes": "opt", "max_shapes": "max"}

Function = Callable[..., Any]


class _BuildCommand(click.Command):
    """Reads --profile and the shapes in the order in which they stand: shapes belong to the profile before them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = _with_values(args)
        if not ctx.resilient_parsing:
            given, _, order = self.make_parser(ctx).parse_args(args=list(args))
            ctx.meta[_PROFILES] = _profile_words(ctx, given, [str(param.name) for param in order])
        return super().parse_args(ctx, args)


def _with_values(args: Sequence[str]) -> list[str]:
    """Write out what an option without its value means, so that the word after it is not taken for the value."""
    end = list(args).index("--") if "--" in args else len(args)
    out = []
    for number, word in enumerate(args):
        if number < end and word in _BARE:
            bare, values = _BARE[word]
            if number + 1 >= end or args[number + 1] not in values:
                word = f"{word}={bare}"
        out.append(word)
    return out


def _profile_words(ctx: click.Context, given: dict[str, Any], order: Sequence[str]) -> list[tuple[str | None, Any]]:
    """Each profile's name, None for what stands before the first, with its shapes by kind."""
    profiles: list[tuple[str | None, dict[str, str]]] = []
    seen: dict[str, int] = {}
    for name in order:
        if name != "profile" and name not in _KINDS:
            continue
        seen[name] = seen.get(name, 0) + 1
        value = given[name][seen[name] - 1]
        if name == "profile":
            profiles.append((value, {}))
            continue
        if not profiles:
            profiles.append((None, {}))
        owner, shapes = profiles[-1]
        if _KINDS[name] in shapes:
            whose = "the shapes" if owner is None else f"profile {owner!r}"
            message = f"--{name.replace('_', '-')} stands twice for {whose}; begin another profile with --profile NAME."
            raise click.UsageError(message, ctx)
        shapes[_KINDS[name]] = value
    return list(profiles)


def _shape_option(kind: str, what: str) -> Callable[[Function], Function]:
    return click.option(f"--{kind}-shapes", f"--{kind}Shapes", multiple=True, metavar="SPEC", help=what)


def _flag(*names: str, text: str) -> Callable[[Function], Function]:
    return click.option(*names, is_flag=True, help=text)


@click.command(cls=_BuildCommand, short_help="Build weight-free engines from an ONNX file.")
@click.argument("model", type=click.Path())
@click.option("-o", "--output", "folder", type=click.Path(), metavar="FOLDER", help="Where the plans go; by default NAME.engines, here.")  # fmt: skip
@click.option("--name", default="", metavar="NAME", help="Of the plans; by default the model's.")
@click.option("--strip", "--stripWeights", "strip", type=click.Choice(_BARE["--strip"][1]), default="auto", metavar="[plan|zeros|none]", help="plan: STRIP_PLAN. zeros: built from zeroed weights. none: with its weights. By default plan from TensorRT 10 on, zeros before.")  # fmt: skip
@click.option("--refit", type=click.Choice(_BARE["--refit"][1]), metavar="[identical|any|individual]", help="Which weights a refit may bring. By default identical for --strip plan, any for zeros; alone it means any.")  # fmt: skip
@click.option("--refittable", multiple=True, metavar="NAME", help="A weight, or a pattern such as 'decoder.*', that a refit may change; all others stay in the plan.")  # fmt: skip
@_flag("--version-compatible", "--versionCompatible", "--vc", text="For the lean runtime of this and later versions.")
@_flag("--exclude-lean-runtime", "--excludeLeanRuntime", text="Leave the lean runtime, which is code, out of the plan.")
@click.option("--hardware-compatibility", "--hardwareCompatibilityLevel", "hardware", type=click.Choice(list(_HARDWARE)), default="none", metavar="[none|ampere-plus|same-compute-capability]", help="Which other GPUs it is for.")  # fmt: skip
@_flag("--fp16", text="Allow fp16 besides fp32.")
@_flag("--bf16", text="Allow bf16.")
@_flag("--int8", text="Allow int8, for a model with QuantizeLinear nodes.")
@_flag("--fp8", text="Allow fp8.")
@click.option("--tf32/--no-tf32", " /--noTF32", default=True, help="Whether fp32 may be computed as TF32.")
@_flag("--strongly-typed", "--stronglyTyped", text="All types are those of the model.")
@_shape_option("min", "Smallest shapes, as input:1x3x224x224,other:1x64.")
@_shape_option("opt", "Best shapes; alone they are the smallest and largest too.")
@_shape_option("max", "Largest shapes.")
@click.option("--profile", multiple=True, metavar="NAME", help="Begin a profile: the shapes after it are its own, and it gets a plan of its own.")  # fmt: skip
@click.option("--builder-optimization-level", "--builderOptimizationLevel", "level", type=click.IntRange(0, 5), help="0 builds soonest, 5 searches longest.")  # fmt: skip
@click.option("--mem-pool-size", "--memPoolSize", "pools", metavar="SPEC", help="Such as workspace:512M,tacticSharedMem:48K; MiB without a letter.")  # fmt: skip
@click.option("--workspace", type=click.FloatRange(min=0), metavar="MIB", help="The same as --mem-pool-size workspace:MIB.")  # fmt: skip
@click.option("--timing-cache-file", "--timingCacheFile", "timing_cache", type=click.Path(), metavar="FILE", help="Measured times of earlier builds: read, and written anew.")  # fmt: skip
@_flag("--include-refit", text="The finished engine stays refittable, for the app itself.")
@click.option("--canonical/--no-canonical", default=True, help="Build from the canonical form, which is written beside the plans; or from the file as it is.")  # fmt: skip
@click.option("--runtime", type=click.Choice(["tensorrt", "tensorrt-rtx"]), default="tensorrt", help="What builds, and will load it.")  # fmt: skip
@click.option("--builder-version", default="", metavar="VERSION", help="Such as 10.16, where several are installed.")
@click.option("--device", type=click.IntRange(min=0), metavar="N", help="The GPU to build on; by default the first.")
@click.option("--deadline", type=Seconds(min=0, min_open=True), metavar="SECONDS", help="Longest time for one plan.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files of these names.")
@json_option
def build(model: str, folder: str | None, as_json: bool, **given: Any) -> int:
    """Build engines without their weights from the ONNX file MODEL, on this machine's GPU, which needs a full TensorRT.

    The folder gets NAME.plan, or NAME.PROFILE.plan for each profile, with a record NAME.plan.json, from which
    'bundle add-engine' takes what the manifest must say; and NAME.onnx with its data, the canonical form of
    MODEL, which is what the bundle has to ship. The record lists every weight that the engine asks for and says
    where in the model it is.

    Options are spelled as here or as trtexec spells them.

    \b
    Example:
      refit-agent bundle build denoiser.onnx --strip --refit any --fp16 \\
          --version-compatible --exclude-lean-runtime \\
          --profile small --opt-shapes image:1x3x256x256 \\
          --profile large --min-shapes image:1x3x512x512 --opt-shapes image:4x3x512x512 --max-shapes image:8x3x512x512
    """
    stop.check()
    from refit_agent.authoring.build.engines import DEFAULT_DEADLINE_S, build_engines

    options = _options(given, click.get_current_context().meta[_PROFILES])
    name = given["name"] or os.path.splitext(os.path.basename(model))[0]
    target = folder if folder is not None else f"{name}.engines"
    with lazy_view() as view, _stoppable():
        built = build_engines(
            model,
            target,
            options,
            name=name,
            canonical=given["canonical"],
            kind=given["runtime"],
            version=given["builder_version"],
            device=given["device"],
            deadline_s=given["deadline"] or DEFAULT_DEADLINE_S,
            force=given["force"],
            progress=_shown_in(view),
            cancelled=stop.requested,
        )
    if as_json:
        output.emit_json({"folder": os.path.abspath(target), "plans": [_document(plan) for plan in built]})
        return 0
    for plan in built:
        _say(plan)
    return 0


@contextlib.contextmanager
def _stoppable() -> Any:
    """Signals stop the build where nothing is left behind, and what a library prints stays out of our answer."""
    try:
        with stop.patiently(), contextlib.redirect_stdout(sys.stderr):
            yield
    except RefitAgentError:
        stop.check()  # a cancelled build is an error to the library; it was our signal that cancelled it
        raise


def _shown_in(view: LazyView) -> Callable[[str, Progress], None]:
    def show(label: str, step: Progress) -> None:
        stop.check()
        view.show(label, step)

    return show


def _options(given: dict[str, Any], profiles: list[tuple[str | None, Any]]) -> BuildOptions:
    from refit_agent.authoring.build.options import BuildOptions
    from refit_agent.authoring.build.pools import parse_pools
    from refit_agent.authoring.build.shapes import make_profile

    pools = parse_pools(given["pools"]) if given["pools"] else {}
    if given["workspace"] is not None:
        if "workspace" in pools:
            raise click.UsageError("--workspace and --mem-pool-size workspace exclude each other.")
        pools["workspace"] = int(given["workspace"] * (1 << 20))
    return BuildOptions(
        strip=None if given["strip"] == "auto" else given["strip"],
        refit=given["refit"],
        refittable=given["refittable"],
        version_compatible=given["version_compatible"],
        exclude_lean_runtime=given["exclude_lean_runtime"],
        hardware_compatibility=_HARDWARE[given["hardware"]],  # type: ignore[arg-type]  # the table's values are its names
        fp16=given["fp16"],
        bf16=given["bf16"],
        int8=given["int8"],
        fp8=given["fp8"],
        tf32=given["tf32"],
        strongly_typed=given["strongly_typed"],
        optimization_level=given["level"],
        memory_pools=pools,
        timing_cache=os.path.abspath(given["timing_cache"]) if given["timing_cache"] else "",
        include_refit=given["include_refit"],
        profiles=tuple(make_profile(name, shapes) for name, shapes in profiles),
    )


def _document(plan: BuiltPlan) -> dict[str, object]:
    import msgspec

    return {"path": plan.path, "record_path": plan.record_path, **msgspec.to_builtins(plan.record)}


def _say(plan: BuiltPlan) -> None:
    record = plan.record
    facts = [
        output.size_text(record.plan_size),
        f"{record.runtime} {record.built_with}",
        record.precision,
        f"strip {record.strip}",
        f"refit {record.refit}" if record.refittable else "no refit",
        output.count_text(len(record.weights), "weight"),
        output.seconds_text(sum(record.seconds.values())),
    ]
    output.emit(f"{plan.path}: {', '.join(facts)}")
    output.emit(f"  for {record.gpu}, compute capability {_capability(plan)}, {record.os[0]}")
    output.emit(f"  its weights are those of {os.path.join(os.path.dirname(plan.path), record.onnx.path)}")
    if record.host_code:
        output.emit(
            "  warning: it brings the lean runtime, which is code, and refit-agent refuses that unless it is allowed; "
            "--exclude-lean-runtime leaves it out"
        )
    if record.weights_by_rule:
        output.emit(f"  {output.count_text(len(record.weights_by_rule), 'weight')} left to the naming rules")
    for note in record.model_notes:
        output.emit(f"  note: {note}")
    for note in record.notes[:3]:
        output.emit(f"  TensorRT warns: {note}")


def _capability(plan: BuiltPlan) -> str:
    record = plan.record
    return ", ".join(record.compute_capabilities) or f"{record.min_compute_capability} and newer"
