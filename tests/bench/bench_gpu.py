"""Our whole cold provision against the plain refit, on a GPU machine, in one run.

    python tests/bench/bench_gpu.py --plain example_refit.py [--name bert_large_fp16] [--rounds 5]

with REFIT_AGENT_GPU_ENGINES and REFIT_AGENT_GPU_MODELS as for tests/gpu. The plain way is timed by its
own "total" (deserialise, load weights, refit, serialise, write, fsync; its start-up is not in it). Ours
is timed from the start of the process to the published path: both interpreters' start, hashing,
decompression, fsync and rename included, without golden data. The two take turns; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.process_memory import Peak, PeakMeter
from gpu import sample_bundles as samples
from refit_agent.gpu.detect import detect

_OURS = """
import json, os, sys
from refit_agent import ensure_engine
engine = ensure_engine(sys.argv[1], sys.argv[2])
assert not engine.hit
print(engine.path, flush=True)
"""


def _reference(script: str, name: str, work: Path) -> None:
    """Let the plain script write its weights and outputs, with a Python that has the onnx package."""
    own = {"PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"}  # a kit's Python sets them for itself
    env = {k: v for k, v in os.environ.items() if k not in own}
    python = os.environ.get("REFERENCE_PYTHON", sys.executable)
    subprocess.run([python, script, "reference", f"{samples.MODELS}/{name}.onnx"], cwd=work, env=env, check=True)


def plain(script: str, name: str, work: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes that the plain way reports."""
    command = [sys.executable, script, "refit", f"{samples.ENGINES}/{name}.plan", f"{samples.MODELS}/{name}.onnx"]
    run = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
    total = re.search(r"total ([\d.]+)", run.stdout)
    resident = re.search(r"peak RSS MB (\d+)", run.stdout)
    assert total and resident, run.stdout
    return float(total[1]), int(resident[1]) << 20


def ours(bundle: Path, name: str, home: Path, *, measure_memory: bool) -> tuple[float, Peak, dict[str, float]]:
    """Seconds from process start to the published path, peak memory, and the worker's phases."""
    shutil.rmtree(home / "cache", ignore_errors=True)
    env = {**os.environ, "REFIT_AGENT_HOME": str(home)}
    start = time.perf_counter()
    with open(home.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _OURS, str(bundle), name], stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
    meter = PeakMeter(process.pid) if measure_memory else None
    assert process.stdout is not None
    with process.stdout as out:
        path = out.readline().strip()
        seconds = time.perf_counter() - start
        peak = meter.stop() if meter else Peak(0, 0)
        process.wait()
    assert process.returncode == 0 and path, home.with_suffix(".log").read_text()
    entry = json.loads(Path(path).with_name("entry.json").read_text())
    return seconds, peak, entry["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", required=True, help="path of the plain refit script")
    parser.add_argument("--name", default="bert_large_fp16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    name = options.name
    gpu = detect(fresh=True).gpus[0].name
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _reference(options.plain, name, work)
        samples.link_model(work / "b", name)
        # The plan is declared as built on this GPU, so that both ways do the same work: no check run.
        engine = samples.gpu_engine(work / "b", name, gpu=gpu)
        samples.write_bundle(work / "b", name, (engine,), golden=False)
        for warm in (f"{samples.ENGINES}/{name}.plan", f"{samples.MODELS}/{name}.onnx"):
            Path(warm).read_bytes()
        ours(work / "b", name, work / "home", measure_memory=False)  # detection and .pyc files, once per machine
        times: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            theirs, resident = plain(options.plain, name, work)
            mine, _, phases = ours(work / "b", name, work / "home", measure_memory=False)
            times.append((mine, theirs))
        _, peak, _ = ours(work / "b", name, work / "home", measure_memory=True)
    mine = statistics.median(t[0] for t in times)
    theirs = statistics.median(t[1] for t in times)
    plan = engine.plan_size
    print(f"{name} on {gpu}, {options.rounds} rounds in turn, medians")
    print(
        f"  ours   {mine:6.2f} s   private {peak.private / plan:5.2f} x plan   unique {peak.unique / plan:5.2f} x plan"
    )
    print(f"  plain  {theirs:6.2f} s   resident {resident / plan:4.2f} x plan")
    pairs = statistics.median(a / b for a, b in times)
    print(
        f"  ours / plain: of the medians {mine / theirs:.3f}, median of the pairs {pairs:.3f}   (pairs: {', '.join(f'{a / b:.3f}' for a, b in times)})"
    )
    print("  phases of the last of ours:", ", ".join(f"{k} {v:.2f}" for k, v in phases.items()))


if __name__ == "__main__":
    main()
