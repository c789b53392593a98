"""What a CPU engine that is made here gives on older releases of ONNX Runtime, and what loading it costs there.

    python tests/bench/bench_older_runtimes.py --models DIR --python PYTHON [--python PYTHON ...] [NAME ...]

Each PYTHON has another onnxruntime installed, and NumPy. ``DIR`` holds the sample models, NAME.onnx (resnet50, bert,
bert_fp16). A row for each release: relative L2 difference of the outputs to this one's; seconds to load as host apps do
and memory that the kernel cannot take back (MB), with all optimisations and with those that the worker's load uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from refit_agent import ensure_engine
from refit_agent.authoring import add_cpu_engine, add_model, init_bundle
from refit_agent.runtimes.onnxruntime_cpu import WEIGHT_COPYING

_LOAD = """
import json, sys, time
import numpy as np, onnxruntime as ort
path, given, out, without = sys.argv[1:5]
ort.set_default_logger_severity(4)
def private():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) / 1024
def load(disabled):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    before, start = private(), time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    return session, time.perf_counter() - start, private() - before
_, light_s, light_mb = load(without.split(","))
session, full_s, full_mb = load([])
np.save(out, session.run(None, {session.get_inputs()[0].name: np.load(given)})[0])
print(json.dumps([ort.__version__, full_s, full_mb, light_s, light_mb]))
"""


def main() -> None:
    """Make the engines here, and run them by each Python in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--python", action="append", required=True)
    parser.add_argument("names", nargs="*", default=["resnet50", "bert", "bert_fp16"])
    options = parser.parse_args()
    print(f"{'model':10} {'release':8} {'difference':>10} {'load, all':>18} {'load, worker':>18}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFIT_AGENT_HOME"] = f"{folder}/home"
        for name in options.names:
            root = Path(folder) / name
            init_bundle(root, app_id="org.example.bench", name="bench", version="1")
            add_model(root, name, options.models / f"{name}.onnx")
            add_cpu_engine(root, name)
            given = f"{folder}/{name}.npy"
            random = np.random.RandomState(1)
            image = random.standard_normal((1, 3, 224, 224)).astype(np.float32)
            np.save(given, random.randint(0, 1000, (1, 64)).astype(np.int32) if "bert" in name else image)
            with ensure_engine(root, name) as engine:
                _compare(name, engine.path, given, folder, [sys.executable, *options.python])


def _compare(name: str, path: str, given: str, folder: str, pythons: list[str]) -> None:
    first = None
    for number, python in enumerate(pythons):
        out = f"{folder}/{name}-{number}.npy"
        command = [python, "-c", _LOAD, path, given, out, ",".join(WEIGHT_COPYING)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        release, full_s, full_mb, light_s, light_mb = json.loads(done.stdout.splitlines()[-1])
        got = np.load(out).astype(np.float64)
        first = got if first is None else first
        difference = np.linalg.norm(got - first) / np.linalg.norm(first)
        loads = f"{full_s:7.2f} s {full_mb:5.0f} MB {light_s:7.2f} s {light_mb:5.0f} MB"
        print(f"{name:10} {release:8} {difference:10.1e} {loads}")


if __name__ == "__main__":
    main()
