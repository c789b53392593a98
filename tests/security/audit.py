"""Known vulnerabilities in what is installed here and in what the standalone folder ships, by pip-audit.

    python tests/security/audit.py [PIP-AUDIT'S OPTIONS]

Exit code 1 if there is one, with its number and the version that mends it; 0 otherwise, with a line that says how much
was looked up. That may be nothing: without a network, or behind an index that knows no vulnerabilities, there is nobody
to ask, and a build must not fail for that. 2 if pip-audit itself failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LOCKS = sorted((Path(__file__).parents[2] / "packaging/standalone").glob("*.lock"))
_COMMON = ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
#: What requests, urllib3 and pip-audit say of a service that cannot be reached.
_UNREACHABLE = ("connect", "timed out", "timeout", "max retries", "name resolution", "proxy", "http error")


class Report(NamedTuple):
    """What came of one run: lines to print, and the exit code."""

    code: int
    lines: tuple[str, ...]


def judge(what: str, out: str, err: str) -> Report:
    """What pip-audit's output means."""
    try:
        found: list[dict[str, Any]] = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = " ".join(err.split())[-300:]
        if any(word in err.lower() for word in _UNREACHABLE):
            return Report(0, (f"{what}: not audited, nobody to ask: {last}",))
        return Report(2, (f"{what}: pip-audit failed: {last}",))
    asked = [d for d in found if "skip_reason" not in d]
    bad = [
        f"{what}: {d['name']} {d['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version'}"
        for d in asked
        for v in d["vulns"]
    ]
    none = "" if asked else ": nothing was audited"
    return Report(1 if bad else 0, (*bad, f"{what}: {len(asked)} of {len(found)} packages looked up{none}"))


def run(what: str, options: Iterable[str]) -> Report:
    """One run of pip-audit."""
    command = [sys.executable, "-m", "pip_audit", *_COMMON, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    return judge(what, done.stdout, done.stderr)


def main(options: Sequence[str]) -> int:
    """The installed packages and every lock file; gives the exit code."""
    reports = [run("installed", ["--skip-editable", *options])]
    if not any(option.startswith("--path") for option in options):
        reports += [run(lock.name, ["-r", str(lock), "--disable-pip", "--require-hashes", *options]) for lock in LOCKS]
    for report in reports:
        print("\n".join(report.lines), flush=True)
    codes = {report.code for report in reports}
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
