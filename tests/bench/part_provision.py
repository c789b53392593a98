"""Making one engine, by us and the plain way, on the CPU target: whole processes, from their start to the written file.

The plain way is `plain_refit.py`: onnx.load, NumPy arrays, set, write, fsync. Neither compares results (no golden data),
and both end when the files are on the disk. Ours also hashes every file of the bundle, in that time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.measured import OURS, Findings, Row, Way, shown_size
from bench.models import make_runnable
from bench.process_memory import peak_of
from bench.timing import in_turn
from refit_agent.authoring.cpu_plan import make_cpu_plan
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.manifest import App, Engine, Manifest, Model

PART = "provision"
WHAT = "making an engine, CPU target"
PLAIN = "plain: onnx.load, NumPy, set, save"
PLAIN_INSIDE = "plain, start and imports not counted"
#: Ends with the answer, as an app has it: what the interpreter does at its exit is no part of either way.
MAKE = (
    "import os, sys; from refit_agent import ensure_engine\n"
    "engine = ensure_engine(sys.argv[1], sys.argv[2])\n"
    "assert not engine.hit; print(engine.path, flush=True)"
)
_MODEL = "chain"
_PLAIN_SCRIPT = Path(__file__).with_name("plain_refit.py")
_MEMORY = "peak of all processes of one whole run"
_SIZES = (1_000_000, 16_000_000, 128_000_000, 1_000_000_000)
_QUICK = (1_000_000, 16_000_000)
_ROUNDS = {1_000_000: 9, 16_000_000: 9, 128_000_000: 5, 1_000_000_000: 3}
#: What one size needs on the disk: the model, our engine, the plain one.
_DISK_TIMES = 4


def measure(findings: Findings, work: Path, *, quick: bool) -> None:
    """Every size, in turn."""
    for size in _QUICK if quick else _SIZES:
        if shutil.disk_usage(work).free < _DISK_TIMES * size:
            findings.leave(PART, shown_size(size, "B"), f"it needs {shown_size(_DISK_TIMES * size, 'B')} of free disk")
            continue
        findings.add(_row(size, work / "bundle", work / "plain", rounds=3 if quick else _ROUNDS[size]))
        shutil.rmtree(work / "bundle")


def _row(size: int, bundle: Path, out: Path, rounds: int) -> Row:
    write_bundle(bundle, size)
    ours = [sys.executable, "-c", MAKE, str(bundle), _MODEL]
    plain = [sys.executable, str(_PLAIN_SCRIPT), "cpu", str(bundle / "model/chain.onnx"), str(bundle / "plan.onnx"), str(out)]  # fmt: skip
    inside: list[float] = []

    def run_plain() -> None:
        # Cleared before it is timed, with the rest of the round's debris.
        answer = subprocess.run(plain, check=True, stdout=subprocess.PIPE, text=True).stdout
        inside.append(json.loads(answer)["total"])

    cleared = _cleared(out)
    times = in_turn({"clear": cleared, OURS: lambda: subprocess.run(ours, check=True, stdout=subprocess.DEVNULL), PLAIN: run_plain}, rounds)  # fmt: skip
    cleared()
    mine = peak_of(ours).private
    theirs = peak_of(plain).private
    cleared()
    ways = (
        Way(name=OURS, value=times[OURS].median, private=mine),
        Way(name=PLAIN, value=times[PLAIN].median, private=theirs),
        Way(name=PLAIN_INSIDE, value=sorted(inside[1:])[len(inside[1:]) // 2]),
    )
    return Row(part=PART, what=WHAT, size=size, size_unit="B", unit="s", memory=_MEMORY, ways=ways)


def _cleared(out: Path) -> Callable[[], None]:
    """Takes away what a round has made, and waits for the disk."""
    engines = Path(os.environ["REFIT_AGENT_HOME"]) / "cache" / "engines"

    def clear() -> None:
        shutil.rmtree(engines, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        os.sync()

    return clear


def write_bundle(root: Path, nbytes: int) -> None:
    """A bundle of one model of that size with a CPU target and without golden data."""
    made = make_runnable(root / "model", nbytes)
    make_cpu_plan(str(made.path), str(root / "plan.onnx"))
    plan = file_ref(str(root), "plan.onnx")
    engine = Engine(
        path=plan.path, size=plan.size, sha256=plan.sha256, plan_size=plan.size, runtime="onnxruntime", built_with="1.0"
    )  # fmt: skip
    model = Model(
        name=_MODEL,
        onnx=file_ref(str(root), "model/chain.onnx"),
        external=(file_ref(str(root), "model/weights.data"),),
        engines=(engine,),
    )
    app = App(id="org.example.bench", name="bench", version="1")
    write_manifest(str(root), Manifest(schema=1, app=app, models=(model,)))
