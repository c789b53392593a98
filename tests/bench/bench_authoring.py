"""Stripping and restoring models of gigabytes: time and memory. Hashing: beside openssl and sha256sum.

    python tests/bench/bench_authoring.py [strip] [hash] [--dir DIR] [--rounds N]

Both, unless one is named. Everything is written below DIR (by default the folder for temporary files) and deleted
again: strip takes 10 GB of disk, hash 4 GB. Prints what it finds and asserts nothing but that the restored models
are the originals. Memory is that of the command's whole process tree, taken in a run that is not timed.
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
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.models import make_external, make_inside, noise
from bench.process_memory import Peak, PeakMeter
from refit_agent.hash_files import hash_files

_GB = 1_000_000_000


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "refit_agent", "bundle", *map(str, arguments)]


def _run(command: Sequence[str], clean: Callable[[], None], rounds: int) -> tuple[float, Peak]:
    """Median seconds, and the memory of one more run."""
    times = []
    for _ in range(rounds):
        clean()
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    clean()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with PeakMeter(process.pid) as meter:
        assert process.wait() == 0
        return statistics.median(times), meter.stop()


def bench_strip(work: Path, rounds: int) -> None:
    """Both commands on both models, and what they gave."""
    print(f"{'':32} {'seconds':>8} {'GB/s':>6} {'private':>10} {'unique':>10}")
    for make, nbytes in ((make_external, 3 * _GB), (make_inside, 2 * _GB)):
        made = make(work / "original", nbytes)
        sent, back = work / "sent", work / "back"

        def clean(folder: Path) -> Callable[[], None]:
            def action() -> None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()

            return action

        for form in ("small", "zeros"):
            stripped, restored = sent / made.path.name, back / made.path.name
            options = ["--zeros"] if form == "zeros" else []
            strip = _command("strip-onnx", made.path, stripped, *options)
            restore = _command("restore-onnx", stripped, made.path, restored)
            for name, command, folder in (("strip", strip, sent), ("restore", restore, back)):
                seconds, peak = _run(command, clean(folder), rounds)
                print(
                    f"{made.path.stem + ' ' + form + ', ' + name:32} {seconds:8.2f} {made.nbytes / seconds / _GB:6.2f} "
                    f"{peak.private / 1e6:7.1f} MB {peak.unique / 1e6:7.1f} MB"
                )
            _require_equal(made.path.parent, back)
            on_disk = sum(p.stat().st_blocks * 512 for p in sent.iterdir())
            size = sum(p.stat().st_size for p in sent.iterdir())
            print(f"  {made.nbytes / _GB:.2f} GB of weights; the copy has {size:,} bytes, {on_disk:,} on the disk")
        for folder in (made.path.parent, sent, back):
            shutil.rmtree(folder)


def _require_equal(one: Path, other: Path) -> None:
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    found = [hash_files([str(folder / name) for name in names]) for folder in (one, other)]
    assert found[0] == found[1], "the restored model is not the original"


def bench_hash(work: Path, rounds: int) -> None:
    """One file of a gigabyte and four of them, in turn, from the page cache."""
    paths = []
    for number in range(4):
        path = work / f"{number}.bin"
        with open(path, "wb") as file:
            noise(number)(file, _GB)
        paths.append(str(path))
    ways: dict[str, Callable[[list[str]], object]] = {"hash_files": hash_files}
    for name, tool in (("openssl", ["openssl", "dgst", "-sha256"]), ("sha256sum", ["sha256sum"])):
        if shutil.which(tool[0]):
            ways[name] = lambda files, tool=tool: subprocess.run([*tool, *files], check=True, capture_output=True)
            ways[f"{name}, {os.cpu_count()} at once"] = lambda files, tool=tool: subprocess.run(
                ["xargs", "-n1", f"-P{os.cpu_count()}", *tool],
                input="\n".join(files).encode(),
                check=True,
                capture_output=True,
            )
    for files in (paths[:1], paths):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way(files)
                if turn:  # the first one fills the page cache
                    times[name].append(time.perf_counter() - start)
        ours = statistics.median(times["hash_files"])
        print(f"{len(files)} file(s) of 1 GB, {os.cpu_count()} processors, median of {rounds}:")
        for name, seconds in times.items():
            median = statistics.median(seconds)
            print(
                f"  {name:24} {median:6.2f} s {len(files) / median:6.2f} GB/s   ours in {ours / median:.2f} of its time"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["strip", "hash", []], help="by default both")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for name, bench in (("strip", bench_strip), ("hash", bench_hash)):
            if name in options.what or not options.what:
                (Path(folder) / name).mkdir()
                bench(Path(folder) / name, options.rounds)


if __name__ == "__main__":
    main()
