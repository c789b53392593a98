"""The CPU target: ONNX Runtime, for machines without an NVIDIA GPU.

Its plan is an ONNX graph that ONNX Runtime has optimised, in which the large initializers are
external tensors in a file ``weights.bin`` that does not exist yet (see `authoring.cpu_plan`). A
refit writes that file from the app's own ONNX model, tensor by tensor, straight from one page cache
to the other. The result is a complete model that any ONNX Runtime loads and maps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refit_agent.errors import (
    PlanInvalid,
    PlanRefused,
    RefitRefused,
    WeightsMismatch,
    WeightsUncovered,
    WeightUnsupported,
)
from refit_agent.refit.unpack import PlanImage
from refit_agent.runtimes.base import Array, WrittenFile
from refit_agent.runtimes.importing import import_runtime
from refit_agent.runtimes.write_file import write_durably
from refit_agent.weight_map import Prototype, WeightSource
from refit_agent.weights import OnnxWeights, WeightRef
from refit_agent.weights.external import ExternalFile, ExternalFiles
from refit_agent.weights.parse import GraphReader
from refit_agent.weights.scan import scan_model
from refit_agent.weights.tensors import TensorReader
from refit_agent.weights.wire import Wire

if TYPE_CHECKING:
    from refit_agent.refit.messages import Job

MODEL_NAME = "model.onnx"
WEIGHTS_NAME = "weights.bin"
_NAMES_SHOWN = 10
#: These copy weights: with them a load takes two to four times the file in memory (tests/bench/bench_older_runtimes.py).
#: A release that does not know a name passes over it.
WEIGHT_COPYING = (
    "ConstantFolding",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "FuseFp16InitializerToFp32NodeTransformer",
    "NchwcTransformer",
)
#: More than any alignment that a plan could want.
_MAX_PADDING_BYTES = 2 << 20
#: The facts of a file that is as long as anybody could want.
_ENDLESS = os.stat_result((0, 0, 0, 0, 0, 0, 1 << 62, 0, 0, 0))


class OnnxRuntime:
    """Opens stripped ONNX graphs and runs finished ones on the CPU."""

    name = "onnxruntime"

    def __init__(self, job: Job) -> None:
        """Import ONNX Runtime. Raises RuntimeMissing or RuntimeChanged."""
        self._module = import_runtime(job)
        self.version = str(self._module.__version__)

    def open(self, image: PlanImage) -> OpenedGraph:
        """Read the graph's stripped tensors; ONNX Runtime itself sees the model only when it is complete."""
        return OpenedGraph(image)

    def notes(self) -> list[str]:
        """Nothing: ONNX Runtime's own log goes to the worker's."""
        return []

    def run(self, path: str, inputs: Mapping[str, Array] | None) -> dict[str, Array]:
        """Run the finished model once as it stands in the file: to optimise it would copy weights."""
        with self._refusing(path):
            session = self._session(path)
            feeds = dict(inputs) if inputs is not None else _made_up_inputs(session)
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, feeds), strict=True))

    def load(self, path: str) -> None:
        """Make a session of the finished model as host apps do, with all optimisations, and let it go: they may end in
        operators that this release has no kernel for. Those that would only copy weights are left out."""
        with self._refusing(path):
            self._session(path, "ORT_ENABLE_ALL", WEIGHT_COPYING)

    def _session(self, path: str, level: str = "ORT_DISABLE_ALL", without: Sequence[str] = ()) -> Any:
        ort = self._module
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        # Prepacked copies of the weights would double the memory of a run that happens once.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 3
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=without)

    @contextlib.contextmanager
    def _refusing(self, path: str) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise  # no fault of the plan's, which would be remembered
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            raise PlanRefused(runtime="ONNX Runtime", version=self.version, path=path, detail=str(error)) from error


def _some(names: list[str]) -> str:
    """A message is read by people, and has to fit into one event to the parent."""
    return ", ".join(names[:_NAMES_SHOWN]) + (" and others" if len(names) > _NAMES_SHOWN else "")


def _identity(ref: WeightRef) -> WeightSource:
    return WeightSource(
        engine_name=ref.name,
        transform="identity",
        sources=(ref.key,),
        dtype=ref.dtype,
        count=ref.count,
        words=f"the initializer {ref.key}",
        make=ref.array,
    )


def _made_up_inputs(session: object) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for item in session.get_inputs():  # type: ignore[attr-defined]
        shape = [d if isinstance(d, int) else 1 for d in item.shape]
        name = item.type.removeprefix("tensor(").removesuffix(")")
        feeds[item.name] = np.ones(shape, np.dtype({"float": "float32", "double": "float64"}.get(name, name)))
    return feeds


