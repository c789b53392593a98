"""`refit-agent demo`: the whole way once, on this machine, with a model made on the spot."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from refit_agent import paths
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.cli import output
from refit_agent.cli.ensure import ensure, lazy_view
from refit_agent.cli.explain_document import candidate_document
from refit_agent.cli.group import json_option
from refit_agent.cli.inspect_commands import driver_text
from refit_agent.gpu.detect import detect
from refit_agent.selection import select

if TYPE_CHECKING:
    from refit_agent.engine import Engine
    from refit_agent.manifest import Model


@click.command(short_help="Try everything out with a small model made on the spot.")
@click.option("--dir", "folder", type=click.Path(), metavar="DIR", help="Where to write the bundle; by default below the state folder.")  # fmt: skip
@click.option("--keep/--no-keep", default=True, help="Keep bundle and engine afterwards (the default), or delete both.")
@json_option
def demo(folder: str | None, keep: bool, as_json: bool) -> int:
    """Write a small app bundle, provision it, run the engine, compare its results with the original model's, and
    ask a second time. The exit code is 0 only if the results agree and the second answer came from the cache.

    The model is convolutional, has 2.6 MB of weights and runs on the CPU, also on a machine with a GPU.

    \b
    Example:
      refit-agent demo --dir /tmp/demo-bundle
    """
    from refit_agent.cli import demo_folder  # numpy comes with it, and the help needs none

    home = paths.home()
    root = os.path.abspath(folder) if folder else os.path.join(home.state, "demo", "bundle")
    report = _Report(as_json=as_json)
    report.say("1. The bundle: a convolutional model, its plan without weights, and golden data.")
    bundle = demo_folder.prepare(root)
    try:
        _show_files(report, bundle)
        model = bundle.manifest.models[0]
        _choose(report, bundle, model)
        _provide(report, bundle, model)
    finally:
        if not keep:
            demo_folder.remove(root)
            for key in report.engine_keys():
                Store(home.cache).remove(key)
    report.say("6. Everything is here:" if keep else "6. Bundle and engine were deleted again. They were here:")
    report.note(bundle=root, cache=home.cache, state=home.state, kept=keep)
    for name in ("bundle", "engine", "cache", "state"):
        report.say(f"   {name:<7} {report.facts[name]}")
    return report.conclude()


class _Report:
    """What the demo found, told step by step to people, or at the end as one document."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.facts: dict[str, object] = {}

    def say(self, text: str) -> None:
        """One line, for people."""
        if not self._as_json:
            output.emit(text)

    def note(self, **facts: object) -> None:
        """Facts for the document."""
        self.facts |= facts

    def engine_keys(self) -> list[str]:
        """Cache keys of the demo's engines."""
        candidates = self.facts.get("candidates", [])
        assert isinstance(candidates, list)
        return [str(item["key"]) for item in candidates]

    def conclude(self) -> int:
        """The verdict, and the exit code that goes with it."""
        ok = bool(self.facts["agree"] and self.facts["second_hit"])
        if self._as_json:
            output.emit_json({"ok": ok, **self.facts})
        elif ok:
            output.emit("Done: the results agree, and the second answer came from the cache.")
        else:
            output.emit("FAILED: the results differ, or the second answer did not come from the cache; see above.")
        return 0 if ok else 1


def _show_files(report: _Report, bundle: Bundle) -> None:
    for model in bundle.manifest.models:
        for ref in model.files():
            report.say(f"   {output.size_text(ref.size):>10}  {ref.path}")


def _choose(report: _Report, bundle: Bundle, model: Model) -> None:
    machine = detect()
    report.say(f"2. The choice, for {machine.os} {machine.arch}, {driver_text(machine)}.")
    selection = select(bundle.manifest, model, None, machine)
    candidates = [candidate_document(c, model, selection.profile, machine) for c in selection.candidates]
    for item in candidates:
        report.say(f"   {item['engine']} on {item['target']}: {item['reason']}")
    for refusal in selection.refusals:
        report.say(f"   not {refusal.engine_path}: {refusal.reason}")
    if machine.gpus:
        report.say("   This machine has a GPU; the demo's engine is for the CPU all the same.")
    report.note(candidates=candidates, gpus=[gpu.name for gpu in machine.gpus])


def _provide(report: _Report, bundle: Bundle, model: Model) -> None:
    store = Store(paths.home().cache)
    for key in report.engine_keys():
        # Found in the cache, from an earlier demo, it would not show how an engine is made.
        store.remove(key)
    report.say("3. The engine is made: the model's weights put into the plan.")
    with lazy_view() as view:
        start = time.perf_counter()
        first = ensure(bundle.root, model.name, view=view)
        seconds = time.perf_counter() - start
        view.close()
        # The lease on the first answer lasts until the second: in between, nobody may evict the engine.
        with first:
            how = "found in the cache" if first.hit else "made"
            report.say(
                f"   {how} in {output.seconds_text(seconds)}, for {first.runtime} {first.runtime_version} on {first.target}"
            )
            report.note(engine=os.fspath(first), key=first.key, first_hit=first.hit, first_seconds=round(seconds, 6))
            _compare(report, bundle, model, first)
            start = time.perf_counter()
            with ensure(bundle.root, model.name, view=view) as second:
                seconds = time.perf_counter() - start
    report.say("5. The same request once more.")
    report.say(f"   {'a hit' if second.hit else 'NOT A HIT'}, answered in {output.seconds_text(seconds)}")
    report.note(second_hit=second.hit, second_seconds=round(seconds, 6))


def _compare(report: _Report, bundle: Bundle, model: Model, engine: Engine) -> None:
    """Run original and engine as a host app would, on other data than the check before publication."""
    from refit_agent.authoring.demo_bundle import TOLERANCE, demo_input, run_model
    from refit_agent.refit.golden import relative_error

    image = demo_input(seed=2026)
    expected = run_model(bundle.locate(model.require_onnx()), image)
    start = time.perf_counter()
    got = run_model(os.fspath(engine), image)
    seconds = time.perf_counter() - start
    error = relative_error(got, expected)
    agree = got.shape == expected.shape and error <= TOLERANCE
    report.say("4. An inference with the engine, compared with the original model.")
    words = "the results agree" if agree else "THE RESULTS DIFFER"
    report.say(
        f"   {words}: relative error {error:.2g}, allowed {TOLERANCE:.2g}; loaded and run in {output.seconds_text(seconds)}"
    )
    report.note(agree=agree, relative_error=error, tolerance=TOLERANCE)
