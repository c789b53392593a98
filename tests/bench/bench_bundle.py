"""Shipped sizes of plans, and how fast they unpack.

    python tests/bench/bench_bundle.py PLANS [--xz FOLDER] [--rounds 5] [--settings]

PLANS holds NAME.plan, uncompressed plans without weights. Each is shipped as `bundle add-engine` does it and
unpacked as a user's machine does it, into fresh memory, with the files in the page cache; "MB/s" is bytes of the
plan in the fastest round, since whatever else runs can only slow it. FOLDER has NAME.plan.xz, to compare sizes and
speed with; without it xz is made here by Python's lzma. --settings adds other levels and windows of zstd.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import zstandard

from refit_agent.authoring.compress import compress_plan
from refit_agent.manifest import Compression, Engine
from refit_agent.refit.unpack import unpack

#: What a shipped plan may have more than xz, and how fast it must unpack.
MOST_OF_XZ, LEAST_MB_S = 1.10, 400.0


def unpack_seconds(path: str, plan_size: int, compression: Compression, rounds: int) -> float:
    """The fastest time to unpack the file as a refit does."""
    size = os.path.getsize(path)
    engine = Engine(
        path="p", size=size, sha256="0" * 64, runtime="tensorrt", built_with="8.6", plan_size=plan_size, compression=compression
    )  # fmt: skip
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        with contextlib.closing(unpack(path, engine)):
            times.append(time.perf_counter() - start)
    return min(times)


def make_xz(plan: str, target: str) -> None:
    with open(plan, "rb") as source, lzma.open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def setting(plan: str, level: int, window: int, folder: str, rounds: int) -> str:
    """One row for other settings of zstd."""
    size = os.path.getsize(plan)
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=window, source_size=size)
    target = os.path.join(folder, "other.zst")
    start = time.perf_counter()
    with open(plan, "rb") as source, open(target, "wb") as out:
        zstandard.ZstdCompressor(compression_params=parameters).copy_stream(source, out, size=size)
    packed = time.perf_counter() - start
    seconds = unpack_seconds(target, size, "zstd", rounds)
    return f"  level {level}, window {(1 << window) >> 20:3} MiB: {os.path.getsize(target):9} bytes, packed in {packed:5.1f} s, {size / seconds / 1e6:7.0f} MB/s"


def row(plan: Path, xz_folder: str | None, rounds: int, folder: str) -> tuple[str, bool]:
    size = plan.stat().st_size
    packed = os.path.join(folder, f"{plan.name}.zst")
    start = time.perf_counter()
    shipped = compress_plan(str(plan), packed, "zstd")
    made = time.perf_counter() - start
    seconds = unpack_seconds(packed, size, "zstd", rounds)
    xz = os.path.join(xz_folder or folder, f"{plan.name}.xz")
    if not os.path.exists(xz):
        xz = os.path.join(folder, f"{plan.name}.xz")
        make_xz(str(plan), xz)
    xz_size, xz_seconds = os.path.getsize(xz), unpack_seconds(xz, size, "xz", 1)
    share, speed = shipped.size / xz_size, size / seconds / 1e6
    met = share <= MOST_OF_XZ and speed >= LEAST_MB_S
    text = f"{plan.stem:18} {size / 1e6:8.1f} {shipped.size / 1e6:9.3f} {xz_size / 1e6:9.3f} {share:7.3f} {100 * (1 - shipped.size / size):8.2f} {made:8.1f} {speed:9.0f} {size / xz_seconds / 1e6:9.0f}  {'yes' if met else 'NO'}"
    return text, met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("--xz", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", action="store_true")
    options = parser.parse_args()
    plans = sorted(options.plans.glob("*.plan"), key=lambda path: path.stat().st_size)
    if not plans:
        parser.error(f"there is no *.plan in {options.plans}")
    print(
        f"{'plan':18} {'MB':>8} {'shipped':>9} {'xz':>9} {'of xz':>7} {'saved %':>8} {'made, s':>8} {'MB/s':>9} {'xz MB/s':>9}  met"
    )
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for plan in plans:
            text, met = row(plan, options.xz, options.rounds, folder)
            good = good and met
            print(text, flush=True)
            for level, window in ((19, 23), (19, 27), (22, 23), (22, 27)) if options.settings else ():
                print(setting(str(plan), level, window, folder, options.rounds), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
