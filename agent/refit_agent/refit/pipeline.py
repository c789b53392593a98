"""The refit itself, inside the worker: the same steps for every runtime.

check the plan's hash ─► unpack ─► open ─► cover every weight ─► set, refit ─► write ─► check run
      (meanwhile: hash the weights and the golden data)                          │
                                               nothing is reported done before all checks passed
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from refit_agent.digest import verify_file
from refit_agent.errors import BundleFileMismatch, BundleFileMissing, PlanInvalid, WeightUnsupported
from refit_agent.refit.messages import Done, FileResult, Job, Located, Phase
from refit_agent.refit.same_model import require_same_model
from refit_agent.refit.unpack import PlanImage, unpack
from refit_agent.refit.verify import BackgroundChecks
from refit_agent.runtimes import load_runtime
from refit_agent.runtimes.base import OpenedPlan, Runtime, WrittenFile
from refit_agent.weight_map import WeightSource
from refit_agent.weights import OnnxWeights

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
            before = _identities(job)
            # The plan is parsed by native code and its runtime is code: these are checked before they are used.
            verify_file(job.plan, job.engine)
            if job.engine.lean_runtime is not None:
                verify_file(job.lean_runtime, job.engine.lean_runtime)
            checks.start("weights", [partial(verify_file, f.path, f.ref) for f in (job.weights, *job.external)])
            checks.start("golden", [partial(verify_file, f.path, f.ref) for f in (*_golden_files(job), *job.base)])
            runtime = load_runtime(job)
        with clock.phase("unpack") as on_bytes:
            image = stack.enter_context(contextlib.closing(unpack(job.plan, job.engine, on_bytes)))
            checks.start("plan", [partial(_check_plan, image, job)])
        with clock.phase("open"):
            opened = stack.enter_context(contextlib.closing(runtime.open(image)))
        if not opened.writes_from_sources:
            checks.wait("plan")
            image.close()
        try:
            with clock.phase("map"):
                weights = stack.enter_context(OnnxWeights(job.weights.path))
                sources = opened.sources(weights, job.engine.weight_map)
                _require_checked_files(weights, job)
                if job.base:
                    with OnnxWeights(job.base[0].path) as base:
                        require_same_model(base, weights, {key for s in sources.values() for key in s.sources})
            with clock.phase("refit") as on_weights:
                _set_all(opened, sources, on_weights)
                opened.refit()
        except Exception:
            # A file that is not the manifest's explains whatever went wrong with it, and unlike a plan
            # that does not fit it can be mended: it must not be taken for one, and remembered as such.
            checks.wait()
            raise
        with clock.phase("verify"):
            checks.wait()
        if not opened.writes_from_sources:
            # The finished plan is about to take its own size in memory: make room for it.
            sources.clear()
            weights.close()
        with clock.phase("write") as on_bytes:
            files = opened.write(job.staging, on_bytes)
    with clock.phase("check"):
        how, error = _check_run(runtime, job, f"{job.staging}/{files[0].name}")
        # Hashing and use open a file each: an update between the two would be published under the old hash.
        changed = [path for path, identity in _identities(job).items() if identity != before[path]]
        if changed:
            raise BundleFileMismatch(path=changed[0], detail="it changed while the engine was made")
    return _done(files, runtime, how, error, clock.seconds)


def _golden_files(job: Job) -> Iterator[Located]:
    for data in job.golden:
        yield from data.inputs.values()
        yield from data.outputs.values()
    for inputs in job.smoke_inputs:
        yield from inputs.values()


def _identities(job: Job) -> dict[str, tuple[int, ...]]:
    """What tells each of the bundle's files from another one that takes its name, or from itself after a change."""
    paths = [job.plan, *(f.path for f in (job.weights, *job.external, *job.base, *_golden_files(job)))]
    if job.lean_runtime:
        paths.append(job.lean_runtime)
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            s = os.stat(path)
        except OSError as error:
            raise BundleFileMissing(path=path, detail=error.strerror or str(error)) from error
        found[path] = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return found


def _check_plan(image: PlanImage, job: Job) -> None:
    expected = job.engine.plan_sha256
    if expected is not None and hashlib.sha256(image.view).hexdigest() != expected:
        raise PlanInvalid(path=job.plan, detail=f"unpacked, its SHA-256 is not {expected}, which the manifest gives")


def _require_checked_files(weights: OnnxWeights, job: Job) -> None:
    """Weights come from files that the manifest lists, whose hashes are checked and stand in the key, and no others."""
    checked = {os.path.realpath(f.path) for f in (job.weights, *job.external)}
    for file in weights.external_files():
        if os.path.realpath(file) not in checked:
            detail = f"it lies in {file}, which the manifest does not list among the model's external files"
            raise WeightUnsupported(name="a weight", path=job.weights.path, detail=detail)


def _set_all(opened: OpenedPlan, sources: Mapping[str, WeightSource], on_weights: Callable[[int, int], None]) -> None:
    for number, (name, source) in enumerate(sources.items()):
        opened.set_weight(name, source.dtype, source.array())
        on_weights(number, len(sources))


def _check_run(runtime: Runtime, job: Job, path: str) -> tuple[str, float | None]:
    from refit_agent.refit import golden  # brings NumPy, which nothing before this point waits for

    if job.golden:
        worst = 0.0
        for data in job.golden:
            got = runtime.run(path, golden.load_arrays(data.inputs))
            worst = max(worst, golden.compare(got, golden.load_arrays(data.outputs), data.tolerance))
        return "golden", worst
    if job.smoke_run:
        for inputs in job.smoke_inputs or (None,):
            golden.require_no_nan(runtime.run(path, None if inputs is None else golden.load_arrays(inputs)))
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
        notes=tuple(runtime.notes()),
    )
