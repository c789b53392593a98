"""`refit-agent doctor`: one screen with everything that support asks for."""

from __future__ import annotations

import click

from refit_agent.cli import output
from refit_agent.cli.doctor_checks import Check, all_checks
from refit_agent.cli.group import json_option

#: Plain text: the screen is meant to be sent to somebody, and must not need a library that may be broken.
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command(short_help="Check this installation; the output is what support wants.")
@json_option
def doctor(as_json: bool) -> int:
    """Check versions, folders, GPUs, runtimes, cache, settings and service, and say what to do about each fault. The
    exit code is 1 if a check fails; warnings do not count, and a service is not needed.

    \b
    Example:
      refit-agent doctor > doctor.txt
    """
    checks = all_checks()
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    if as_json:
        output.emit_json({"ok": not failed, "checks": [_document(check) for check in checks]})
    else:
        for check in checks:
            output.emit(f"{_MARKS[check.status]} {check.name}: {check.summary}")
            for line in check.lines:
                output.emit(f"       {line}")
            if check.advice:
                output.emit(f"       -> {check.advice}")
        output.emit(
            f"{output.count_text(len(checks), 'check')}: {failed} failed, {output.count_text(warned, 'warning')}"
        )
    return 1 if failed else 0


def _document(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "status": check.status,
        "summary": check.summary,
        "lines": list(check.lines),
        "facts": check.facts,
        "advice": check.advice,
    }
