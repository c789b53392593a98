"""The refit itself, inside the worker: the same steps for every runtime.

check the plan's hash ─► unpack ─► open ─► cover every weight ─► set, refit ─► write ─► check run
      (meanwhile: hash the weights and the golden data)                          │
                                               nothing is reported done before all checks passed
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from refit_agent.digest import verify_file
from refit_agent.errors import PlanInvalid
from refit_agent.refit import golden
from refit_agent.refit.messages import Done, FileResult, Job, Located, Phase
from refit_agent.refit.unpack import PlanImage, unpack
from refit_agent.refit.verify import BackgroundChecks
from refit_agent.runtimes import load_runtime
from refit_agent.runtimes.base import OpenedPlan, Runtime, WrittenFile
from refit_agent.weight_map import WeightSource
from refit_agent.weights import OnnxWeights

if TYPE_CHECKING:
    from refit_agent.runtimes.base import Array

Report = Callable[[Phase], None]
_REPORT_INTERVAL_S = 0.1


class _Clock:
    """Seconds by phase; tells the parent when a phase begins, and several times a second how far it is."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._reported = 0.0
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int, int], None]]:
        self._report(Phase(phase=name))
        start = time.perf_counter()

        def step(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._reported >= _REPORT_INTERVAL_S:
                self._reported = now
                self._report(Phase(phase=name, done=done, total=total))

        yield step
        self.seconds[name] = time.perf_counter() - start


def run(job: Job, report: Report) -> Done:
    """Do one refit; the finished engine lies in ``job.staging`` when this returns.

    Raises:
        RefitAgentError: of the branch that says who can act; nothing of the staging folder is to be used then.
    """
    clock = _Clock(report)
    checks = BackgroundChecks()
    with contextlib.ExitStack() as stack:
        with clock.phase("start"):
            # The plan is parsed by native code, so it is the one file that is checked before it is used.
            verify_file(job.plan, job.engine)
            checks.start("weights", [partial(verify_file, f.path, f.ref) for f in (job.weights, *job.external)])
            checks.start("golden", [partial(verify_file, f.path, f.ref) for f in _golden_files(job)])
            runtime = load_runtime(job)
        with clock.phase("unpack") as on_bytes:
            image = stack.enter_context(contextlib.closing(unpack(job.plan, job.engine, on_bytes)))
            checks.start("plan", [partial(_check_plan, image, job)])
        with clock.phase("open"):
            opened = stack.enter_context(contextlib.closing(runtime.open(image)))
        with clock.phase("map"):
            weights = stack.enter_context(OnnxWeights(job.weights.path))
            sources = runtime.sources(opened.wanted(), weights, image, job.engine.weight_map)
        with clock.phase("refit") as on_weights:
            _set_all(opened, sources, on_weights)
            opened.refit()
        with clock.phase("verify"):
            checks.wait()
        with clock.phase("write") as on_bytes:
            files = opened.write(job.staging, on_bytes)
    with clock.phase("check"):
        how, error = _check_run(runtime, job, f"{job.staging}/{files[0].name}")
    return _done(files, runtime, how, error, clock.seconds)


def _golden_files(job: Job) -> Iterator[Located]:
    for data in job.golden:
        yield from data.inputs.values()
        yield from data.outputs.values()


def _check_plan(image: PlanImage, job: Job) -> None:
    expected = job.engine.plan_sha256
    if expected is not None and hashlib.sha256(image.view).hexdigest() != expected:
        raise PlanInvalid(path=job.plan, detail=f"unpacked, its SHA-256 is not {expected}, which the manifest gives")


def _set_all(opened: OpenedPlan, sources: Mapping[str, WeightSource], on_weights: Callable[[int, int], None]) -> None:
    arrays: list[Array] = []
    for number, (name, source) in enumerate(sources.items()):
        array = source.array()
        # Held until the refit is over: the runtime keeps the address, not the bytes.
        arrays.append(array)
        opened.set_weight(name, source.dtype, array)
        if number % 64 == 0:
            on_weights(number, len(sources))


def _check_run(runtime: Runtime, job: Job, path: str) -> tuple[str, float | None]:
    if job.golden:
        worst = 0.0
        for data in job.golden:
            got = runtime.run(path, golden.load_arrays(data.inputs))
            worst = max(worst, golden.compare(got, golden.load_arrays(data.outputs), data.tolerance))
        return "golden", worst
    if job.smoke_run:
        golden.require_finite(runtime.run(path, None))
        return "smoke", None
    return "none", None


def _done(
    files: Sequence[WrittenFile], runtime: Runtime, how: str, error: float | None, seconds: dict[str, float]
) -> Done:
    return Done(
        files=tuple(FileResult(name=f.name, size=f.size, sha256=f.sha256) for f in files),
        runtime_version=runtime.version,
        check=how,
        golden_error=error,
        seconds={name: round(value, 4) for name, value in seconds.items()},
    )
