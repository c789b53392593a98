"""Provide engines one after another within one deadline, and say so: to people, in one document, or in lines."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from refit_agent.bundle import Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.deadline import Deadline
from refit_agent.cli.ensure import Halt, LazyView, View, ensure
from refit_agent.cli.wishes import Outlook, Wish
from refit_agent.engine import Engine
from refit_agent.errors import RefitAgentError
from refit_agent.progress import Progress


class Options(NamedTuple):
    """How the engines are to be made."""

    weights: str | None
    retry: bool
    background: bool
    public_keys: tuple[str, ...] | None


class Report(Protocol):
    """Is told of each engine in turn."""

    def begin(self, number: int) -> None:
        """Work on engine ``number``, from 0, begins."""

    def over(self, document: dict[str, object], error: RefitAgentError | None) -> None:
        """It is ready or has failed; ``document`` is it as it stands in JSON."""


class Outcome(NamedTuple):
    """The exit code, which is that of the first error, and whether the deadline kept an engine from being ready."""

    code: int
    deadline_passed: bool


def provide_all(
    bundle: Bundle,
    wanted: Sequence[Wish],
    options: Options,
    deadline: Deadline,
    view: View,
    report: Report,
    halt: Halt,
) -> Outcome:
    """Provide every engine of ``wanted``; an error of one keeps no other from being made, the end of the time does.

    Raises:
        Stopped: a signal came. Exception: what ``halt`` raises.
    """
    code, late = 0, False
    outlook = outlook_of(bundle, options, deadline)
    for number, wish in enumerate(wanted):
        report.begin(number)
        document, error = _provided(bundle.root, wish, options, outlook, deadline, view, halt)
        with stop.patiently():  # an engine that is ready is reported as such
            report.over(document, error)
        if error is not None:
            code = code or error.exit_code
            late = late or deadline.over()
    return Outcome(code, late)


def outlook_of(bundle: Bundle, options: Options, deadline: Deadline) -> Outlook:
    """What is to be expected of engines that are made so."""
    own_weights = options.weights is not None
    return Outlook(bundle, own_weights=own_weights, retry_failed=options.retry, deadline_s=deadline.for_work())


def _provided(
    root: str, wish: Wish, options: Options, outlook: Outlook, deadline: Deadline, view: View, halt: Halt
) -> tuple[dict[str, object], RefitAgentError | None]:
    if wish.fault is not None:
        return _failed(wish, wish.fault)
    if deadline.over() and not outlook.is_ready(wish):
        return _failed(wish, deadline.passed("this engine was not begun"))
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
            halt=halt,
            label=label,
            weights=options.weights,
            deadline_s=deadline.for_work(),
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


def _failed(wish: Wish, error: RefitAgentError) -> tuple[dict[str, object], RefitAgentError]:
    failure: dict[str, object] = {
        "model": wish.model,
        "profile": wish.profile,
        "target": wish.target,
        "error": output.describe(error),
    }
    return failure, error


class ForPeople:
    """Says it in words; ``view`` is taken off the screen for them."""

    def __init__(self, view: LazyView) -> None:
        self._view = view

    def begin(self, number: int) -> None:
        """The view says it."""
        del number

    def over(self, document: dict[str, object], error: RefitAgentError | None) -> None:
        """A few lines for each engine."""
        self._view.close()
        _say(document, error)


class InDocument:
    """Keeps ``engines`` for the one document of ``--json``."""

    def __init__(self, view: LazyView) -> None:
        self.engines: list[dict[str, object]] = []
        self._view = view

    def begin(self, number: int) -> None:
        """Nothing to say yet."""
        del number

    def over(self, document: dict[str, object], error: RefitAgentError | None) -> None:
        """One more."""
        del error  # it is in the document
        self._view.close()
        self.engines.append(document)


class NoView:
    """Shows no progress."""

    def show(self, label: str, progress: Progress) -> None:
        """Nobody wants to see it."""


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