class OpenedGraph:
    """A stripped graph waiting for its weights."""

    writes_from_sources = True

    def __init__(self, image: PlanImage) -> None:
        self._image = image
        self._tensors = stripped_tensors(image)
        self._arrays: dict[str, Array] = {}

    def wanted(self) -> dict[str, Prototype]:
        return {name: Prototype(ref.dtype, ref.count) for name, ref in self._tensors.items()}

    def sources(self, weights: OnnxWeights, explicit: Mapping[str, object] | None) -> dict[str, WeightSource]:
        """Each stripped tensor is the source model's initializer of the same name; there is no other rule."""
        del explicit
        missing = [name for name in self._tensors if name not in weights]
        if missing:
            raise WeightsUncovered(
                count=len(missing), path=str(weights.path), names=_some(missing), detail="The model has changed."
            )
        return {name: _identity(weights[name]) for name in self._tensors}

    def set_weight(self, name: str, dtype: str, array: Array) -> None:
        ref = self._tensors[name]
        if dtype != ref.dtype or array.nbytes != ref.nbytes:
            detail = f"the plan wants {ref.dtype} in {ref.nbytes} bytes, the model has {dtype} in {array.nbytes}"
            raise WeightsMismatch(name=name, detail=detail)
        if array.size == ref.count and array.shape != ref.shape:
            # As many bytes in another order compute nonsense.
            raise WeightsMismatch(
                name=name, detail=f"the plan wants the shape {ref.shape}, the model has {array.shape}"
            )
        self._arrays[name] = array

    def refit(self) -> None:
        missing = self._tensors.keys() - self._arrays.keys()
        if missing:
            raise RefitRefused(runtime="ONNX Runtime", detail=f"weights were not set: {_some(sorted(missing))}")

    def write(self, folder: str, on_bytes: Callable[[int, int], None]) -> list[WrittenFile]:
        total = sum(ref.nbytes for ref in self._tensors.values())
        files = [write_durably(f"{folder}/{MODEL_NAME}", [(0, self._image.view)])]
        if self._tensors:
            ordered = sorted(self._tensors.values(), key=lambda ref: ref.offset)
            pieces = [(ref.offset, _bytes_of(self._arrays[ref.name])) for ref in ordered]
            files.append(write_durably(f"{folder}/{WEIGHTS_NAME}", pieces, lambda done: on_bytes(done, total)))
        return files

    def close(self) -> None:
        self._arrays.clear()


def stripped_tensors(image: PlanImage) -> dict[str, WeightRef]:
    """The tensors that a stripped graph lacks, by name, with their places in ``weights.bin``.

    Raises:
        PlanInvalid: it keeps weights anywhere else, below the top level, or one over another.
        OnnxMalformed: it is not a sound ONNX file.
    """
    promised = _PromisedWeights(image.path)
    wire = Wire(image.memory, image.path)
    model = GraphReader(wire, TensorReader(wire, Path(image.path), promised, _NoArrays())).model(scan_model(wire))
    found = {n: ref for n, ref in model.graph.initializers.items() if ref.payload.external is not None}
    if len(found) != promised.asked:
        raise PlanInvalid(path=image.path, detail="it leaves out weights of a nested graph")
    end = 0
    for ref in sorted(found.values(), key=lambda r: r.offset):
        if ref.offset < end:
            raise PlanInvalid(path=image.path, detail=f"the place of {ref.name!r} overlaps another weight's")
        if ref.offset > end + _MAX_PADDING_BYTES:
            raise PlanInvalid(path=image.path, detail=f"there is a gap before {ref.name!r} that would fill the disk")
        end = ref.offset + ref.nbytes
    return found


class _PromisedWeights(ExternalFiles):
    """Stands in for ``weights.bin``, which the refit has yet to write: any place in it is fine."""

    def __init__(self, path: str) -> None:
        super().__init__(path, os.path.dirname(path))
        self.path = path
        self.asked = 0

    def find(self, location: str, at: int) -> ExternalFile:
        if location != WEIGHTS_NAME:
            detail = (
                f"at byte {at} it keeps weights in {location!r}, and a CPU plan may keep them only in {WEIGHTS_NAME}"
            )
            raise PlanInvalid(path=self.path, detail=detail)
        self.asked += 1
        return ExternalFile(self, location, Path(self.path).with_name(location), _ENDLESS)


class _NoArrays:
    """The source of the stripped tensors' arrays: there is none."""

    def read_array(self, ref: WeightRef) -> Array:
        raise WeightUnsupported(name=ref.name, path=str(ref.file), detail="the plan was stripped of it")


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
