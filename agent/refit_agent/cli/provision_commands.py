"""`refit-agent provision` and the full form of `refit-agent path`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import click

from refit_agent.bundle import Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.ensure import LazyView, ensure, lazy_view
from refit_agent.cli.group import json_option
from refit_agent.cli.path_command import print_path
from refit_agent.cli.public_keys import pinned_keys, public_key_option
from refit_agent.engine import Engine
from refit_agent.errors import RefitAgentError
from refit_agent.gpu.detect import detect
from refit_agent.manifest import Model
from refit_agent.provision import Form
from refit_agent.selection import select

_ALL_TARGETS = "all"
_TARGET_HELP = "cpu, gpu, cuda:N or a GPU's UUID; without it, whatever is best."


class _Wish(NamedTuple):
    """One engine to provide."""

    model: str
    profile: str | None
    target: str | None


class _Options(NamedTuple):
    weights: str | None
    deadline_s: float | None
    retry: bool
    background: bool
    public_keys: tuple[str, ...] | None
    as_json: bool


@click.command(short_help="Make a bundle's engines ready, in the cache.")
@click.argument("bundle", type=click.Path())
@click.option("--model", help="This model alone; without it, every model of the bundle.")
@click.option("--profile", help="A profile's name; without it, each model's default.")
@click.option("--all-profiles", is_flag=True, help="Every profile of each model.")
@click.option("--target", help=_TARGET_HELP + " 'all' means every distinct GPU.")
@click.option("--weights", type=click.Path(), metavar="FILE", help="Take the weights from this ONNX file, of the same model.")  # fmt: skip
@click.option("--retry", is_flag=True, help="Also try what failed on this machine before.")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Longest time for one engine.")  # fmt: skip
@click.option("--background", is_flag=True, help="Work at idle priority.")
@public_key_option
@json_option
def provision(
    bundle: str,
    model: str | None,
    profile: str | None,
    all_profiles: bool,
    target: str | None,
    weights: str | None,
    retry: bool,
    deadline: float | None,
    background: bool,
    public_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make the engines of BUNDLE ready for this machine, for instance while an app is being installed.

    An engine that is in the cache already is a hit and costs nothing. An error of one model does not keep
    the others from being made; the exit code is that of the first error.

    \b
    Example:
      refit-agent provision /opt/app/bundle --json
    """
    if profile is not None and all_profiles:
        raise click.UsageError("--profile and --all-profiles exclude each other.")
    keys = pinned_keys(public_key)
    opened = Bundle.open(bundle, keys)
    models = opened.manifest.models if model is None else (opened.model(model),)
    if weights is not None and len(models) > 1:
        raise click.UsageError("--weights belongs to one model: name it with --model.")
    options = _Options(weights, deadline, retry, background, keys, as_json)
    results: list[dict[str, object]] = []
    code = 0
    with lazy_view() as view:
        for one in models:
            for wish, failure in _wishes(opened, one, profile, all_profiles, target):
                result, error = _failed(wish, failure) if failure else _provide(opened.root, wish, view, options)
                results.append(result)
                code = code or (0 if error is None else error.exit_code)
                view.close()
                if not as_json:
                    _say(result, error)
    if as_json:
        app = opened.manifest.app
        output.emit_json({"bundle": opened.root, "app": app.id, "app_version": app.version, "engines": results})
    return code


def _wishes(
    bundle: Bundle, model: Model, profile: str | None, all_profiles: bool, target: str | None
) -> Iterator[tuple[_Wish, RefitAgentError | None]]:
    """What to provide of one model; with an error in its place where that cannot even be said."""
    profiles = (model.profiles() or (None,)) if all_profiles else (profile,)
    for name in profiles:
        try:
            targets = _distinct_gpus(bundle, model, name) if target == _ALL_TARGETS else [target]
        except RefitAgentError as error:
            yield _Wish(model.name, name, target), error
            continue
        for one in targets:
            yield _Wish(model.name, name, one), None


