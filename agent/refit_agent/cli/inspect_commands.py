"""`refit-agent explain` and `refit-agent gpus`: what would be chosen, and for which machine."""

from __future__ import annotations

import time

import click
import msgspec

from refit_agent import paths
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.cli import output
from refit_agent.cli.group import json_option
from refit_agent.errors import RefitAgentError, SelectionError
from refit_agent.failures import Failures
from refit_agent.gpu.detect import detect
from refit_agent.keys import attempt_context, engine_facts, engine_key
from refit_agent.machine import Gpu, Machine
from refit_agent.manifest import Model
from refit_agent.selection import Candidate, Selection, select


@click.command(short_help="Show which engine fits this machine, and why not the others.")
@click.argument("bundle", type=click.Path())
@click.option("--model", help="This model alone; without it, every model of the bundle.")
@click.option("--profile", help="A profile's name; without it, each model's default.")
@click.option("--target", help="cpu, gpu, cuda:N or a GPU's UUID; without it, every target.")
@json_option
def explain(bundle: str, model: str | None, profile: str | None, target: str | None, as_json: bool) -> int:
    """Show what 'provision' would choose from in BUNDLE on this machine: the candidates, best first, and the
    reason for every refusal. Nothing is made.

    \b
    Example:
      refit-agent explain /opt/app/bundle --model denoiser
    """
    opened = Bundle.open(bundle)
    models = opened.manifest.models if model is None else (opened.model(model),)
    machine = detect()
    documents: list[dict[str, object]] = []
    code = 0
    for one in models:
        try:
            selection = select(opened.manifest, one, profile, machine, target)
        except RefitAgentError as error:
            documents.append({"model": one.name, "error": output.describe(error)})
            code = code or error.exit_code
            if not as_json:
                output.say_error(error.code, f"{one.name}: {error}", error.hint)
            continue
        if not selection.candidates:
            code = code or SelectionError.exit_code
        document = _document(one, selection, machine)
        documents.append(document)
        if not as_json:
            _say(document)
    if as_json:
        output.emit_json({"bundle": opened.root, "app": opened.manifest.app.id, "models": documents})
    return code


def _document(model: Model, selection: Selection, machine: Machine) -> dict[str, object]:
    return {
        "model": model.name,
        "profile": selection.profile,
        "candidates": [candidate_document(c, model, selection.profile, machine) for c in selection.candidates],
        "refusals": [
            {"engine": r.engine_path, "target": r.target, "code": r.code, "reason": r.reason, "needs": r.need}
            for r in selection.refusals
        ],
    }


def candidate_document(candidate: Candidate, model: Model, profile: str | None, machine: Machine) -> dict[str, object]:
    """One candidate as it stands in a JSON document, with what is known of it from before."""
    home = paths.home()
    key = engine_key(engine_facts(candidate, model, profile, machine))
    found = Store(home.cache).lookup(key, touch=False)
    if isinstance(found, tuple):
        found[2].close()
    failure = Failures(home.state).recall(key, attempt_context(candidate, model, profile))
    return {
        "engine": candidate.engine.path,
        "target": candidate.target,
        "gpu": None if candidate.gpu is None else candidate.gpu.name,
        "tier": candidate.tier,
        "reason": candidate.reason,
        "runtime": candidate.engine.runtime,
        "module": candidate.runtime.module,
        "module_version": candidate.runtime.version,
        "module_folder": candidate.runtime.folder,
        "key": key,
        "cached": isinstance(found, tuple),
        "cache_fault": found if isinstance(found, str) else "",
        "failed_before": None if failure is None else output.describe(failure),
    }


def _say(document: dict[str, object]) -> None:
    candidates, refusals = document["candidates"], document["refusals"]
    assert isinstance(candidates, list)
    assert isinstance(refusals, list)
    profile = f", profile {document['profile']}" if document["profile"] else ""
    output.emit(f"model {document['model']}{profile}")
    if not candidates:
        output.emit("  nothing in the bundle can be used here")
    for number, item in enumerate(candidates, start=1):
        output.emit(f"  {number}. {item['engine']} on {item['target']}" + (f" ({item['gpu']})" if item["gpu"] else ""))
        output.emit(f"     {item['reason']}")
        where = f" in {item['module_folder']}" if item["module_folder"] else ""
        output.emit(f"     loaded by {item['module']} {item['module_version']}{where}")
        output.emit(f"     {_known(item)}")
    for item in refusals:
        on = f" on {item['target']}" if item["target"] else ""
        output.emit(f"  not {item['engine']}{on}: {item['reason']}")


def _known(item: dict[str, object]) -> str:
    if item["cached"]:
        return f"in the cache as {str(item['key'])[:12]}"
    if item["cache_fault"]:
        return f"in the cache, but damaged: {item['cache_fault']}; it will be made anew"
    failure = item["failed_before"]
    if isinstance(failure, dict):
        return f"failed on this machine before and is skipped (try it with --retry): {str(failure['message']).splitlines()[0]}"
    return "not in the cache yet"


@click.command(short_help="Show the GPUs, the driver and the runtimes of this machine.")
@click.option("--fresh", is_flag=True, help="Ask the driver now, also if the answer is remembered.")
@json_option
def gpus(fresh: bool, as_json: bool) -> int:
    """Show what this machine offers: its GPUs with driver and CUDA version, or why none can be used, and the
    runtimes that are installed.

    \b
    Example:
      refit-agent gpus --fresh
    """
    start = time.perf_counter()
    machine = detect(fresh=fresh)
    seconds = time.perf_counter() - start
    if as_json:
        output.emit_json({**msgspec.to_builtins(machine), "seconds": round(seconds, 6)})
        return 0
    from refit_agent.console import print_table

    output.emit(f"{machine.os} {machine.arch}, {driver_text(machine)}")
    if machine.gpus:
        print_table(["target", "name", "compute>", "memory>", "free>", "uuid"], [_row(gpu) for gpu in machine.gpus])
    else:
        output.emit(f"no GPU: {machine.no_gpu_reason}")
    for warning in machine.warnings:
        output.emit(f"warning: {warning}")
    if machine.runtimes:
        rows = [(r.module, r.version or "?", str(r.cuda_major or "-"), r.folder or "-") for r in machine.runtimes]
        print_table(["runtime", "version", "CUDA", "folder"], rows)
    else:
        output.emit("no runtime is installed: pip install 'refit-agent[cpu]' brings the one for the CPU")
    return 0


def driver_text(machine: Machine) -> str:
    """Driver and CUDA version in words."""
    if not machine.driver:
        return "no NVIDIA driver"
    return f"NVIDIA driver {machine.driver}" + (f", CUDA up to {machine.cuda}" if machine.cuda else "")


def _row(gpu: Gpu) -> tuple[str, ...]:
    free = "-" if gpu.memory_free is None else output.size_text(gpu.memory_free)
    name = f"{gpu.name} (MIG)" if gpu.mig and "MIG" not in gpu.name else gpu.name
    return f"cuda:{gpu.index}", name, gpu.compute_capability, output.size_text(gpu.memory_total), free, gpu.uuid
