"""Programs that the build runs, and the one error it ends with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """The folder cannot be made; the message says why."""


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and give its standard output. Raises BuildError with what it printed if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            cwd=cwd,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        shown = " ".join(str(word) for word in command)
        raise BuildError(f"{shown}\nended with {done.returncode}:\n{done.stdout[-20000:]}{done.stderr[-20000:]}")
    return done.stdout


def pip(*words: str | Path, environment: Mapping[str, str] | None = None) -> None:
    """Run the pip of the Python that runs the build."""
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words], environment)
