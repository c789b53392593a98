"""Time and memory of opening an ONNX file: OnnxWeights beside onnx.load.

    python tests/bench/bench_weights.py MODELS_DIR [--make make_models.py] [--rounds N]

Prints medians; asserts nothing. "open + keys" is the constructor, ``len()`` and all keys; "all refs"
adds every WeightRef, "graph" the full node list. Memory is what opening and listing add to a fresh process for each
model: pages that the kernel cannot take back.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.models import holes, make_external
from bench.process_memory import growth

MODELS = ("tiny", "resnet50", "bert", "bert_fp16", "bert_large_fp16")


def median_ms(action: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def open_and_list(path: str) -> list[str]:
    from refit_agent.weights import OnnxWeights

    with OnnxWeights(path) as weights:
        assert len(weights)
        return list(weights)


def all_refs(path: str) -> int:
    from refit_agent.weights import OnnxWeights

    with OnnxWeights(path) as weights:
        return sum(ref.nbytes for ref in weights.values())


def whole_graph(path: str) -> int:
    from refit_agent.weights import OnnxWeights

    with OnnxWeights(path) as weights:
        return len(weights.model.graph.nodes)


def cold(path: str) -> None:
    """Drop the file from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def warm(path: str) -> None:
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def make_missing(folder: str, script: str | None) -> None:
    missing = [name for name in MODELS if not os.path.exists(os.path.join(folder, f"{name}.onnx"))]
    if missing and script:
        subprocess.run([sys.executable, script, folder, *missing], check=True)


def row(label: str, path: str, rounds: int, reference: bool) -> None:
    import onnx

    warm(path)
    onnx_ms = median_ms(lambda: onnx.load(path), 5) if reference else float("nan")
    warm(path)
    keys_ms = median_ms(lambda: open_and_list(path), rounds)
    refs_ms = median_ms(lambda: all_refs(path), max(rounds // 5, 1))
    graph_ms = median_ms(lambda: whole_graph(path), max(rounds // 5, 1))
    cold_ms = []
    for _ in range(3):
        cold(path)
        cold_ms.append(median_ms(lambda: open_and_list(path), 1))
    memory = growth(
        "import sys\nfrom refit_agent.weights import OnnxWeights as Opened", "list(opened := Opened(sys.argv[1]))", path
    )
    print(
        f"{label:24} {os.path.getsize(path) / 1e6:8.1f} {len(open_and_list(path)):7} {onnx_ms:11.2f} {keys_ms:11.3f} "
        f"{onnx_ms / keys_ms:7.0f}x {refs_ms:9.2f} {graph_ms:8.2f} {statistics.median(cold_ms):8.2f} {memory / 1024:8.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="?", help="folder with the sample models")
    parser.add_argument("--make", help="make_models.py, to write models that are missing")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if not options.models:
        parser.error("name the folder with the models")
    if importlib.util.find_spec("onnx") is None:
        parser.error("the onnx package is needed for the comparison")
    make_missing(options.models, options.make)
    print(
        f"{'model':24} {'MB':>8} {'tensors':>7} {'onnx.load':>11} {'open + keys':>11} {'faster':>8} "
        f"{'all refs':>9} {'graph':>8} {'cold':>8} {'private':>8}\n{'':24} {'':8} {'':7} {'ms':>11} "
        f"{'ms':>11} {'':8} {'ms':>9} {'ms':>8} {'ms':>8} {'KiB':>8}"
    )
    for name in MODELS:
        path = os.path.join(options.models, f"{name}.onnx")
        if os.path.exists(path):
            row(name, path, options.rounds, True)
    with tempfile.TemporaryDirectory() as folder:
        row(
            "external, 3 MB",
            str(make_external(Path(folder, "small"), 3_000_000, fill=holes).path),
            options.rounds,
            True,
        )
        # onnx.load would read all 3 GB
        row(
            "external, 3 GB",
            str(make_external(Path(folder, "large"), 3_000_000_000, fill=holes).path),
            options.rounds,
            False,
        )


if __name__ == "__main__":
    main()