def _distinct_gpus(bundle: Bundle, model: Model, profile: str | None) -> list[str | None]:
    """One target for each kind of GPU that the model has an engine for; [None] (the best) if there is none."""
    machine = detect()
    kinds: dict[tuple[str, str], str] = {}
    for gpu in machine.gpus:
        kinds.setdefault((gpu.name, gpu.compute_capability), f"cuda:{gpu.index}")
    fitting = [t for t in kinds.values() if select(bundle.manifest, model, profile, machine, t).candidates]
    return [*fitting] or [None]


def _provide(
    root: str, wish: _Wish, view: LazyView, options: _Options
) -> tuple[dict[str, object], RefitAgentError | None]:
    label = wish.model + (
        f" ({', '.join(x for x in (wish.profile, wish.target) if x)})" if wish.profile or wish.target else ""
    )
    start = time.perf_counter()
    try:
        engine = ensure(
            root,
            wish.model,
            wish.profile,
            wish.target,
            view=view,
            label=label,
            weights=options.weights,
            deadline_s=options.deadline_s,
            retry_failed=options.retry,
            background=options.background,
            public_keys=options.public_keys,
        )
    except RefitAgentError as error:
        return _failed(wish, error)
    with engine:
        return engine_document(wish.model, engine, time.perf_counter() - start), None


def engine_document(model: str, engine: Engine, seconds: float) -> dict[str, object]:
    """One engine as it stands in a JSON document."""
    why = engine.explanation
    return {
        "model": model,
        "profile": engine.profile,
        "hit": engine.hit,
        "check": engine.check,
        "path": os.fspath(engine),
        "key": engine.key,
        "runtime": engine.runtime,
        "runtime_version": engine.runtime_version,
        "target": engine.target,
        "engine": why.engine,
        "tier": why.tier,
        "reason": why.chosen,
        "attempts": [{"engine": a.engine, "target": a.target, "code": a.code, "message": a.message} for a in why.attempts],
        "seconds": round(seconds, 6),
    }  # fmt: skip


def _failed(wish: _Wish, error: RefitAgentError) -> tuple[dict[str, object], RefitAgentError]:
    failure: dict[str, object] = {**wish._asdict(), "error": output.describe(error)}
    return failure, error


def _say(result: dict[str, object], error: RefitAgentError | None) -> None:
    name = f"{result['model']}" + (f" ({result['profile']})" if result["profile"] else "")
    if error is not None:
        output.say_error(error.code, f"{name}: {error}", error.hint)
        return
    took = output.seconds_text(float(str(result["seconds"])))
    how = f"in the cache, found in {took}" if result["hit"] else f"made in {took}"
    output.emit(f"{name}: {how}, for {result['runtime']} {result['runtime_version']} on {result['target']}")
    output.emit(f"  {result['path']}")
    output.emit(f"  why: {result['reason']}")
    attempts = result["attempts"]
    assert isinstance(attempts, list)
    for attempt in attempts:
        output.emit(f"  better, but failed: {attempt['engine']} on {attempt['target']}: {attempt['message']}")


@click.command(short_help="Print the path of a ready engine, alone.")
@click.argument("bundle", type=click.Path())
@click.argument("model")
@click.option("--profile", help="A profile's name; without it, the model's default.")
@click.option("--target", help=_TARGET_HELP)
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Longest time to make it.")  # fmt: skip
@click.option("--form", type=click.Choice(["plan", "onnx"]), default="plan", show_default=True, help="onnx: the file for ONNX Runtime's TensorRT execution provider.")  # fmt: skip
@public_key_option
@json_option
def path(
    bundle: str,
    model: str,
    profile: str | None,
    target: str | None,
    deadline: float | None,
    form: Form,
    public_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Print the path of the engine of MODEL in BUNDLE, and nothing else; make it first if it is not in the cache.

    The lease, which keeps the engine from eviction, lasts only as long as this process. Load the file
    soon, and ask again at each start. Progress and errors go to standard error.

    \b
    Example:
      trt-app --engine "$(refit-agent path /opt/app/bundle denoiser)"
    """
    stop.check()
    keys = pinned_keys(public_key)
    return print_path(bundle, model, profile, target, deadline_s=deadline, public_keys=keys, form=form, as_json=as_json)
