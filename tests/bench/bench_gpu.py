"""Our whole cold provision against the plain refit, on a GPU machine, in one run.

    python tests/bench/bench_gpu.py [--name bert_large_fp16] [--rounds 5]

with REFIT_AGENT_GPU_ENGINES and REFIT_AGENT_GPU_MODELS as for tests/gpu. The plain way is `plain_refit.py`, whose Python
needs the onnx package. It is timed twice: from the start of its process to its end, as ours, and by its own clock
(deserialise, load weights, refit, serialise, write, fsync; neither interpreter nor imports). Ours is timed from the
start of the process to the published path: both interpreters' start, hashing, decompression, fsync and rename included,
without golden data. The two take turns; medians are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.process_memory import Peak, PeakMeter, peak_of
from gpu import sample_bundles as samples
from refit_agent.gpu.detect import detect

_OURS = """
import json, os, sys
from refit_agent import ensure_engine
engine = ensure_engine(sys.argv[1], sys.argv[2])
assert not engine.hit
print(engine.path, flush=True)
"""


_PLAIN_SCRIPT = Path(__file__).with_name("plain_refit.py")


class Found(NamedTuple):
    """Medians in seconds, peaks of one more run each, and the seconds of our worker's phases in the last round."""

    ours_s: float
    plain_s: float
    plain_whole_s: float
    pairs: list[float]
    ours_peak: Peak
    plain_peak: Peak
    plan_size: int
    phases: dict[str, float]


def plain(name: str, work: Path) -> tuple[float, float]:
    """Seconds by the plain way's own clock, and of its whole process."""
    start = time.perf_counter()
    answer = subprocess.run(_plain_command(name, work), cwd=work, stdout=subprocess.PIPE, text=True, check=True).stdout
    whole = time.perf_counter() - start
    return float(json.loads(answer.splitlines()[-1])["total"]), whole


def _plain_command(name: str, work: Path) -> list[str]:
    model, plan = f"{samples.MODELS}/{name}.onnx", f"{samples.ENGINES}/{name}.plan"
    return [sys.executable, str(_PLAIN_SCRIPT), "tensorrt", model, plan, str(work / "plain.plan")]


def ours(bundle: Path, name: str, home: Path, *, measure_memory: bool) -> tuple[float, Peak, dict[str, float]]:
    """Seconds from process start to the published path, peak memory, and the worker's phases."""
    shutil.rmtree(home / "cache", ignore_errors=True)
    env = {**os.environ, "REFIT_AGENT_HOME": str(home)}
    start = time.perf_counter()
    with open(home.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _OURS, str(bundle), name], stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
    assert process.stdout is not None
    with process.stdout as out, PeakMeter(process.pid) if measure_memory else contextlib.nullcontext() as meter:
        path = out.readline().strip()
        seconds = time.perf_counter() - start
        peak = meter.stop() if meter else Peak(0, 0)
        process.wait()
    assert process.returncode == 0 and path, home.with_suffix(".log").read_text()
    entry = json.loads(Path(path).with_name("entry.json").read_text())
    return seconds, peak, entry["seconds"]


def compare(name: str, work: Path, rounds: int) -> Found:
    """Both ways of making the sample engine, in turn."""
    gpu = detect(fresh=True).gpus[0].name
    samples.link_model(work / "b", name)
    # The plan is declared as built on this GPU, so that both ways do the same work: no check run.
    engine = samples.gpu_engine(work / "b", name, gpu=gpu)
    samples.write_bundle(work / "b", name, (engine,), golden=False)
    for warm in (f"{samples.ENGINES}/{name}.plan", f"{samples.MODELS}/{name}.onnx"):
        Path(warm).read_bytes()
    ours(work / "b", name, work / "home", measure_memory=False)  # detection and .pyc files, once per machine
    plain(name, work)
    times: list[tuple[float, float, float]] = []
    phases: dict[str, float] = {}
    for _ in range(rounds):
        theirs, whole = plain(name, work)
        mine, _, phases = ours(work / "b", name, work / "home", measure_memory=False)
        times.append((mine, theirs, whole))
    _, peak, _ = ours(work / "b", name, work / "home", measure_memory=True)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return Found(
        ours_s=medians[0],
        plain_s=medians[1],
        plain_whole_s=medians[2],
        pairs=[a / b for a, b, _ in times],
        ours_peak=peak,
        plain_peak=peak_of(_plain_command(name, work)),
        plan_size=engine.plan_size,
        phases=phases,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="bert_large_fp16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(options.name, Path(folder), options.rounds)
    plan = found.plan_size
    print(f"{options.name} on {detect().gpus[0].name}, {options.rounds} rounds in turn, medians")
    for way, seconds, peak in (("ours", found.ours_s, found.ours_peak), ("plain", found.plain_s, found.plain_peak)):
        memory = f"private {peak.private / plan:5.2f} x plan   unique {peak.unique / plan:5.2f} x plan"
        print(f"  {way:6} {seconds:6.2f} s   {memory}")
    print(f"  plain, with the start of its process {found.plain_whole_s:6.2f} s")
    print(
        f"  ours / plain: of the medians {found.ours_s / found.plain_s:.3f}, median of the pairs "
        f"{statistics.median(found.pairs):.3f}   (pairs: {', '.join(f'{pair:.3f}' for pair in found.pairs)})"
    )
    print("  phases of the last of ours:", ", ".join(f"{k} {v:.2f}" for k, v in found.phases.items()))


if __name__ == "__main__":
    main()
