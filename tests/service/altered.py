"""A real service with other constants, so that no test waits as long as a user would; a runtime that tells its progress."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from bundles import REAL, shim

from .running import Running, until


class Altered(Running):
    """A service that first runs ``changes``, such as ``"from refit_service import jobs; jobs._FINISH_S = 0.5"``."""

    def __init__(self, home: Path, changes: str, **options: Any) -> None:
        super().__init__(home, **options)
        self._changes = changes

    def start(self, wait: bool = True, **options: Any) -> Altered:
        code = f"import sys\n{self._changes}\nfrom refit_agent.cli.main import main\nsys.exit(main(['serve']))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=self.env,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )
        until(self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.process.stdout.read()
        try:
            return self.ask("GET", "/v1/health").status == 200
        except OSError:
            return False


_TELL = """
open(os.path.join(HERE, "count"), "a").write("x")
from refit_agent.refit.messages import Phase, encoder
_frame = sys._getframe()
while _frame.f_code.co_name != "_perform":
    _frame = _frame.f_back
def tell(phase, done=0, total=0):
    os.write(_frame.f_locals["out"], encoder.encode(Phase(phase=phase, done=done, total=total)) + b"\\n")
def wait(each=lambda: time.sleep(0.02)):
    ends = time.monotonic() + 60
    while not os.path.exists(os.path.join(HERE, "go")) and time.monotonic() < ends:
        each()
"""


def talking_runtime(folder: Path, code: str) -> Path:
    """A runtime that counts its imports in "count", then runs ``code``, which may ``tell("refit", 1, 2)`` and
    ``wait()`` until the file "go" is in the folder; then it does its work."""
    return shim(folder, _TELL + textwrap.dedent(code) + "\n" + REAL)
