"""The service: hits through the synchronous client, a refit's overhead, `path` as a process, memory.

    python tests/bench/bench_service.py [--bert BUNDLE_SOURCE.onnx] [--rounds N] [--seconds S]

The service is a process of its own on this machine; so is every client. ``--bert`` names the ONNX model for the
refits whose overhead is measured (a large one: the demo's takes a tenth of a second, most of it process starts).
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_provision import write_cpu_bundle
from bench.load import Load, load
from bench.part_clients import CLIENTS, HITS_PER_S, by_service
from bench.service_process import service
from bench.timing import own_home
from bench.timing import seconds as _seconds
from refit_agent import ServiceClient, ensure_engine
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.client.messages import EnsureRequest


def bench_hits(bundle: str, model: str, seconds: float) -> None:
    """One client, 32 that together ask 2,000 times a second, and 32 that never pause."""
    ensure_engine(bundle, model, service=True).close()
    request = EnsureRequest(bundle=bundle, model=model)
    with ServiceClient() as client:
        one = [_seconds(lambda: client.ensure(request)) for _ in range(3000)]
    own = [_seconds(lambda: ensure_engine(bundle, model).close()) for _ in range(3000)]
    print(f"hit, one client           {Load(one, len(one) / sum(one)).text()}")
    print(f"hit, in-process           {Load(own, len(own) / sum(own)).text()}")
    opener = functools.partial(by_service, bundle, model)
    paced = load(opener, CLIENTS, CLIENTS / HITS_PER_S, seconds)
    print(f"hit, {CLIENTS} clients, paced    {paced.text()}")
    print(f"hit, {CLIENTS} without a pause   {load(opener, CLIENTS, 0.0, seconds).text()}")


def bench_refit(bundle: str, model: str, rounds: int) -> None:
    """A miss by the service against the same in-process, in turn."""
    engines = Path(os.environ["REFIT_AGENT_HOME"]) / "cache" / "engines"
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for asked in (False, True) if number % 2 else (True, False):
            shutil.rmtree(engines, ignore_errors=True)
            engines.mkdir(parents=True)
            seconds = _seconds(lambda asked=asked: ensure_engine(bundle, model, service=asked).close())
            if number:  # the first warms the page cache
                times[asked].append(seconds)
    pairs = [there / here for there, here in zip(times[True], times[False], strict=True)]
    print(
        f"refit of {model:<16} in-process {statistics.median(times[False]):.3f} s, by the service "
        f"{statistics.median(times[True]):.3f} s, ratio of medians "
        f"{statistics.median(times[True]) / statistics.median(times[False]):.3f} "
        f"(pairs {min(pairs):.3f} to {max(pairs):.3f}, {rounds} rounds)"
    )


def bench_path(bundle: str, model: str, rounds: int) -> None:
    """`refit-agent path` as a process, on a hit, with a service running and told to use none, in turn."""
    times: dict[str, list[float]] = {"with": [], "without": []}
    command = [sys.executable, "-m", "refit_agent", "path", bundle, model]
    for _ in range(rounds):
        for kind, more in (("with", {}), ("without", {"REFIT_AGENT_SOCKET": ""})):
            env = os.environ | more
            times[kind].append(
                _seconds(lambda env=env: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env))
            )
    there, here = statistics.median(times["with"]), statistics.median(times["without"])
    print(
        f"refit-agent path          service up {there * 1e3:.0f} ms, none {here * 1e3:.0f} ms, ratio {there / here:.2f}"
    )


def _resident(process: psutil.Process) -> str:
    return f"{process.memory_info().rss / 2**20:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bert", type=Path, help="an ONNX file such as bert_large_fp16.onnx")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        own_home(work)
        bundle = str(work / "demo")
        model = write_demo_bundle(bundle).models[0].name
        with service() as process:
            print(f"service at rest           {_resident(process)}")
            bench_hits(bundle, model, options.seconds)
            print(f"service after the hits    {_resident(process)}")
            bench_path(bundle, model, 5 * options.rounds)
            bench_refit(bundle, model, 3 * options.rounds)
            if options.bert:
                write_cpu_bundle(work / "bert", options.bert)
                bench_refit(str(work / "bert"), "bert", options.rounds)


if __name__ == "__main__":
    main()
