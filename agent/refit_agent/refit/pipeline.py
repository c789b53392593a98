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

from refit_agent.digest import Identity, hash_file, require_match
from refit_agent.errors import (
    BundleFileMismatch,
    CacheUnwritable,
    PlanInvalid,
    PlanRefused,
    WeightsMismatch,
)
from refit_agent.manifest import Plan
from refit_agent.refit.inputs import (
    check_of,
    golden_files,
    identities,
    open_model,
    open_weights,
    require_checked_files,
    require_unchanged,
    weight_files,
    with_own_runtime,
)
from refit_agent.refit.messages import Done, FileResult, Job, Phase
from refit_agent.refit.same_model import require_kept_values, require_same_model
from refit_agent.refit.unpack import PlanImage, unpack_checked
from refit_agent.refit.verify import BackgroundChecks
from refit_agent.runtimes import load_runtime
from refit_agent.runtimes.base import OpenedPlan, Runtime, WrittenFile
from refit_agent.weight_map import WeightSource, resolve_by_name
from refit_agent.weights import OnnxWeights
from refit_agent.weights.safetensors import SafetensorsWeights

Report = Callable[[Phase], None]
_REPORT_INTERVAL_S = 0.1
#: The name that TensorRT-LLM gives to it.
CONFIG_NAME = "config.json"


class _Clock:
    """Seconds by phase; tells the parent when a phase begins, and several times a second how far it is."""

    def __init__(self, report: Report, parts: int) -> None:
        self._report = report
        self._reported = 0.0
        self._parts = parts
        #: Which of them is being made; its phases come once for each.
        self.part = 0
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int, int], None]]:
        self._report(Phase(phase=name, part=self.part, parts=self._parts))
        start = time.perf_counter()

        def step(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._reported >= _REPORT_INTERVAL_S:
                self._reported = now
                self._report(Phase(phase=name, done=done, total=total, part=self.part, parts=self._parts))

        yield step
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run(job: Job, report: Report) -> Done:
    """Do one refit; the finished engine lies in ``job.staging`` when this returns. Of an engine of several plans
    each is made for itself, one after the other, and any that fails fails them all.

    Raises:
        RefitAgentError: of the branch that says who can act; nothing of the staging folder is to be used then.
    """
    clock = _Clock(report, len(job.engine.plans))
    checks = BackgroundChecks()
    with clock.phase("start"):
        before = identities(job)
        checks.start("weights", [check_of(f, before) for f in weight_files(job)])
        checks.start("golden", [check_of(f, before) for f in (*golden_files(job), *job.base)])
        # Its runtime is code: checked before it is used, as the plan is, which native code parses.
        runtime = load_runtime(with_own_runtime(job, before))
    files: list[WrittenFile] = []
    asked: set[str] = set()
    for clock.part, (path, plan) in enumerate(_plans(job)):
        written, names = _make(runtime, job, path, plan, checks, clock, before)
        files += [_renamed(written[0], job, clock.part), *written[1:]]
        asked |= names
    _require_asked(asked, job)
    with clock.phase("check") as step:
        files += _write_config(job)
        how, error = _checked(runtime, job, files, step)
        # Hashing and use open a file each: an update between the two would be published under the old hash.
        changed = [path for path, identity in identities(job).items() if identity != before[path]]
        if changed:
            raise BundleFileMismatch(path=changed[0], detail="it changed while the engine was made")
    return _done(files, runtime, how, error, clock.seconds)


def _make(
    runtime: Runtime,
    job: Job,
    path: str,
    plan: Plan,
    checks: BackgroundChecks,
    clock: _Clock,
    before: Mapping[str, Identity],
) -> tuple[list[WrittenFile], set[str]]:
    """Refit one plan and write it; gives what was written, the plan first, and the names of its weights."""
    with contextlib.ExitStack() as stack:
        with clock.phase("unpack") as on_bytes:
            image = stack.enter_context(contextlib.closing(unpack_checked(path, plan, before[path], on_bytes)))
            checks.start("plan", [partial(_check_plan, image, path, plan)])
        with clock.phase("open"):
            opened = stack.enter_context(contextlib.closing(runtime.open(image)))
        if not opened.writes_from_sources:
            checks.wait("plan")
            image.close()
        try:
            with clock.phase("map"):
                weights = open_weights(job, plan)
                stack.callback(weights.close)
                sources = _sources(opened, weights, job)
                require_unchanged(weights, before)
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
        names = set(sources)
        if not opened.writes_from_sources:
            # The finished plan is about to take its own size in memory: make room for it.
            sources.clear()
            weights.close()
        with clock.phase("write") as on_bytes:
            return [*opened.write(job.staging, on_bytes), *_write_context(runtime, job)], names


def _plans(job: Job) -> list[tuple[str, Plan]]:
    """Every plan with its place."""
    return list(zip((job.plan, *job.ranks), job.engine.plans, strict=True))


def _check_plan(image: PlanImage, path: str, plan: Plan) -> None:
    expected = plan.plan_sha256
    if expected is not None and hashlib.sha256(image.view).hexdigest() != expected:
        raise PlanInvalid(path=path, detail=f"unpacked, its SHA-256 is not {expected}, which the manifest gives")


def _sources(opened: OpenedPlan, weights: OnnxWeights | SafetensorsWeights, job: Job) -> dict[str, WeightSource]:
    """Where each weight of the plan comes from: all of them, or an error."""
    if isinstance(weights, SafetensorsWeights):
        return resolve_by_name(opened.wanted(), weights, job.engine.weight_map)
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_model(job.base)) if job.base else None
        if base is not None:
            # First: of another model, names or counts would be missing, as if the plan or its weight map were wrong.
            require_same_model(base, weights)
        sources = opened.sources(weights, job.engine.weight_map)
        require_checked_files(weights, job)
        if base is not None:
            require_kept_values(base, weights, {key for s in sources.values() for key in s.sources})
    return sources


