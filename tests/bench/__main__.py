"""All benchmarks in one table: ``python -m tests.bench`` in the repository's root.

    python -m tests.bench                        five minutes on two idle cores, 5 GB of disk, 12 GB of memory (less leaves rows out)
    python -m tests.bench --quick                half a minute, small sizes
    python -m tests.bench --only hit             that part alone; several times for several
    python -m tests.bench --json new.json        the numbers, with what they depend on
    python -m tests.bench --compare old.json     every number divided by that of another run
    python -m tests.bench --svg curves.svg       the scaling curves
    python -m tests.bench --from old.json        take the numbers from there and measure nothing
    python -m tests.bench soak --minutes 60      the service under load: does it keep its memory?

Needs the extra ``bench``; what is missing is left out with a reason. On a GPU machine with REFIT_AGENT_GPU_ENGINES and
REFIT_AGENT_GPU_MODELS as for tests/gpu there are rows of TensorRT too. The exit code is 1 if a bound is missed, 2 for a
file that cannot be used, 130 after Ctrl+C.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if sys.platform.startswith("linux"):
    # Libraries start threads when they are imported, which would take the signal from the one that waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

from bench import part_clients, part_hit, part_index, part_provision, part_tensorrt, table
from bench.comparison import comparison
from bench.curves import draw
from bench.machine_facts import machine_facts, sentence
from bench.measured import FORMAT, Findings, Run, encode
from bench.result_files import Unusable, read_run, require_writable
from bench.soak import report, soak
from bench.stopping import stoppable
from bench.timing import own_home

_PARTS = {part.PART: part for part in (part_index, part_provision, part_hit, part_clients, part_tensorrt)}


def main(arguments: list[str]) -> int:
    """Run it; 0 if every bound was kept, 1 if not, 2 for a file that cannot be used, 130 after Ctrl+C."""
    options = _parser().parse_args(arguments)
    try:
        for option, place in (("--json", options.json), ("--svg", options.svg)):
            if place:
                require_writable(option, place)
        source = read_run("--from", options.source) if options.source else None
        old = read_run("--compare", options.compare) if options.compare else None
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with stoppable():
            return _soak(options) if options.what == "soak" else _all(options, source, old)
    except KeyboardInterrupt:
        print("Stopped. Nothing is left behind.", file=sys.stderr)
        return 130


def _all(options: argparse.Namespace, source: Run | None, old: Run | None) -> int:
    begun = time.monotonic()
    run = source or measure(options.only, quick=options.quick)
    if source:
        print("\n".join([sentence(run.facts), "", table.head(), *map(table.lines, run.rows)]))
    print(table.closing(run.rows, run.bounds, run.left))
    if doubt := table.doubt(run):
        print(f"\n{doubt}")
    if options.json:
        options.json.write_bytes(encode(run))
    if options.svg:
        options.svg.write_text(draw(run))
    if old:
        print("\n" + comparison(old, run))
    if not source:
        print(f"\n{time.monotonic() - begun:.0f} s")
    return 0 if all(bound.kept for bound in run.bounds) else 1


def measure(only: list[str], *, quick: bool) -> Run:
    """All parts or some, each in a home and a folder of its own; prints rows as they come."""
    # A short path: there is a socket below it.
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        own_home(folder)
        facts = machine_facts(folder)
        print("\n".join([sentence(facts), "", table.head()]), flush=True)
        findings = Findings(lambda row: print(table.lines(row), flush=True))
        for name, part in _PARTS.items():
            if only and name not in only:
                continue
            work = folder / name
            work.mkdir()
            own_home(work)
            part.measure(findings, work, quick=quick)
    return Run(
        format=FORMAT,
        quick=quick,
        facts=facts,
        rows=tuple(findings.rows),
        bounds=tuple(findings.bounds),
        left=tuple(findings.left),
    )


def _soak(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        own_home(Path(temporary))
        found = soak(Path(temporary), options.minutes)
    print(report(found, options.minutes))
    if options.json:
        options.json.write_bytes(found.encoded())
    return 0 if found.kept else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["all", "soak"], default="all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", default=[], choices=list(_PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=60.0, help="of soak")
    return parser


if __name__ == "__main__":
    if not sys.platform.startswith("linux"):
        sys.exit("memory is read from /proc: the benchmarks run on Linux alone")
    sys.exit(main(sys.argv[1:]))
