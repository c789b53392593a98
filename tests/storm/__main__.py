"""``python -m tests.storm``; see the package."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the bundles that all tests use
# They import ONNX Runtime, which would report to its maker, and leave an identifier in the developer's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def main() -> int:
    """0 if everything held, 1 if not, 2 if it could not be tried."""
    if sys.platform != "linux":
        print("the storm needs Linux: it has the kernel tell what is published", file=sys.stderr)
        return 2
    from . import breakage, conductor, ground, judge

    parser = argparse.ArgumentParser(prog="python -m tests.storm", description="Many processes on one cache.")
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--engines", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120.0, help="from the first request on")
    parser.add_argument("--kills", type=float, default=4.0, help="a second, of callers and of workers; 0 for none")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds without an answer that count as stuck")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--break", dest="broken", choices=sorted(breakage.KINDS), help="break this on purpose")
    parser.add_argument("--json", action="store_true", help="one document")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("REFIT_AGENT_")]:
        del os.environ[name]
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="refit-agent-storm-") as folder:
        place = ground.prepare(Path(folder), given.engines)
        if given.broken:
            breakage.KINDS[given.broken]()
        plan = conductor.Plan(given.processes, given.seconds, given.kills, given.patience, given.seed)
        report = judge.judge(place, conductor.run(place, plan))
    document = {"seed": given.seed, "processes": given.processes, "engines": given.engines, **report.numbers}
    if given.json:
        print(json.dumps(document | {"violations": report.violations}))
    else:
        for name, value in document.items():
            print(f"{name:>22}  {value}")
        for line in report.violations[:50]:
            print("VIOLATION", line)
        print(f"{len(report.violations)} violations", flush=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
