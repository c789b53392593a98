"""``python -m tests.fuzz``; see the package."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

# Before the first import of ONNX Runtime, which would report to its maker, and leave an identifier in the developer's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from . import corpus, harness, limits, nightly


def main() -> int:
    """0 if nothing broke, 1 if something did, 2 if it could not be tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers of hostile input.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seconds", type=int, help="fuzz each harness for that long (needs atheris)")
    what.add_argument("--replay", action="store_true", help="try the corpus once")
    what.add_argument("--seeds", action="store_true", help="write the generated part of the corpus anew")
    parser.add_argument("--keep", type=Path, help="with --seconds: a folder for inputs that reached something new")
    parser.add_argument("names", nargs="*", metavar="HARNESS", help=f"of {', '.join(harness.NAMES)} (default: all)")
    given = parser.parse_args()
    strangers = set(given.names) - set(harness.NAMES)
    if strangers:
        parser.error(f"there is no harness {', '.join(sorted(strangers))}")
    names = given.names or harness.NAMES
    if given.seeds:
        from . import seeds

        return seeds.write(names)
    if given.replay:
        return _replay(names)
    if importlib.util.find_spec("atheris") is None:
        print(
            "atheris is not installed here: pip install 'atheris>=3' (Linux on x86_64, Python 3.11 to 3.13), or the "
            "extra 'fuzz'.\nWithout it, python -m tests.fuzz --replay tries what is in the corpus.",
            file=sys.stderr,
        )
        return 2
    good = nightly.report((nightly.fuzz(name, given.seconds, given.keep) for name in names), given.seconds)
    return 0 if good else 1


def _replay(names: list[str]) -> int:
    broken = 0
    checks = {name: harness.load(name).check for name in names}
    limits.limit_memory()
    for name, check in checks.items():
        outcome = corpus.replay(check, corpus.inputs(name))
        print(f"{name:20} {outcome.inputs:4} inputs, {outcome.sound:4} sound, {outcome.seconds:6.2f} s", flush=True)
        for path, error in outcome.broken.items():
            broken += 1
            print(f"    {path}: {type(error).__name__}: {error}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
