"""`refit-agent bundle init|add-model|add-engine`."""

from __future__ import annotations

import os
import sys

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.bundle_facts import ask_for, fact_options, given_facts, require_all
from refit_agent.cli.bundle_words import (
    emit_state,
    emit_warnings,
    place_text,
    runtime_text,
    share_text,
    stoppable,
    was_signed,
)
from refit_agent.cli.group import json_option
from refit_agent.manifest import Engine

_REPLACE = "Take the place of {} that is there."


@click.command(short_help="Make a new bundle.")
@click.argument("bundle", type=click.Path())
@click.option(
    "--id", "app_id", required=True, metavar="ID", help="The app's id in reverse-DNS form: com.example.photo."
)
@click.option("--name", required=True, metavar="NAME", help="The app's name.")
@click.option("--version", required=True, metavar="VERSION", help="The app's version.")
@json_option
def init(bundle: str, app_id: str, name: str, version: str, as_json: bool) -> int:
    """Make the folder BUNDLE a bundle of an app. It is a draft, which no app takes, until it has a model and every
    model has an engine.

    \b
    Example:
      refit-agent bundle init ./bundle --id com.example.photo --name Photo --version 2.3.0
    """
    from refit_agent.authoring import init_bundle

    made = init_bundle(bundle, app_id=app_id, name=name, version=version)
    if as_json:
        output.emit_json({"bundle": made.root, "app": msgspec.to_builtins(made.manifest.app)})
        return 0
    output.emit(f"made {made.root} for {app_id}, {name} {version}")
    output.emit("next: refit-agent bundle add-model, add-engine, golden, sign")
    return 0


@click.command(short_help="Add a model: its ONNX file and external data.")
@click.argument("bundle", type=click.Path())
@click.argument("name")
@click.argument("onnx", type=click.Path())
@click.option("--version", default="", metavar="VERSION", help="The model's version.")
@click.option("--default-profile", metavar="PROFILE", help="The optimization profile for callers that name none.")
@click.option("--link", is_flag=True, help="Give the files a second name in the bundle in place of a copy: quick, but they must not be changed any more.")  # fmt: skip
@click.option("--replace", is_flag=True, help=_REPLACE.format("the model of that name") + " With other weights, its engines and golden data go.")  # fmt: skip
@click.option("--url", metavar="BASE", help="The weights may be left out of what ships: users fetch them from BASE/PATH-IN-THE-BUNDLE.")  # fmt: skip
@json_option
def add_model(
    bundle: str,
    name: str,
    onnx: str,
    version: str,
    default_profile: str | None,
    link: bool,
    replace: bool,
    url: str | None,
    as_json: bool,
) -> int:
    """Copy the file ONNX into BUNDLE as the model NAME, with its external data, which must lie beside it or below it.

    A model that lies in the bundle's folder already stays where it is. Weights are shipped once, here: every engine
    of the model gets them from this file.

    \b
    Example:
      refit-agent bundle add-model ./bundle denoiser denoiser.onnx
    """
    from refit_agent import authoring

    signed = was_signed(bundle)
    with stoppable(name) as progress:
        added = authoring.add_model(
            bundle, name, onnx, version=version, default_profile=default_profile, link=link, replace=replace, url=url, progress=progress
        )  # fmt: skip
    model, dropped = added.model, {"engines": added.dropped_engines, "golden": added.dropped_golden}
    if as_json:
        document = {"bundle": os.path.abspath(bundle), "model": msgspec.to_builtins(model), "dropped": dropped}
        output.emit_json(document)
        return 0
    for ref in model.weight_files():
        output.emit(f"added {ref.path}, {output.size_text(ref.size)}")
    if any(dropped.values()):
        engines, sets = output.count_text(dropped["engines"], "engine"), output.count_text(dropped["golden"], "set")
        output.emit(f"its weights are other ones: {engines} and {sets} of golden data were removed with the old model")
    for path in added.left_over:
        output.emit(f"left {path}, which was never copied in and which the manifest no longer names")
    emit_state(bundle, signed_before=signed)
    return 0