def _require_asked(names: set[str], job: Job) -> None:
    """An entry of the weight map that no rank's plan has a use for is a mistake, as it is for a single plan."""
    strangers = set(job.engine.weight_map or ()) - names
    if job.weights is None and strangers:
        detail = "the explicit weight map has an entry for it, and no plan asks for a weight of that name"
        raise WeightsMismatch(name=min(strangers), detail=detail)


def _set_all(opened: OpenedPlan, sources: Mapping[str, WeightSource], on_weights: Callable[[int, int], None]) -> None:
    for number, (name, source) in enumerate(sources.items()):
        opened.set_weight(name, source.dtype, source.array())
        on_weights(number, len(sources))


def _write_context(runtime: Runtime, job: Job) -> list[WrittenFile]:
    """The ONNX file that points at a TensorRT plan; the CPU target's engine is an ONNX file itself."""
    if job.engine.runtime == "onnxruntime" or job.weights is None:
        return []
    from refit_agent.runtimes.ep_context import CONTEXT_NAME, context_model
    from refit_agent.runtimes.tensorrt_plan import PLAN_NAME
    from refit_agent.runtimes.write_file import write_durably

    data = context_model(job.weights, job.engine, PLAN_NAME, runtime.version, job.compute_capability)
    return [write_durably(f"{job.staging}/{CONTEXT_NAME}", [(0, memoryview(data))])]


def _renamed(file: WrittenFile, job: Job, rank: int) -> WrittenFile:
    """A plan of TensorRT-LLM's under the name that TensorRT-LLM looks for; any other as it is."""
    if job.engine.config is None:
        return file
    name = f"rank{rank}.engine"
    os.rename(f"{job.staging}/{file.name}", f"{job.staging}/{name}")
    return file._replace(name=name)


def _write_config(job: Job) -> list[WrittenFile]:
    """TensorRT-LLM's description of the engine, beside the plans."""
    if job.config is None:
        return []
    from refit_agent.runtimes.write_file import write_durably

    path, ref = job.config.path, job.config.ref
    with open(path, "rb") as file:
        data = file.read(ref.size + 1)
    written = write_durably(f"{job.staging}/{CONFIG_NAME}", [(0, memoryview(data))])
    require_match(path, ref, written.sha256, written.size)
    return [written]


def _checked(
    runtime: Runtime, job: Job, files: Sequence[WrittenFile], on_plans: Callable[[int, int], None]
) -> tuple[str, float | None]:
    """As `_check_run`. A refusal is the plan's only if the disk gives back what was written."""
    paths = [f"{job.staging}/{file.name}" for file in files]
    try:
        return _check_run(runtime, job, paths, on_plans)
    except PlanRefused:
        for path, file in zip(paths, files, strict=True):
            if hash_file(path)[0] != file.sha256:
                raise CacheUnwritable(path=path, detail="it does not read back as it was written") from None
        if job.engine.runtime != "onnxruntime":
            raise
        # It reads the files by itself, and says of a disk or a process without descriptors that the plan is no good.
        return _check_run(runtime, job, paths, on_plans)


def _check_run(
    runtime: Runtime, job: Job, paths: Sequence[str], on_plans: Callable[[int, int], None]
) -> tuple[str, float | None]:
    """How the written files ``paths`` were checked, and the largest error. The first is the plan of rank 0."""
    if job.engine.config is not None:
        # Its plans take a KV cache and talk to each other: only TensorRT-LLM can run them.
        for number, path in enumerate(paths[: len(job.engine.plans)]):
            on_plans(number, len(job.engine.plans))
            runtime.load(path)
        return "loaded", None
    path = paths[0]
    if job.load:
        _load_on_older(runtime, path)
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
    return "loaded" if job.load else "none", None


def _load_on_older(runtime: Runtime, path: str) -> None:
    """Load the engine with ONNX Runtime older than the one that made its graph, and say what helps if it cannot."""
    try:
        runtime.load(path)
    except PlanRefused as error:
        hint = "A newer ONNX Runtime made it: pip install -U 'refit-agent[cpu]'"
        raise PlanRefused(**error.facts, hint=hint) from error


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
