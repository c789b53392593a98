"""The whole crash matrix: ``python -m tests.faults`` in the repository's root.

    --scene NAME   that scene alone, several times for several
    --step NAME    that step alone
    --deed NAME    that fault alone ("kill", "full", "errno:5", ...)
    --json FILE    every case, for comparison

Ten minutes on two cores. Prints every violation as it is found, then a table of steps and faults; any violation makes
the exit code 1, and so does a step that no fault has hit. REFIT_AGENT_FULL_MATRIX=1 has pytest do the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
# The bundles import ONNX Runtime, which would report to its maker, and leave an identifier in the developer's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .layer import build
from .matrix import Matrix, Result
from .scenes import make_scenes, weights_server
from .table import problems, table


def main() -> int:
    """Run it; 0 if nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The crash matrix.")
    parser.add_argument("--scene", action="append", default=[])
    parser.add_argument("--step", action="append", default=[])
    parser.add_argument("--deed", action="append", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    begun = time.monotonic()
    # A short path: there is a socket below it.
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = Path(temporary)
        matrix = Matrix(build(folder), folder)
        with weights_server(folder / "served") as url:
            scenes = make_scenes(folder / "scenes", url, folder / "served")
            points = list(matrix.points([s for s in scenes if s.name in (options.scene or [s.name])]))
            points = [p for p in points if p.step in (options.step or [p.step])]
            points = [p for p in points if p.fault.deed in (options.deed or [p.fault.deed])]
            print(f"{len(points)} faults in {len(scenes)} scenes", flush=True)
            results = matrix.run_all(points, _Teller(len(points)))
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([_record(r) for r in results], indent=1))
    whole = not (options.scene or options.step or options.deed)
    wrong = problems(results, whole=whole)
    print("\n".join(wrong) if wrong else "Nothing was lost, corrupt, partial or left behind.")
    print(f"{time.monotonic() - begun:.0f} s")
    return 1 if wrong else 0


class _Teller:
    """Says what is violated at once, and now and then how far it is."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lock = total, 0, threading.Lock()

    def __call__(self, result: Result) -> None:
        with self._lock:
            self._done += 1
            if result.violations:
                print(f"VIOLATED {result.point.words} -> {result.outcome.how} {result.outcome.code}", flush=True)
                for violation in result.violations:
                    print(f"    {violation}", flush=True)
            if self._done % 100 == 0:
                print(f"{self._done} of {self._total}", flush=True)


def _record(result: Result) -> dict[str, object]:
    point = result.point
    return {
        "scene": point.scene.name,
        "step": point.step,
        "fault": point.fault.words,
        "fired": result.fired,
        "outcome": f"{result.outcome.how} {result.outcome.code}".strip(),
        "violations": result.violations,
    }


if __name__ == "__main__":
    sys.exit(main())
