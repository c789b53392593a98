"""The files that the command line names, tried before anything is measured: minutes later is too late to say it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bench.machine_facts import sentence
from bench.measured import Run, decode


class Unusable(Exception):  # noqa: N818 - a finding
    """A file cannot be used; the message is one line that names the option, the file and why."""


def read_run(option: str, path: Path) -> Run:
    """The run in a result file. Raises Unusable."""
    try:
        run = decode(path.read_bytes())
        # Its head and the comparison take facts from a table without types.
        sentence(run.facts)
    except OSError as error:
        raise Unusable(f"{option} {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise Unusable(f"{option} {path}: no result file of a benchmark ({reason})") from error
    return run


def require_writable(option: str, path: Path) -> None:
    """Raise Unusable if the file could not be written at the end. What is in it stays; none is left where none was."""
    real = Path(os.path.realpath(path))  # of a link to nowhere, what is made and removed is not the link
    try:
        kind = real.stat().st_mode if real.exists() else None
        if kind is not None and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            return  # to open a pipe is to wait for its reader
        os.close(os.open(real, os.O_WRONLY | os.O_CREAT, 0o666))
        if kind is None:
            real.unlink()
    except OSError as error:
        raise Unusable(f"{option} {path}: {error.strerror}") from error
