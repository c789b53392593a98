"""`provision --progress=json` from the first line to the last, whatever happens in between."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from refit_agent import logs
from refit_agent.bundle import Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.deadline import Deadline
from refit_agent.cli.progress_json import ProgressLines
from refit_agent.cli.provision_run import Options, outlook_of, provide_all
from refit_agent.cli.wishes import Wish
from refit_agent.errors import RefitAgentError


class CommandInLines(click.Command):
    """A command whose errors of usage are lines as well, where lines were asked for."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does it; the arguments are looked at as they stand, since they may be wrong."""
        in_lines = _wants_lines(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if in_lines:
                _report_usage(error, ProgressLines(None, None))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """As click does it."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if ctx.params.get("progress") == "json":
                _report_usage(error, ProgressLines(None, None))
            raise


def _wants_lines(arguments: Sequence[str]) -> bool:
    """Whether ``--progress=json`` was given, in either spelling."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    given = [*arguments[:end]]
    return "--progress=json" in given or ("--progress", "json") in itertools.pairwise(given)


def _report_usage(error: click.UsageError, lines: ProgressLines) -> NoReturn:
    """Say it in lines, and to people, and leave with its code."""
    _end(lines, error.exit_code, _facts("usage", error.format_message()))
    error.show()
    raise click.exceptions.Exit(error.exit_code)


class _Halt:
    """A signal, a reader who has gone away, or the deadline."""

    def __init__(self, deadline: Deadline, lines: ProgressLines) -> None:
        self._deadline = deadline
        self._lines = lines

    def requested(self) -> bool:
        """Whether any of them says so."""
        return self._lines.failed() or self._deadline.requested()

    def check(self) -> None:
        """Raise what says why."""
        stop.check()
        self._lines.check()
        self._deadline.check()


def provision_in_lines(
    bundle: str,
    opened: Callable[[], tuple[Bundle, Options]],
    wanted: Callable[[Bundle], Sequence[Wish]],
    deadline: Deadline,
    *,
    count_at_once: bool,
) -> int:
    """Provide what ``wanted`` says of the bundle that ``opened`` opens; gives the exit code.

    ``count_at_once`` says that ``wanted`` takes no time, so that the first line can tell how many engines there are.
    What ends the command early is told in the last line, and raised.
    """
    lines = ProgressLines(os.path.abspath(bundle), deadline.seconds)
    try:
        found, options = opened()
        app = found.manifest.app
        known = wanted(found) if count_at_once else None
        lines.start(app.id, app.version, None if known is None else len(known))
        logs.set_up()
        wishes = wanted(found) if known is None else known
        outlook = outlook_of(found, options, deadline)
        lines.expect(wishes, [outlook.cost(wish) for wish in wishes])
        outcome = provide_all(found, wishes, options, deadline, lines, lines, _Halt(deadline, lines))
    except stop.Stopped as stopped:
        words = "Stopped. Nothing half-done was left behind."
        _end(lines, 128 + stopped.signum, _facts("stopped", words, signal=signal.Signals(stopped.signum).name))
        raise
    except click.UsageError as error:
        _report_usage(error, lines)
    except (BrokenPipeError, output.OutputFailed):
        raise
    except RefitAgentError as error:
        _end(lines, error.exit_code, output.describe(error))
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        _end(lines, 1, _facts("internal", words, "This is a fault in refit-agent: please report it."))
        raise
    _end(lines, outcome.code, deadline_passed=outcome.deadline_passed)
    return outcome.code


def _end(
    lines: ProgressLines, exit_code: int, error: dict[str, object] | None = None, *, deadline_passed: bool = False
) -> None:
    # A signal now would end the process with another code than the last line has.
    with stop.patiently():
        lines.finish(exit_code, error, deadline_passed=deadline_passed)


def _facts(code: str, message: str, hint: str = "", **facts: str) -> dict[str, object]:
    """As `output.describe`, for what is no error of ours."""
    return {"code": code, "message": message, "hint": hint, "facts": facts}
