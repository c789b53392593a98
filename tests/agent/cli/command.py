"""The real command in a real process, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its one JSON document."""
        return json.loads(self.out)


class Cli:
    """Runs ``refit-agent`` below one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / "cache"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT_", "CUDA_"))}
        self.env["REFIT_AGENT_HOME"] = str(home)

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "refit_agent", *map(str, arguments)]

    def __call__(self, *arguments: str | Path, **env: str) -> Ran:
        done = subprocess.run(
            self.command(*arguments), env=self.env | env, cwd="/", capture_output=True, text=True, timeout=60
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(self.command(*arguments), env=self.env, cwd="/", text=True, **pipes)

    def leftovers(self) -> list[str]:
        """Temporary files and folders in the cache."""
        return sorted(p.name for p in (self.cache / "tmp").glob("*"))
