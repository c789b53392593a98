"""The service: hits through the synchronous client, a refit's overhead, `path` as a process, memory.

    python tests/bench/bench_service.py [--bert BUNDLE_SOURCE.onnx] [--rounds N] [--seconds S]

The service is a process of its own on this machine; so is every client. ``--bert`` names the ONNX model for the
refits whose overhead is measured (a large one: the demo's takes a tenth of a second, most of it process starts).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple, TypeAlias

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_provision import write_cpu_bundle
from refit_agent import ServiceClient, ensure_engine
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.client.messages import EnsureRequest

Results: TypeAlias = "Queue[tuple[float, float, list[float]]]"
_CLIENTS = 32
#: What the service has to bear in all.
_HITS_PER_S = 2000


class Load(NamedTuple):
    """What all clients of one run saw: seconds of every hit, and hits a second in all."""

    times: list[float]
    per_s: float

    def text(self) -> str:
        times = sorted(self.times)
        middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
        return f"median {middle * 1e3:.2f} ms, 99 % {late * 1e3:.2f} ms, {self.per_s:.0f} hits/s in all"


def _client(bundle: str, model: str, pause_s: float, seconds: float, number: int, start: Barrier, out: Results) -> None:
    """Hits for ``seconds``; with a pause at fixed times, whether or not the last answer was late."""
    request, times = EnsureRequest(bundle=bundle, model=model), []
    with ServiceClient() as client:
        client.ensure(request)
        start.wait(60)
        begun = time.monotonic()
        due = begun + pause_s * number / _CLIENTS
        time.sleep(max(0.0, due - time.monotonic()))
        while time.monotonic() < begun + seconds:
            # From when it was due, not from when it was sent: a late answer must not hide the next one's wait.
            asked = due if pause_s else time.monotonic()
            client.ensure(request)
            now = time.monotonic()
            times.append(now - asked)
            due += pause_s
            if pause_s and due > now:
                time.sleep(due - now)
    out.put((begun, time.monotonic(), times))


def load(bundle: str, model: str, pause_s: float, seconds: float) -> Load:
    """32 client processes at once; hits a second from the first one's begin to the last one's end."""
    context = multiprocessing.get_context("fork")
    out: Results = context.Queue()
    start = context.Barrier(_CLIENTS)
    clients = [
        context.Process(target=_client, args=(bundle, model, pause_s, seconds, number, start, out))
        for number in range(_CLIENTS)
    ]
    for client in clients:
        client.start()
    answers = [out.get(timeout=seconds + 120) for _ in clients]
    for client in clients:
        client.join()
    times = [t for _, _, some in answers for t in some]
    return Load(times, len(times) / (max(end for _, end, _ in answers) - min(begin for begin, _, _ in answers)))


def bench_hits(bundle: str, model: str, seconds: float) -> None:
    """One client, 32 that together ask 2,000 times a second, and 32 that never pause."""
    ensure_engine(bundle, model, service=True).close()
    request = EnsureRequest(bundle=bundle, model=model)
    with ServiceClient() as client:
        one = [_seconds(lambda: client.ensure(request)) for _ in range(3000)]
    own = [_seconds(lambda: ensure_engine(bundle, model).close()) for _ in range(3000)]
    print(f"hit, one client           {Load(one, len(one) / sum(one)).text()}")
    print(f"hit, in-process           {Load(own, len(own) / sum(own)).text()}")
    paced = load(bundle, model, _CLIENTS / _HITS_PER_S, seconds)
    print(f"hit, 32 clients, paced    {paced.text()}")
    print(f"hit, 32 without a pause   {load(bundle, model, 0.0, seconds).text()}")


def bench_refit(bundle: str, model: str, rounds: int) -> None:
    """A miss by the service against the same in-process, in turn."""
    engines = Path(os.environ["REFIT_AGENT_HOME"]) / "cache" / "engines"
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for service in (False, True) if number % 2 else (True, False):
            shutil.rmtree(engines, ignore_errors=True)
            engines.mkdir(parents=True)
            seconds = _seconds(lambda service=service: ensure_engine(bundle, model, service=service).close())
            if number:  # the first warms the page cache
                times[service].append(seconds)
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


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
        os.environ["REFIT_AGENT_HOME"] = str(work / "home")
        os.environ["REFIT_AGENT_WARM"] = "0"
        os.environ.pop("REFIT_AGENT_SOCKET", None)
        bundle = str(work / "demo")
        model = write_demo_bundle(bundle).models[0].name
        service = psutil.Popen([sys.executable, "-m", "refit_agent", "serve"], stderr=subprocess.DEVNULL)
        try:
            while not (work / "home" / "run" / "agent.sock").exists():
                time.sleep(0.05)
            time.sleep(1.0)
            print(f"service at rest           {_resident(service)}")
            bench_hits(bundle, model, options.seconds)
            print(f"service after the hits    {_resident(service)}")
            bench_path(bundle, model, 5 * options.rounds)
            bench_refit(bundle, model, 3 * options.rounds)
            if options.bert:
                write_cpu_bundle(work / "bert", options.bert)
                bench_refit(str(work / "bert"), "bert", options.rounds)
        finally:
            service.terminate()
            service.wait()


if __name__ == "__main__":
    main()
