#!/usr/bin/env python3
"""Make the standalone folder: the agent, the service, an embedded Python and the lean runtime.

    python3 packaging/standalone/build.py

writes to dist/ the folder refit-agent-<version>-linux-x86_64, the folder of the optional part ONNX Runtime, and both as
.tar.xz. Needs CPython 3.10 or later with pip, a network, and `strip` from binutils. The Python that runs this is the one
that gets into the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from standalone import layout
from standalone.assemble import assemble
from standalone.commands import BuildError
from standalone.pack import differences, pack, publish
from standalone.sizes import check_bounds, measure, table


def main() -> int:
    """Build; gives the exit code."""
    options = _options()
    try:
        return _check_reproducible(options) if options.check_reproducible else _build(options)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the standalone folder of refit-agent, in dist/.")
    parser.add_argument(
        "--dist", type=Path, default=layout.REPOSITORY / "dist", help="where to put the result (default: dist/)"
    )
    parser.add_argument(
        "--cuda",
        choices=layout.CUDA_MAJORS,
        default=layout.CUDA_MAJORS[0],
        help="13 for NVIDIA drivers from 580 on (default), 12 from 525 on",
    )
    parser.add_argument(
        "--no-archives",
        action="store_true",
        help="the folders alone, without .tar.xz; the bound on the compressed size is then not checked",
    )
    parser.add_argument(
        "--keep-symbols",
        action="store_true",
        help="do without `strip`; the folder gets larger, maybe beyond its bounds",
    )
    parser.add_argument("--no-bounds", action="store_true", help="say what is too large, but do not fail for it")
    parser.add_argument(
        "--check-reproducible",
        action="store_true",
        help="build the folders twice, in different places, and compare; writes nothing to dist/",
    )
    return parser.parse_args()


def _build(options: argparse.Namespace) -> int:
    options.dist.mkdir(parents=True, exist_ok=True)
    # Beside the result: a rename must not cross file systems, and /tmp may be small.
    with tempfile.TemporaryDirectory(prefix=".standalone-", dir=options.dist) as work:
        made = assemble(Path(work), cuda=options.cuda, keep_symbols=options.keep_symbols)
        archives = [] if options.no_archives else [pack(folder) for folder in made.folders]
        sizes = measure(made, archives)
        print(table(sizes))
        problems = check_bounds(sizes, options.cuda)
        for problem in problems:
            print(f"{'note' if options.no_bounds else 'error'}: {problem}", file=sys.stderr)
        if problems and not options.no_bounds:
            return 1
        for path in publish([*made.folders, *archives], options.dist):
            print(os.path.relpath(path))
    return 0


def _check_reproducible(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="one-") as one, tempfile.TemporaryDirectory(prefix="another-place-") as two:
        first, second = (
            assemble(Path(place), cuda=options.cuda, keep_symbols=options.keep_symbols) for place in (one, two)
        )
        found = [d for a, b in zip(first.folders, second.folders, strict=True) for d in differences(a, b)]
    for difference in found:
        print(f"error: {difference}", file=sys.stderr)
    print("the two builds differ" if found else "the two builds are the same, byte for byte")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
