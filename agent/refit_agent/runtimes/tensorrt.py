"""TensorRT: one class over the modules tensorrt_lean, tensorrt and tensorrt_rtx, which name the same classes.

Runs in the worker only, and only after the driver has answered: with no driver the creation of a
Runtime ends in a segmentation fault.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refit_agent.errors import DeviceFailed, PlanRefused, RefitError
from refit_agent.gpu.context import open_context
from refit_agent.plan_header import check_against_manifest, parse_plan_header
from refit_agent.refit.unpack import PlanImage
from refit_agent.runtimes.base import Array
from refit_agent.runtimes.importing import import_runtime
from refit_agent.runtimes.tensorrt_log import MessageSink, make_logger
from refit_agent.runtimes.tensorrt_plan import OpenedEngine
from refit_agent.runtimes.trt_llm_plugins import load_plugins

if TYPE_CHECKING:
    from refit_agent.refit.messages import Job

#: What the lean runtime says of a plan that was built without the version-compatible flag.
_STUB_ERROR = "call to stub"


class TensorRtRuntime:
    """Opens, refits and runs plans through the module that the job names."""

    def __init__(self, job: Job) -> None:
        """Import the module; the GPU is made ready meanwhile, in a thread, and waited for in `open`.

        Raises:
            RuntimeMissing: the module is not there.
            RuntimeChanged: it is not the version that the engine was chosen for.
            PlanRefused: the bundle brings code of its own, which is not allowed.
        """
        self.name = job.module
        self._engine = job.engine
        self._refuse_foreign_code(job)
        # The context takes a third of a second to make: as long as the imports and the unpacking beside it.
        self._context = open_context(job)
        self._job = job
        self._trt = import_runtime(job)
        self.version = str(self._trt.__version__)
        self._without_plugins = "" if job.engine.config is None else load_plugins()
        self._sink = MessageSink()
        self._logger = make_logger(self._trt, self._sink)
        self._runtime: Any = None

    def _refuse_foreign_code(self, job: Job) -> None:
        if (job.engine.host_code or job.lean_runtime) and not job.host_code_allowed:
            detail = "it brings code of its own to run, and the bundle is not signed by a key which the caller gave"
            raise PlanRefused(runtime=job.module, version="", path=job.plan, detail=detail)

    def _ready(self) -> Any:
        """The Runtime; its creation would crash the process if the driver had not answered."""
        if self._runtime is None:
            self._context.wait()
            self._runtime = self._create_runtime(self._job)
        return self._runtime

    def _create_runtime(self, job: Job) -> Any:
        try:
            runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # pybind11's word for a null pointer: a driver too old for this CUDA, mostly
            raise DeviceFailed(detail=f"{self.name} {self.version} could not start: {self._sink.errors()}") from error
        if job.lean_runtime:
            self._parent_runtime = runtime  # the loaded one lives no longer than this one
            runtime = runtime.load_runtime(job.lean_runtime)
            if runtime is None:
                raise self._refused(job.lean_runtime)
        if job.engine.host_code:
            runtime.engine_host_code_allowed = True
        runtime.max_threads = _threads()
        return runtime

    def open(self, image: PlanImage) -> OpenedEngine:
        """The engine in ``image``, its header checked first.

        Raises:
            PlanInvalid, PlanRefused.
            DeviceError: no driver, no GPU, or not enough free memory on it.
        """
        header = parse_plan_header(image.view, image.size, image.path)
        check_against_manifest(header, self._engine, image.path)
        runtime = self._ready()
        # Opening a plan takes seconds and lets other threads run; NumPy is not needed before its end.
        threading.Thread(target=importlib.import_module, args=("numpy",), daemon=True).start()
        engine = runtime.deserialize_cuda_engine(image.memory)
        if engine is None:
            raise self._refused(image.path)
        if not engine.refittable and self._engine.strip != "none":
            raise PlanRefused(
                runtime=self.name, version=self.version, path=image.path, detail="it was built without REFIT"
            )
        keep_refittable = self._engine.include_refit
        return OpenedEngine(self._trt, engine, header, self._logger, self._sink, _threads(), keep_refittable)

    def notes(self) -> list[str]:
        """TensorRT's warnings so far, each once, with the number of times that it came."""
        return self._sink.warnings()

    def run(self, path: str, inputs: Mapping[str, Array] | None) -> dict[str, Array]:
        """Load the finished plan anew from the disk and run it once."""
        from refit_agent.runtimes.tensorrt_run import run_engine

        engine = self._load(path)
        try:
            return run_engine(self._trt, engine, inputs)
        except RuntimeError as error:
            raise RefitError(detail=f"The finished engine did not run: {error}: {self._sink.errors()}") from error
        finally:
            self._sink.flush()

    def load(self, path: str) -> None:
        """Load the finished plan anew from the disk, to see that TensorRT takes it."""
        self._load(path)
        self._sink.flush()

    def _load(self, path: str) -> Any:
        import mmap

        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            engine = self._ready().deserialize_cuda_engine(memory)
        if engine is None:
            raise self._refused(path)
        return engine

    def _refused(self, path: str) -> PlanRefused:
        detail = self._sink.errors()
        if self._without_plugins:
            detail += f" (TensorRT-LLM's plugins, which it may need, are not there: {self._without_plugins})"
            hint = "Install tensorrt-llm in the version that built the engine, where the refit worker finds it."
            return PlanRefused(runtime=self.name, version=self.version, path=path, detail=detail, hint=hint)
        if _STUB_ERROR in detail:
            detail = f"it was built without the version-compatible flag, which {self.name} needs ({detail})"
        return PlanRefused(runtime=self.name, version=self.version, path=path, detail=detail)


def _threads() -> int:
    import os

    return max(1, min(8, os.cpu_count() or 1))
