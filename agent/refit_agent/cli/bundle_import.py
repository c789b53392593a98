"""`refit-agent bundle import`: engines that other tools made."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.bundle_facts import ask_for, fact_options, given_facts, require_all
from refit_agent.cli.bundle_words import (
    emit_state,
    emit_warnings,
    place_text,
    runtime_text,
    stoppable,
    was_signed,
)
from refit_agent.cli.group import json_option

if TYPE_CHECKING:
    from refit_agent.authoring import EngineFacts, KnownPlan
    from refit_agent.authoring.import_facts import ImportedEngine
    from refit_agent.authoring.notes import Note

_KINDS = ("trt-cloud", "ep-context", "trt-llm")
#: Which kinds take which options; all others are for every kind.
_OWN_OPTIONS = {
    "entry": ("trt-cloud",),
    "notes": ("trt-cloud",),
    "no_notes": ("trt-cloud",),
    "onnx": ("ep-context",),
    "checkpoint": ("trt-llm",),
    "as_it_is": ("trt-llm",),
    "link": ("trt-llm",),
    "version": ("trt-llm",),
}
_PLAN_MAGICS = (b"ftrt", b"vtrt")
_MOST_NAMED = 10


@click.command(name="import", short_help="Add an engine that another tool made.")
@click.argument("bundle", type=click.Path())
@click.argument("model")
@click.argument("source", type=click.Path())
@click.option("--kind", type=click.Choice(_KINDS), help="What SOURCE is, where it does not show.")
@click.option("--entry", metavar="NAME", help="trt-cloud: the plan in SOURCE, where there are several.")
@click.option("--notes", type=click.Path(), metavar="FOLDER", help="trt-cloud: keep logs and metrics below this folder; by default BUNDLE.notes/MODEL, beside the bundle.")  # fmt: skip
@click.option("--no-notes", is_flag=True, help="trt-cloud: keep no logs and metrics.")
@click.option("--onnx", type=click.Path(), metavar="FILE", help="ep-context: the ONNX file that the engine was built from, if it is not the one beside SOURCE.")  # fmt: skip
@click.option("--checkpoint", type=click.Path(), metavar="FOLDER", help="trt-llm: the checkpoint that the engine was built from, for its weights; needed.")  # fmt: skip
@click.option("--version", metavar="VERSION", help="trt-llm: the model's version.")
@click.option("--link", is_flag=True, help="trt-llm: give the checkpoint's files a second name in the bundle in place of a copy: quick, but they must not be changed any more.")  # fmt: skip
@click.option("--as-it-is", is_flag=True, help="trt-llm: the checkpoint's tensors are the engine's weights byte for byte, whatever config.json lets one expect.")  # fmt: skip
@fact_options
@click.option("--compression", type=click.Choice(["zstd", "none"]), default="zstd", show_default=True, help="How the plan is shipped.")  # fmt: skip
@click.option("--name", "path", metavar="PATH", help="Its path in the bundle; by default one that says what it is for.")
@click.option("--replace", is_flag=True, help="Take the place of an entry for the same machines and profile that is there.")  # fmt: skip
@click.option("--first", is_flag=True, help="Put it before the model's other engines: of equally good ones the first is taken.")  # fmt: skip
@json_option
def import_command(
    bundle: str,
    model: str,
    source: str,
    kind: str | None,
    compression: str,
    path: str | None,
    replace: bool,
    first: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Add the engine in SOURCE to MODEL of BUNDLE. SOURCE is one of

    \b
      trt-cloud    the zip or folder of TensorRT-Cloud's 'trt-cloud build'
      ep-context   an EPContext model of ONNX Runtime, its engine embedded or beside it
      trt-llm      an engine folder of TensorRT-LLM; it makes MODEL, or adds to one with the same weights

    What it tells of the engine need not be said; what it does not tell is said with the options of add-engine, and
    asked for on a terminal. What contradicts it is refused.

    \b
    Example:
      refit-agent bundle import ./bundle denoiser build_result.zip --os windows
      refit-agent bundle import ./bundle denoiser denoiser_ctx.onnx --os linux --exact-version --precision fp16
      refit-agent bundle import ./bundle llama ./llama-engine --checkpoint ./llama-checkpoint \\
          --os linux --compute-capability 9.0 --gpu "NVIDIA H100 80GB HBM3"
    """
    chosen = kind or _kind_of(source)
    own = {name: given.pop(name) for name in _OWN_OPTIONS}
    for name, value in own.items():
        if value and chosen not in _OWN_OPTIONS[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is not for {chosen}.")
    signed = was_signed(bundle)
    how = {"compression": compression, "path": path, "replace": replace, "first": first}
    run = {"trt-cloud": _from_trt_cloud, "ep-context": _from_ep_context, "trt-llm": _from_trt_llm}[chosen]
    added = run(bundle, model, source, own, given_facts(given), how, as_json)
    if as_json:
        output.emit_json(_document(bundle, model, chosen, added))
        return 0
    _say(added)
    emit_state(bundle, signed_before=signed)
    return 0


#: A record lies beside a plan of 'bundle build', and such a plan is added with add-engine.
import_command.params = [option for option in import_command.params if option.name != "record"]


def _kind_of(source: str) -> str:
    """What a source is, by its first bytes. Raises SourceUnreadable; UsageError for a bare plan."""
    if os.path.isdir(source):
        return "trt-llm" if os.path.lexists(os.path.join(source, "config.json")) else "trt-cloud"
    from refit_agent.authoring.sources import read_head
    from refit_agent.authoring.zip_entries import MAGIC

    head, _ = read_head(source, 4)
    if head in _PLAN_MAGICS:
        raise click.UsageError(f"{source} is a plan: add it with 'refit-agent bundle add-engine'.")
    return "trt-cloud" if head[:2] == MAGIC[:2] else "ep-context"


def _from_trt_cloud(
    bundle: str, model: str, source: str, own: dict[str, Any], said: EngineFacts, how: dict[str, Any], as_json: bool
) -> ImportedEngine:
    from refit_agent.authoring.import_trt_cloud import import_build_result, know_build_result

    facts = _all_facts(source, know_build_result(source, said, entry=own["entry"]), as_json)
    notes: str | Literal[False] | None = False if own["no_notes"] else own["notes"]
    with stoppable(model) as progress:
        return import_build_result(
            bundle, model, source, facts, entry=own["entry"], notes=notes, progress=progress, **how
        )


def _from_ep_context(
    bundle: str, model: str, source: str, own: dict[str, Any], said: EngineFacts, how: dict[str, Any], as_json: bool
) -> ImportedEngine:
    from refit_agent.authoring.import_ep_context import import_context_model, know_context_model

    facts = _all_facts(source, know_context_model(source, said), as_json)
    with stoppable(model) as progress:
        return import_context_model(bundle, model, source, facts, onnx=own["onnx"], progress=progress, **how)


def _from_trt_llm(
    bundle: str, model: str, source: str, own: dict[str, Any], said: EngineFacts, how: dict[str, Any], as_json: bool
) -> ImportedEngine:
    from refit_agent.authoring.import_trt_llm import import_engine_folder
    from refit_agent.authoring.trt_llm_known import know_engine_folder

    checkpoint = own["checkpoint"]
    if checkpoint is None:
        raise click.UsageError("Give --checkpoint: an engine of TensorRT-LLM gets its weights from there.")
    known = know_engine_folder(source, checkpoint, said, as_it_is=own["as_it_is"]).known
    facts = _all_facts(source, known, as_json)
    more = {"as_it_is": own["as_it_is"], "link": own["link"], "version": own["version"] or ""}
    with stoppable(model) as progress:
        return import_engine_folder(bundle, model, source, checkpoint, facts, progress=progress, **more, **how)


def _all_facts(source: str, known: KnownPlan, as_json: bool) -> EngineFacts:
    """What is known, with what the person at the terminal says of the rest; raises FactsMissing if there is none."""
    if known.missing and (as_json or not (sys.stdin.isatty() and sys.stderr.isatty())):
        require_all(source, known.missing)
    return ask_for(source, known, known.facts) if known.missing else known.facts


def _document(bundle: str, model: str, kind: str, made: ImportedEngine) -> dict[str, object]:
    added = made.added
    return {
        "bundle": os.path.abspath(bundle),
        "model": model,
        "kind": kind,
        "plan": made.plan,
        "engine": msgspec.to_builtins(added.engine),
        "replaced": [engine.path for engine in added.replaced],
        "never_first_now": [engine.path for engine in added.hidden],
        "notes": [note._asdict() for note in made.notes],
        "remarks": list(made.remarks),
    }


def _say(made: ImportedEngine) -> None:
    engine = made.added.engine
    profile = f", profile {engine.profile}" if engine.profile else ""
    output.emit(f"added {engine.path}")
    output.emit(f"  {runtime_text(engine)}, for {place_text(engine)}, {engine.precision}{profile}")
    plan_size, size = sum(plan.plan_size for plan in engine.plans), sum(plan.size for plan in engine.plans)
    parts = f"{len(engine.plans)} plans, " if engine.ranks else ""
    output.emit(f"  {parts}{output.size_text(plan_size)} as {output.size_text(size)} ({engine.compression})")
    output.emit(f"  from {made.plan}")
    for old in made.added.replaced:
        output.emit(f"  in place of {old.path}")
    _say_notes(made.notes)
    emit_warnings(made.remarks)
    emit_warnings(
        [f"{old.path} is never the first choice any more: this one is taken before it" for old in made.added.hidden]
    )
    if engine.host_code or engine.lean_runtime is not None:
        emit_warnings(
            ["it brings code of its own, which is taken only from a signed bundle by an app that pins the key"]
        )


def _say_notes(notes: tuple[Note, ...]) -> None:
    kept = [note for note in notes if note.path]
    if kept:
        output.emit(f"  {output.count_text(len(kept), 'note')} in {os.path.dirname(kept[0].path)}")
    for note in [note for note in notes if not note.path][:_MOST_NAMED]:
        output.emit(f"  not kept: {note.name}, {output.size_text(note.size)}: {note.reason}")
