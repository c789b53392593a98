"""An opened TensorRT engine: its weights listed, set and refitted, and the full plan written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from refit_agent.errors import RefitRefused, WeightsMismatch, WeightsUncovered
from refit_agent.plan_header import PlanHeader
from refit_agent.runtimes.base import Array, WrittenFile
from refit_agent.runtimes.tensorrt_log import MessageSink
from refit_agent.runtimes.write_file import write_durably
from refit_agent.weight_map import Prototype, WeightSource, resolve
from refit_agent.weights import OnnxWeights
from refit_agent.weights.dtypes import TYPES

PLAN_NAME = "engine.plan"

#: ``WeightRef.dtype`` -> member of trt.DataType.
DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
    "float8e4m3fn": "FP8",
    "int4": "INT4",
    "float4e2m1": "FP4",
    "float8e8m0": "E8M0",
}
_NAMES = {member: name for name, member in DTYPES.items()}
_BITS = {t.name: t.bits for t in TYPES.values()}


class OpenedEngine:
    """See `base.OpenedPlan`. Holds GPU memory until `close`."""

    writes_from_sources = False

    def __init__(
        self,
        module: Any,
        engine: Any,
        header: PlanHeader,
        logger: Any,
        sink: MessageSink,
        threads: int,
        keep_refittable: bool = False,
    ) -> None:
        self._trt = module
        self._engine = engine
        self._sink = sink
        self._header = header
        self._keep_refittable = keep_refittable
        self._refitter: Any = None
        if engine.refittable:  # a plan that ships whole may be another, of which no Refitter can be made
            try:
                self._refitter = module.Refitter(engine, logger)
            except TypeError as error:  # pybind11's word for a null pointer
                raise RefitRefused(runtime="TensorRT", detail=f"no refitter could be made: {sink.errors()}") from error
            self._refitter.max_threads = threads
        #: TensorRT keeps addresses: what they point into must live until the refit is over.
        self._held: list[object] = []
        self._set: set[str] = set()

    def wanted(self) -> dict[str, Prototype]:
        """Every refittable weight, with its prototype where this TensorRT has one (from 10.0 on)."""
        names = self._names()
        if any(not name for name in names):
            unnamed = sum(not name for name in names)
            raise WeightsUncovered(
                count=unnamed, path="the model", names="(unnamed)", detail="The plan has weights without a name."
            )
        return {name: self._prototype(name) for name in names}

    def _names(self) -> list[str]:
        return [] if self._refitter is None else list(self._refitter.get_all_weights())

    def _prototype(self, name: str) -> Prototype:
        ask = getattr(self._refitter, "get_weights_prototype", None)
        if ask is None:
            return Prototype(None, None)
        weights = ask(name)
        return Prototype(_NAMES.get(weights.dtype.name, weights.dtype.name.lower()), int(weights.size))

    def sources(self, weights: OnnxWeights, explicit: Mapping[str, object] | None) -> dict[str, WeightSource]:
        """By the naming rules of the parser that built the plan; the manifest's map goes first."""
        rtx = self._header.runtime == "tensorrt-rtx"
        return resolve(self.wanted(), weights, builder=self._header.version, rtx=rtx, explicit=explicit)

    def set_weight(self, name: str, dtype: str, array: Array) -> None:
        weights = self._weights(name, dtype, array)
        self._held += (array, weights)
        if not self._refitter.set_named_weights(name, weights):
            raise WeightsMismatch(name=name, detail=f"TensorRT refused {array.size} x {dtype}: {self._sink.errors()}")
        self._set.add(name)

    def _weights(self, name: str, dtype: str, array: Array) -> Any:
        member = getattr(self._trt.DataType, DTYPES.get(dtype, ""), None)
        if member is None:
            raise WeightsMismatch(name=name, detail=f"this TensorRT has no type for {dtype}")
        if not hasattr(self._trt.Refitter, "get_weights_prototype"):
            # TensorRT before 10 takes only NumPy arrays, and these must be of a type that NumPy has.
            return self._trt.Weights(array)
        count = self._prototype(name).count
        if count is None:
            count = array.size
        if array.nbytes * 8 < count * _BITS[dtype]:
            # TensorRT gets an address and a count, and would read on behind the array.
            raise WeightsMismatch(name=name, detail=f"{array.nbytes} bytes do not hold {count} x {dtype}")
        return self._trt.Weights(member, array.ctypes.data, count)

    def refit(self) -> None:
        if self._refitter is None:
            return
        # get_missing_weights() lists only what the weights set so far make necessary: an engine with one
        # weight never set passes it, and computes nonsense.
        left = sorted(str(name) for name in set(self._names()) - self._set)
        if left:
            raise RefitRefused(runtime="TensorRT", detail=f"weights were not set: {', '.join(left)}")
        done = self._refitter.refit_cuda_engine()
        missing = [name or "(unnamed)" for name in self._refitter.get_missing_weights()]
        self._sink.flush()
        if not done or missing:
            detail = f"weights are missing: {', '.join(missing)}" if missing else self._sink.errors()
            raise RefitRefused(runtime="TensorRT", detail=detail)
        self._refitter = None
        self._held.clear()

    def write(self, folder: str, on_bytes: Callable[[int, int], None]) -> list[WrittenFile]:
        """Serialise the full plan and write it straight from TensorRT's own memory."""
        plan = self._serialise()
        if plan is None:
            raise RefitRefused(runtime="TensorRT", detail=f"the full plan could not be made: {self._sink.errors()}")
        view = memoryview(plan).cast("B")
        total = len(view)
        return [write_durably(f"{folder}/{PLAN_NAME}", [(0, view)], lambda done: on_bytes(done, total))]

    def _serialise(self) -> Any:
        if not hasattr(self._engine, "create_serialization_config"):
            return self._engine.serialize()
        # Without this a stripped engine would be written without the weights that it just got.
        config = self._engine.create_serialization_config()
        config.clear_flag(self._trt.SerializationFlag.EXCLUDE_WEIGHTS)
        if self._keep_refittable:
            config.set_flag(self._trt.SerializationFlag.INCLUDE_REFIT)
        return self._engine.serialize_with_config(config)

    def close(self) -> None:
        self._refitter = None
        self._engine = None
        self._held.clear()
        self._sink.flush()
