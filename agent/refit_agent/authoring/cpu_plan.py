"""Make the CPU target's plan: an optimised ONNX graph without the weights that the source model holds.

ONNX Runtime optimises the model and saves it with its large initializers apart. Those that are byte
for byte initializers of the source are dropped: the plan refers to them as external data in
``weights.bin``, which a refit writes. All others stay inside the plan.

The users' ONNX Runtime may be older than the author's. So only what leaves the standard's own operators in place is
done here; the rest the host's own ONNX Runtime does when it loads the finished model. Where the model
itself keeps older ones out, everything is done here: what is fused decides the results of a quantised model, and golden
data are compared with the graph as it stands in the file.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from refit_agent.authoring.onnx_needs import OLDEST, is_standard, why_newer
from refit_agent.errors import OnnxMalformed, PlanInvalid
from refit_agent.refit.unpack import PlanImage
from refit_agent.runtimes.importing import import_onnxruntime
from refit_agent.runtimes.onnxruntime_cpu import WEIGHTS_NAME, stripped_tensors
from refit_agent.weights import OnnxWeights, WeightRef
from refit_agent.weights import wire_writer as pb
from refit_agent.weights.parts import read_opsets
from refit_agent.weights.wire import BYTES, Wire

#: Smaller tensors stay inside: ONNX Runtime wants shapes at hand, and dropping them would save nothing.
MIN_STRIPPED_BYTES = 1024
#: ONNX Runtime maps external data in place where it begins on a page boundary.
_ALIGNMENT = 4096
#: Optimisations that rewrite weights. Done here they would put the rewritten weights into the plan;
#: the host's own ONNX Runtime does them when it loads the finished model.
_WEIGHT_REWRITING = ["AttentionFusion", "ConstantFolding", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion"]


class CpuPlan(NamedTuple):
    """What was made: bytes of the plan, of the weights it leaves out, and of those it had to keep.

    ``min_runtime`` is the oldest version of ONNX Runtime that the plan is for. None: the version that it was made with,
    and ``why_newer`` says why, a clause about "it".
    """

    plan_bytes: int
    stripped_bytes: int
    kept_bytes: int
    min_runtime: str | None = None
    why_newer: str = ""


def make_cpu_plan(onnx_path: str, plan_path: str) -> CpuPlan:
    """Write the CPU plan of the model at ``onnx_path`` to ``plan_path``. Needs the extra ``cpu``.

    Raises:
        OnnxError: the source model is not sound.
        PlanInvalid: the model keeps large weights where a plan cannot leave them out, as in a nested graph.
        OSError: the plan cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="refit-agent-") as folder:
        optimised = os.path.join(folder, "optimised.onnx")
        why = _why_newer(onnx_path)
        _optimise(onnx_path, optimised, standard=not why)
        with OnnxWeights(onnx_path) as source, OnnxWeights(optimised) as weights, open(optimised, "rb") as file:
            wire = Wire(file.read(), optimised)  # the graph alone; its weights lie in a file of their own
            why = why or why_newer(wire)
            writer = _Stripper(source, weights, prune=not why)
            plan = b"".join(writer.model(wire))
        with open(plan_path, "wb") as out:
            out.write(plan)
        _check(plan_path, len(plan))
    return CpuPlan(len(plan), writer.stripped_bytes, writer.kept_bytes, None if why else OLDEST, why)


def _check(plan_path: str, size: int) -> None:
    """Read the plan as a refit will: what this cannot strip must not ship."""
    with open(plan_path, "rb") as file:
        image = PlanImage(plan_path, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    try:
        stripped_tensors(image)
    except PlanInvalid:
        os.unlink(plan_path)
        raise
    finally:
        image.close()


def _optimise(onnx_path: str, optimised: str, *, standard: bool) -> None:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    # EXTENDED ends in operators of this release alone. Never ALL: its layouts depend on the processor here.
    level = "ORT_ENABLE_BASIC" if standard else "ORT_ENABLE_EXTENDED"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = optimised
    options.log_severity_level = 3
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(prefix + "file_name", "optimised.bin")
    options.add_session_config_entry(prefix + "min_size_in_bytes", str(MIN_STRIPPED_BYTES))
    ort.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_WEIGHT_REWRITING)


def _why_newer(onnx_path: str) -> str:
    with open(onnx_path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # nothing can be mapped
            raise OnnxMalformed(path=onnx_path, offset=0, detail="it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            return why_newer(Wire(memory, onnx_path))


class _Stripper:
    """Copies a ModelProto field by field and replaces the initializers that the source holds."""

    def __init__(self, source: OnnxWeights, weights: OnnxWeights, *, prune: bool) -> None:
        self._source = source
        self._weights = weights
        self._prune = prune
        self._position = 0
        self.stripped_bytes = 0
        self.kept_bytes = 0

    def model(self, wire: Wire) -> Iterator[bytes]:
        for number, kind, value, stop, at in wire.fields(0, wire.size):
            if number == 7 and kind == BYTES:
                yield pb.blob(7, b"".join(self._graph(wire, value, stop)))
            elif number == 8 and kind == BYTES and self._is_superfluous(wire, value, stop):
                continue
            else:
                yield bytes(wire.data[at:stop])

    def _is_superfluous(self, wire: Wire, start: int, end: int) -> bool:
        """ONNX Runtime names every operator set that it knows, used or not, and an older one refuses what is new."""
        return self._prune and not any(map(is_standard, read_opsets(wire, [(start, end)])))

    def _graph(self, wire: Wire, start: int, end: int) -> Iterator[bytes]:
        for number, kind, value, stop, at in wire.fields(start, end):
            if number == 5 and kind == BYTES:
                name = next(wire.text(v, s) for n, _, v, s, _ in wire.fields(value, stop) if n == 8)
                replaced = self._initializer(self._weights[name])
                yield bytes(wire.data[at:stop]) if replaced is None else pb.blob(5, replaced)
            else:
                yield bytes(wire.data[at:stop])

    def _initializer(self, ref: WeightRef) -> bytes | None:
        """The tensor's new form, or None to leave it as it is."""
        if ref.nbytes < MIN_STRIPPED_BYTES:
            return None
        raw = _bytes(ref)
        if not self._is_in_source(ref, raw):
            self.kept_bytes += ref.nbytes
            return pb.tensor(ref.name, ref.dtype, ref.shape, bytes(raw))
        offset = -(-self._position // _ALIGNMENT) * _ALIGNMENT
        self._position = offset + ref.nbytes
        self.stripped_bytes += ref.nbytes
        return pb.external_tensor(ref.name, ref.dtype, ref.shape, WEIGHTS_NAME, offset, ref.nbytes)

    def _is_in_source(self, ref: WeightRef, raw: memoryview) -> bool:
        if ref.name not in self._source:
            return False
        twin = self._source[ref.name]
        return twin.dtype == ref.dtype and twin.shape == ref.shape and _equal(raw, _bytes(twin))


def _bytes(ref: WeightRef) -> memoryview:
    import numpy as np

    return memoryview(ref.array().reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _equal(one: memoryview, other: memoryview) -> bool:
    import numpy as np

    return bool(np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)))
