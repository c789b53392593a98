"""`refit-agent bundle inspect|size`."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.bundle_words import emit_warnings, place_text, runtime_text, share_text, short_path
from refit_agent.cli.group import json_option
from refit_agent.errors import BundleError
from refit_agent.manifest import Engine

if TYPE_CHECKING:
    from refit_agent.authoring.overview import BundleOverview, EngineOverview, ModelOverview
    from refit_agent.authoring.sizes import BundleSize, EngineSize

#: What a row says where the question makes no sense: told of the others alone.
_SENSELESS = "-"


@click.command(short_help="Show what is in a bundle.")
@click.argument("bundle", type=click.Path())
@json_option
def inspect(bundle: str, as_json: bool) -> int:
    """Show the models and engines of BUNDLE, which may be a draft, whether it is signed, and what looks like an
    oversight. Only the manifest is read: 'bundle verify' reads the files. The exit code is 3 if a file is missing or
    has another size, or a signature is not good.

    \b
    Example:
      refit-agent bundle inspect ./bundle
    """
    from refit_agent.authoring import inspect_bundle

    found = inspect_bundle(bundle)
    code = BundleError.exit_code if found.faults or found.signature_fault else 0
    if as_json:
        output.emit_json(msgspec.to_builtins(found))
        return code
    output.emit(f"{found.app.name} {found.app.version} ({found.app.id})")
    for model in found.models:
        output.emit()
        _say_model(model)
    if not (sys.stdout.isatty() and found.models and found.models[-1].engines):
        output.emit()  # a table on a terminal ends with an empty line of its own
    _say_state(found)
    return code


def _say_model(model: ModelOverview) -> None:
    version = f" {model.version}" if model.version else ""
    weights = model.safetensors if model.onnx is None else (model.onnx, *model.external)
    files = f" in {len(weights)} files" if len(weights) > 1 else ""
    output.emit(f"model {model.name}{version}: {weights[0].path}, {output.size_text(model.weights_bytes)}{files}")
    if model.default_profile is not None:
        output.emit(f"  default profile {model.default_profile}")
    if not model.engines:
        output.emit(f"  no engine yet, {output.count_text(len(model.golden), 'set')} of golden data")
        return
    from refit_agent.console import print_table

    details = [_details(item) for item in model.engines]
    told = [found for found in map(_if_alike, zip(*details, strict=True)) if found]
    for line in textwrap.wrap(", ".join(told), 76):
        output.emit(f"  {line}")
    rows = [(*_row(item.engine, model.name), ", ".join(d for d in own if d not in ("", _SENSELESS, *told))) for item, own in zip(model.engines, details, strict=True)]  # fmt: skip
    columns = ["engine", "runtime", "for", "shipped>", "what else"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows)


def _row(engine: Engine, model: str) -> tuple[str, ...]:
    shipped = output.size_text(sum(plan.size for plan in engine.plans))
    return short_path(engine, model), runtime_text(engine), place_text(engine), shipped


def _details(item: EngineOverview) -> tuple[str, ...]:
    """What is told above the table where all engines agree, else in the engine's row; "" for nothing."""
    engine = item.engine
    on_cpu = engine.runtime == "onnxruntime"
    return (
        engine.precision,
        _SENSELESS if on_cpu else f"strip {engine.strip}",
        _SENSELESS if on_cpu else f"refit {engine.refit}",
        _SENSELESS if on_cpu else "version-compatible" if engine.version_compatible else "",
        f"profile {engine.profile}" if engine.profile else "",
        _SENSELESS if on_cpu else f"built on {engine.gpu}" if engine.gpu else "",
        f"driver {engine.min_driver}" if engine.min_driver else "",
        f"tolerance {engine.tolerance:g}" if engine.tolerance is not None else "",
        f"{output.count_text(item.golden, 'set')} of golden data",
    )


def _if_alike(values: tuple[str, ...]) -> str:
    found = {value for value in values if value != _SENSELESS}
    return found.pop() if len(found) == 1 else ""


def _say_state(found: BundleOverview) -> None:
    if found.signature_fault:
        output.emit(f"FAULT {found.signature_fault}")
    else:
        output.emit(f"signed by {', '.join(found.signed_by)}" if found.signed_by else "not signed")
    for fault in found.faults:
        output.emit(f"FAULT {fault.error}")
    emit_warnings(found.warnings)
    if found.unfinished:
        output.emit(f"the bundle is not finished, and no app will take it: {found.unfinished}")


@click.command(short_help="Show what is shipped, and what full plans would be.")
@click.argument("bundle", type=click.Path())
@json_option
def size(bundle: str, as_json: bool) -> int:
    """Show for every engine of BUNDLE the full plan, the stripped plan and what is shipped of it, and the whole bundle
    against shipping full plans for every GPU.

    A plan built with STRIP_PLAN does not tell what it lacks: its full size is then an estimate (~) from the model's
    weights. The full plan of the CPU target is the model itself; a bundle with no other target has nothing to compare.

    \b
    Example:
      refit-agent bundle size ./bundle
    """
    from refit_agent.authoring import bundle_size

    found = bundle_size(bundle)
    if as_json:
        output.emit_json(msgspec.to_builtins(found))
        return 0
    for_gpus = any(e.runtime != "onnxruntime" for model in found.models for e in model.engines)
    columns = ["engine", "full plan>", "stripped>", "shipped>", "saved>"] if for_gpus else ["engine", "shipped>"]
    rows: list[tuple[str, ...]] = []
    for model in found.models:
        rows.append((model.name, *([""] * (len(columns) - 1))))
        rows += [_size_row(model.name, engine, for_gpus=for_gpus) for engine in model.engines]
    if rows:
        from refit_agent.console import print_table

        print_table(columns, rows)
    _say_shipped(found)
    if for_gpus:
        _say_full_plans(found)
    else:
        output.emit("it has no engine for a GPU, so there are no full plans to compare it with")
    return 0


def _size_row(model: str, engine: EngineSize, *, for_gpus: bool) -> tuple[str, ...]:
    name, shipped = "  " + engine.path.removeprefix(f"engines/{model}/"), output.size_text(engine.shipped)
    if not for_gpus:
        return name, shipped
    about = "~" if engine.estimated else ""
    return (
        name,
        about + output.size_text(engine.full),
        output.size_text(engine.stripped),
        shipped,
        about + share_text(engine.saved),
    )


def _say_shipped(found: BundleSize) -> None:
    weights, golden = sum(m.weights for m in found.models), sum(m.golden for m in found.models)
    engines = sum(engine.shipped for model in found.models for engine in model.engines)
    parts = {"models": weights - found.fetched, "engines": engines, "golden data": golden}
    output.emit(
        f"shipped: {output.size_text(found.shipped)} ({', '.join(f'{k} {output.size_text(v)}' for k, v in parts.items())})"
    )
    if found.fetched:
        output.emit(f"fetched from elsewhere: {output.size_text(found.fetched)}")


def _say_full_plans(found: BundleSize) -> None:
    about = "about " if found.estimated else ""
    on_cpu = any(e.runtime == "onnxruntime" for m in found.models for e in m.engines)
    totals = {"full plans for every GPU" + (" and ONNX for the CPU" if on_cpu else ""): found.full_plans}
    if found.full_plans_and_onnx != found.full_plans:
        totals["full plans and every ONNX file"] = found.full_plans_and_onnx
    for words, total in totals.items():
        if total:
            saved = 1 - found.shipped / total
            less = f"{share_text(saved)} saved" if saved >= 0 else f"{share_text(-saved)} more is shipped"
            output.emit(f"{words}: {about}{output.size_text(total)} ({less})")