@click.command(short_help="Add an engine: a plan, or the CPU target.")
@click.argument("bundle", type=click.Path())
@click.argument("model")
@click.argument("plan", type=click.Path(), required=False)
@click.option("--cpu", is_flag=True, help="Make the CPU target from the model itself, in place of PLAN; needs ONNX Runtime.")  # fmt: skip
@fact_options
@click.option("--compression", type=click.Choice(["zstd", "none"]), default="zstd", show_default=True, help="How the plan is shipped.")  # fmt: skip
@click.option("--name", "path", metavar="PATH", help="Its path in the bundle; by default one that says what it is for.")
@click.option("--replace", is_flag=True, help=_REPLACE.format("an entry for the same machines and profile"))
@click.option("--first", is_flag=True, help="Put it before the model's other engines: of equally good ones the first is taken.")  # fmt: skip
@json_option
def add_engine(
    bundle: str,
    model: str,
    plan: str | None,
    cpu: bool,
    compression: str,
    path: str | None,
    replace: bool,
    first: bool,
    as_json: bool,
    **said: object,
) -> int:
    """Add PLAN, an uncompressed TensorRT plan without its weights, to MODEL of BUNDLE.

    The plan's header tells the runtime, its version and the size; if 'bundle build' left its record beside the plan,
    that tells everything else. What is missing is asked for on a terminal, and otherwise listed. An engine that
    could never be chosen is refused.

    \b
    Example:
      refit-agent bundle add-engine ./bundle denoiser denoiser-sm89.plan
      refit-agent bundle add-engine ./bundle denoiser old.plan --os linux --compute-capability 9.0 \\
          --exact-version --precision fp16 --strip zeros --refit any
      refit-agent bundle add-engine ./bundle denoiser --cpu
    """
    from refit_agent import authoring

    if cpu == (plan is not None):
        raise click.UsageError("Give either PLAN or --cpu.")
    signed = was_signed(bundle)
    record = said.pop("record")
    newer = ""
    more = {"compression": compression, "path": path, "replace": replace, "first": first}
    if plan is None:
        if record is not None:
            raise click.UsageError("--cpu has no record: nothing was built for it before.")
        facts = given_facts(said)
        _require_cpu_facts(facts)
        with stoppable(model) as progress:
            made = authoring.add_cpu_engine(bundle, model, profile=facts.profile, precision=facts.precision, tolerance=facts.tolerance, progress=progress, **more)  # type: ignore[arg-type] # fmt: skip
        added, newer = made.added, made.made.why_newer
    else:
        known = authoring.know_plan(plan, given_facts(said), record)  # type: ignore[arg-type]
        facts = known.facts
        if known.missing:
            if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
                require_all(plan, known.missing)
            facts = ask_for(plan, known, facts)
        with stoppable(model) as progress:
            added = authoring.add_engine(bundle, model, plan, facts, record=record, progress=progress, **more)  # type: ignore[arg-type]
    if as_json:
        replaced, hidden = [e.path for e in added.replaced], [e.path for e in added.hidden]
        engine = msgspec.to_builtins(added.engine)
        output.emit_json({"bundle": os.path.abspath(bundle), "model": model, "engine": engine, "replaced": replaced, "never_first_now": hidden, "why_newer": newer})  # fmt: skip
        return 0
    _say_engine(added.engine)
    if newer:
        output.emit(f"  not for an older release of ONNX Runtime than this one: {newer}")
    for old in added.replaced:
        output.emit(f"  in place of {old.path}")
    emit_warnings(
        [f"{old.path} is never the first choice any more: this one is taken before it" for old in added.hidden]
    )
    if added.engine.host_code or added.engine.lean_runtime is not None:
        emit_warnings(
            ["it brings code of its own, which is taken only from a signed bundle by an app that pins the key"]
        )
    emit_state(bundle, signed_before=signed)
    return 0


def _require_cpu_facts(facts: object) -> None:
    said = [n for n, value in msgspec.structs.asdict(facts).items() if value is not None]  # type: ignore[arg-type]
    strange = [name for name in said if name not in ("profile", "precision", "tolerance")]
    if strange:
        raise click.UsageError(f"--cpu has no {', '.join(strange).replace('_', ' ')}: it runs on every machine.")


def _say_engine(engine: Engine) -> None:
    output.emit(f"added {engine.path}")
    profile = f", profile {engine.profile}" if engine.profile else ""
    versions = " (version-compatible)" if engine.version_compatible else ""
    output.emit(f"  {runtime_text(engine)}{versions}, for {place_text(engine)}, {engine.precision}{profile}")
    full, size = output.size_text(engine.plan_size), output.size_text(engine.size)
    if engine.compression == "none":
        output.emit(f"  {size}, not compressed")
    else:
        saved = share_text(1 - engine.size / engine.plan_size) if engine.plan_size else "0 %"
        output.emit(f"  {full} as {size} ({engine.compression}, {saved} less)")
    if engine.tolerance is not None:
        output.emit(f"  tolerance {engine.tolerance:g}")
    else:
        emit_warnings(
            [
                f"no tolerance is known for the precision {engine.precision}: give one with --tolerance, or that of the golden data holds"
            ]
        )
