"""Hits, start-up, and the memory of a CPU provisioning, each beside what it is compared with.

    python tests/bench/bench_provision.py [--models DIR] [--make make_models.py] [--rounds N]

``--models`` holds bert_large_fp16.onnx (made by ``--make`` if it is missing); without it that row is left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.process_memory import PeakMeter
from refit_agent.authoring.cpu_plan import make_cpu_plan
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.manifest import App, Engine, Golden, Manifest, Model

_BASELINE = "import msgspec, filelock, platformdirs"
_HIT = "import sys; from refit_agent import ensure_engine; assert ensure_engine(sys.argv[1], sys.argv[2]).hit"
_MAKE = "import sys; from refit_agent import ensure_engine; assert not ensure_engine(sys.argv[1], sys.argv[2]).hit"


def _process_s(code: str, *args: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *args], check=True)
    return time.perf_counter() - start


def bench_hit(bundle: str, model: str, rounds: int) -> None:
    """A hit in a warm process, and in a new one against the bare imports, in turn."""
    from refit_agent import ensure_engine

    ensure_engine(bundle, model).close()
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        ensure_engine(bundle, model).close()
        times.append(time.perf_counter() - start)
    times.sort()
    print(f"hit, warm process         median {times[1000] * 1e3:.3f} ms   99th percentile {times[1980] * 1e3:.3f} ms")
    pairs = [(_process_s(_HIT, bundle, model), _process_s(_BASELINE)) for _ in range(rounds)]
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"hit, new process          {ours * 1e3:.1f} ms, against '{_BASELINE}' {bare * 1e3:.1f} ms: ratio {ratio:.2f}"
    )


def _golden(root: Path, source: Path) -> Golden:
    import numpy as np

    from refit_agent.runtimes.importing import import_onnxruntime

    ids = np.random.RandomState(0).randint(0, 8000, (2, 64)).astype(np.int32)
    session = import_onnxruntime().InferenceSession(str(source), providers=["CPUExecutionProvider"])
    np.save(root / "ids.npy", ids)
    np.save(root / "h.npy", session.run(["h"], {"ids": ids})[0])
    files = {name: file_ref(str(root), f"{name}.npy") for name in ("ids", "h")}
    return Golden(inputs={"ids": files["ids"]}, outputs={"h": files["h"]}, tolerance=5e-3)


def write_cpu_bundle(root: Path, source: Path) -> None:
    """A bundle of the model at ``source`` as "bert", with a CPU target and golden data."""
    root.mkdir()
    try:
        os.link(source, root / source.name)
    except OSError:
        shutil.copyfile(source, root / source.name)
    make_cpu_plan(str(root / source.name), str(root / "plan.onnx"))
    ref = file_ref(str(root), "plan.onnx")
    engine = Engine(
        path=ref.path, size=ref.size, sha256=ref.sha256, plan_size=ref.size, runtime="onnxruntime", built_with="1.0"
    )
    model = Model(
        name="bert", onnx=file_ref(str(root), source.name), engines=(engine,), golden=(_golden(root, source),)
    )
    app = App(id="org.example.bench", name="bench", version="1")
    write_manifest(str(root), Manifest(schema=1, app=app, models=(model,)))


def bench_memory(models: Path, make: str | None, work: Path) -> None:
    """Peak private memory of the process tree that provisions bert_large on the CPU target, check run included."""
    source = models / "bert_large_fp16.onnx"
    if not source.exists() and make:
        subprocess.run([sys.executable, make, str(models), "bert_large_fp16"], check=True)
    root = work / "bert"
    write_cpu_bundle(root, source)
    size = source.stat().st_size
    for smoke in (False, True):
        shutil.rmtree(Path(os.environ["REFIT_AGENT_HOME"]) / "cache", ignore_errors=True)
        process = subprocess.Popen([sys.executable, "-c", _MAKE, str(root), "bert"], stdout=subprocess.DEVNULL)
        start = time.perf_counter()
        with PeakMeter(process.pid) as meter:
            assert process.wait() == 0
            seconds, peak = time.perf_counter() - start, meter.stop()
        if not smoke:
            continue  # the first run warms the page cache
        print(
            f"provision bert_large, CPU {seconds:.2f} s   private {peak.private / size:.2f} x, "
            f"unique {peak.unique / size:.2f} x of the {size / 1e6:.0f} MB ONNX file"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--make")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["REFIT_AGENT_HOME"] = str(work / "home")
        bundle = str(work / "demo")
        model = write_demo_bundle(bundle).models[0].name
        subprocess.run([sys.executable, "-c", _MAKE, bundle, model], check=True, stdout=subprocess.DEVNULL)
        bench_hit(bundle, model, options.rounds)
        if options.models:
            bench_memory(options.models, options.make, work)


if __name__ == "__main__":
    main()
