"""`run`: the entry point. Whatever a command does, it ends here as an exit code and one clear message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from refit_agent.cli import output, stop
from refit_agent.errors import RefitAgentError

#: What a shell reports for a program that SIGPIPE ended.
_EXIT_PIPE = 141


def run() -> NoReturn:
    """Run the command in ``sys.argv`` and exit; see `main` for the codes."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code.

    0 done, 1 an unforeseen error or a failed check, 2 usage, 3 to 8 by family of errors (`refit_agent.errors`),
    128 + signal when one stopped it, 141 when nobody reads standard output any more.
    """
    _give_missing_streams()
    try:
        with stop.listening():
            return _run(arguments)
    except BrokenPipeError:
        _let_go_of_stdout()
        return _EXIT_PIPE
    except output.OutputFailed as error:
        _let_go_of_stdout()
        output.say_error("output-failed", f"Standard output cannot be written: {error}.", "")
        return 1


def _run(arguments: Sequence[str]) -> int:
    as_json = output.wants_json(arguments)
    try:
        return _dispatch(arguments)
    except stop.Stopped as stopped:
        return output.report_stopped(stopped.signum, as_json=as_json)
    except RefitAgentError as error:
        return output.report_error(error, as_json=as_json)
    except (BrokenPipeError, output.OutputFailed):
        raise
    except Exception as error:  # noqa: BLE001 - the user gets one line and a way to report it, not a traceback
        return output.report_unforeseen(error, as_json=as_json)


def _dispatch(arguments: Sequence[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "path" and not any(a.startswith("-") for a in arguments[1:]):
        # Host apps wait for this call: without click it takes two thirds of the time.
        from refit_agent.cli.path_command import print_path

        return print_path(arguments[1], arguments[2])
    if list(arguments) == ["serve"]:
        # Without click: what is imported here stays in memory for as long as the user is logged in.
        from refit_agent.cli.start_service import start_service

        return start_service()
    from refit_agent.cli.group import invoke

    return invoke(arguments)


def _give_missing_streams() -> None:
    """A program without a console (a Windows service, an app's installer) may have started us with none."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good


def _let_go_of_stdout() -> None:
    """Keep the interpreter's own flush at exit from failing once more, and loudly."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return
