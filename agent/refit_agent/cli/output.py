"""What every command writes: text or one JSON document on standard output, errors, sizes and ages in words.

Light: part of the fast lane of `refit-agent path`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from refit_agent.errors import RefitAgentError
from refit_agent.errors.base import size_text as size_text  # one of the words below

DEBUG_VARIABLE = "REFIT_AGENT_DEBUG"
_REPORT = f"This is a fault in refit-agent: please report it, with {DEBUG_VARIABLE}=1 set and the output of 'refit-agent doctor'."


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` was given; asked of the raw arguments, since they may be wrong."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


class OutputFailed(Exception):  # noqa: N818 - named as in `refit_agent.errors`
    """Standard output cannot be written, for instance because the disk is full; the message says why."""


def write(data: bytes | str) -> None:
    """Write to standard output at once.

    Raises:
        BrokenPipeError: nobody reads it any more.
        OutputFailed: any other fault.
    """
    try:
        if isinstance(data, str):
            sys.stdout.write(data)
            sys.stdout.flush()
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


def emit(text: str = "") -> None:
    """One line of text on standard output, safe for a terminal whatever a bundle put into it."""
    write(printable(text) + "\n")


def emit_json(document: Mapping[str, object]) -> None:
    """The one document of a command with ``--json``."""
    import json

    # Escaped to ASCII: it can be written in every locale, and file names that are no text do not stop it.
    write(json.dumps(document, indent=2) + "\n")


def printable(text: str) -> str:
    """``text`` with control and invisible characters escaped: names come from bundles that nobody vetted."""
    if text.isprintable() and text.isascii():
        return text
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    safe = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)


# ---------------------------------------------------------------- errors


def describe(error: RefitAgentError) -> dict[str, object]:
    """The error as it stands in a JSON document."""
    facts = {k: v if isinstance(v, (str, int, float, bool, type(None))) else str(v) for k, v in error.facts.items()}
    return {"code": error.code, "message": str(error), "hint": error.hint, "facts": facts}


def say_error(code: str, message: str, hint: str) -> None:
    """An error for people, on standard error."""
    lines = [f"error [{code}]: {message}"]
    if hint:
        lines.append(f"  hint: {hint}")
    print(printable("\n".join(lines)), file=sys.stderr, flush=True)


def report_error(error: RefitAgentError, *, as_json: bool) -> int:
    """Report an error that ended the command; gives the exit code."""
    if as_json:
        emit_json({"error": describe(error)})
    else:
        say_error(error.code, str(error), error.hint)
    _traceback_if_wanted(error)
    return error.exit_code


def report_plain(code: str, message: str, hint: str, exit_code: int, *, as_json: bool) -> int:
    """Like `report_error`, for what is no RefitAgentError."""
    if as_json:
        emit_json({"error": {"code": code, "message": message, "hint": hint, "facts": {}}})
    else:
        say_error(code, message, hint)
    return exit_code


def report_unforeseen(error: Exception, *, as_json: bool) -> int:
    """Report an error that nobody foresaw; the traceback only for those who asked for it."""
    _traceback_if_wanted(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return report_plain("internal", message, _REPORT, 1, as_json=as_json)


def report_stopped(signum: int, *, as_json: bool) -> int:
    """Say that a signal ended the command."""
    message = "Stopped. Nothing half-done was left behind."
    if as_json:
        facts = {"signal": signal.Signals(signum).name}
        emit_json({"error": {"code": "stopped", "message": message, "hint": "", "facts": facts}})
    else:
        print(message, file=sys.stderr, flush=True)
    return 128 + signum


def _traceback_if_wanted(error: Exception) -> None:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)


# ---------------------------------------------------------------- words


def count_text(count: int, noun: str) -> str:
    """A number of things: "1 engine", "2 engines"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def seconds_text(seconds: float) -> str:
    """A duration for people: "0.42 ms", "1.2 s"."""
    if seconds < 0.1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def age_text(seconds: float) -> str:
    """How long ago, for people: "just now", "5 min ago", "3 days ago"."""
    for limit, unit, word in ((60.0, 0.0, ""), (5400.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {word} ago" if unit else "just now"
    return f"{seconds / 86400:.0f} days ago"
