"""`refit-agent explain` and `refit-agent gpus`: what would be chosen, and for which machine."""

from __future__ import annotations

import time

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.explain_document import explain_document
from refit_agent.cli.group import json_option
from refit_agent.cli.option_types import Target
from refit_agent.cli.public_keys import pinned_keys, public_key_option
from refit_agent.errors.advice import suited
from refit_agent.gpu.detect import detect
from refit_agent.machine import Gpu, Machine


@click.command(short_help="Show which engine fits this machine, and why not the others.")
@click.argument("bundle", type=click.Path())
@click.option("--model", help="This model alone; without it, every model of the bundle.")
@click.option("--profile", help="A profile's name; without it, each model's default.")
@click.option("--target", type=Target(), help="cpu, gpu, cuda:N or a GPU's UUID; without it, every target.")
@public_key_option
@json_option
def explain(
    bundle: str,
    model: str | None,
    profile: str | None,
    target: str | None,
    public_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show what 'provision' would choose from in BUNDLE on this machine: the candidates, best first, and the
    reason for every refusal. Nothing is made.

    \b
    Example:
      refit-agent explain /opt/app/bundle --model denoiser
    """
    found, code = explain_document(bundle, model, profile, target, pinned_keys(public_key))
    if as_json:
        output.emit_json(found)
        return code
    models = found["models"]
    assert isinstance(models, list)
    for one in models:
        if "error" in one:
            error = one["error"]
            output.say_error(error["code"], f"{one['model']}: {error['message']}", error["hint"])
        else:
            _say(one)
    return code


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
        output.emit(suited("no runtime is installed; for the CPU: pip install 'refit-agent[cpu]'"))
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
