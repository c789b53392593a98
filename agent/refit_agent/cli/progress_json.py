"""`provision --progress=json`: what happens, as one JSON line each, for a program that shows it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from refit_agent import __version__
from refit_agent.cli import progress_events as events
from refit_agent.cli.estimate import Estimate, Remaining
from refit_agent.cli.line_writer import LineWriter
from refit_agent.cli.wishes import Wish
from refit_agent.errors import RefitAgentError
from refit_agent.progress import Progress

_PREPARE = Progress(phase="prepare", text="looking at this machine", fraction=0.0)


class _Now(NamedTuple):
    """How it stands. Replaced as a whole, since another thread reads it."""

    step: Progress
    percent: float
    remaining: Remaining | None
    number: int | None = None
    engines: int | None = None
    wish: Wish | None = None


class ProgressLines:
    """The lines of one command. For one thread; it writes in another."""

    def __init__(self, bundle: str | None, deadline_s: float | None) -> None:
        """Standard output is its own from here on."""
        self._began = time.monotonic()
        self._bundle = bundle
        self._deadline_s = None if deadline_s is None or math.isinf(deadline_s) else deadline_s
        self._now = _Now(_PREPARE, 0.0, None)
        self._wishes: Sequence[Wish] = ()
        self._estimate = Estimate(())
        self._over: list[events.EngineFacts] = []
        self._errors: list[events.ErrorFacts] = []
        self._started = False
        self._writer = LineWriter(self._step)

    # ------------------------------------------------------------ whether anybody listens

    def failed(self) -> bool:
        """Whether the lines cannot be written any more."""
        return self._writer.failed()

    def check(self) -> None:
        """Raise BrokenPipeError or `output.OutputFailed` if the lines cannot be written any more."""
        self._writer.check()

    # ------------------------------------------------------------ what happens

    def start(self, app: str | None = None, app_version: str | None = None, engines: int | None = None) -> None:
        """The first line, and a first step. A second call does nothing."""
        if self._started:
            return
        self._started = True
        start = events.Start(
            protocol=events.PROTOCOL,
            agent=__version__,
            bundle=self._bundle,
            app=app,
            app_version=app_version,
            engines=engines,
            deadline_s=self._deadline_s,
        )
        self._writer.put(events.line(start))
        self._now = self._now._replace(engines=engines)
        self._writer.put(self._step())
        self._writer.begin_beats()

    def expect(self, wishes: Sequence[Wish], costs: Sequence[float]) -> None:
        """These engines are to be provided, in this order, at these costs (see `Outlook.cost`)."""
        self._wishes = wishes
        self._estimate = Estimate(costs)
        self._now = self._now._replace(engines=len(wishes))

    def begin(self, number: int) -> None:
        """Work on wish ``number``, from 0, begins."""
        self._now = self._now._replace(number=number + 1, wish=self._wishes[number], step=_PREPARE)

    def show(self, label: str, progress: Progress) -> None:
        """A step of the work; ``label`` is for views that know no engine."""
        del label
        number = self._now.number
        assert number is not None
        self._estimate.advance(number - 1, progress.fraction, time.monotonic())
        news = progress.phase != self._now.step.phase
        self._stand(progress)
        if news:
            self._writer.put(self._step())
        else:
            self._writer.news()

    def over(self, document: dict[str, object], error: RefitAgentError | None) -> None:
        """The engine that was begun is ready or has failed: ``document`` as in the one of ``--json``."""
        number = self._now.number
        assert number is not None
        facts = events.engine_facts(document)
        self._estimate.finish(number - 1, time.monotonic(), worked=facts.hit is not True)
        self._stand(self._now.step)
        self._over.append(facts)
        if isinstance(facts.error, events.ErrorFacts):
            self._errors.append(facts.error)
        self._writer.put(
            events.line(
                events.EngineOver(
                    number=number,
                    engines=len(self._wishes),
                    percent=self._now.percent,
                    elapsed_s=self._elapsed(),
                    ok=error is None,
                    engine=facts,
                )
            )
        )

    def finish(self, exit_code: int, error: dict[str, object] | None = None, *, deadline_passed: bool = False) -> None:
        """The last line; ``error`` is what ended the command, and so kept every engine that is not over.

        Raises:
            BrokenPipeError, OutputFailed: as `check`.
        """
        self.start()
        cause = None if error is None else events.error_facts(error)
        engines = [*self._over]
        for wish in self._wishes[len(engines) :]:
            missing = cause or events.ErrorFacts(code="internal", message="It was not begun.")
            engines.append(
                events.EngineFacts(model=wish.model, profile=wish.profile, target=wish.target, error=missing)
            )
        result = events.Result(
            ok=exit_code == 0,
            exit_code=exit_code,
            percent=self._now.percent,
            elapsed_s=self._elapsed(),
            deadline_passed=deadline_passed,
            error=cause or next(iter(self._errors), None),
            engines=engines,
        )
        self._writer.put(events.line(result))
        self._writer.close()

    # ------------------------------------------------------------ how it is said

    def _stand(self, step: Progress) -> None:
        self._now = self._now._replace(step=step, percent=self._estimate.percent, remaining=self._estimate.remaining)

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def _step(self) -> bytes:
        """The present state as a line; called in the writing thread too."""
        now, wish = self._now, self._now.wish
        left = None if now.remaining is None else now.remaining.at(time.monotonic())
        return events.line(
            events.Step(
                percent=now.percent,
                eta_s=None if left is None else round(left, 1),
                elapsed_s=self._elapsed(),
                phase=now.step.phase,
                text=now.step.text,
                number=now.number,
                engines=now.engines,
                model=None if wish is None else wish.model,
                profile=None if wish is None else wish.profile,
                target=None if wish is None else wish.target,
                done=now.step.done,
                total=now.step.total,
                unit="weights" if now.step.phase == "refit" else "bytes",
            )
        )
