"""An ONNX file that points at a finished plan, for hosts that load engines through ONNX Runtime.

Its graph is one node ``com.microsoft.EPContext`` between the inputs and outputs of the source model; ONNX
Runtime's TensorRT execution providers load the plan that it names in place of building one. Attributes as in
ONNX Runtime's "EP Context Cache Feature Design": ``main_context``, ``embed_mode`` 0 (the context is a file),
``ep_cache_context`` (its path, relative to the ONNX file, below its folder), ``ep_sdk_version``,
``hardware_architecture`` (the compute capability without its dot; "80+" for an Ampere-plus plan),
``partition_name``, ``source`` (the execution provider), ``onnx_model_filename``.

Held by tests against ONNX Runtime's own schema of the node; not run by a TensorRT execution provider yet.
"""

from __future__ import annotations

import mmap
import posixpath
from typing import TYPE_CHECKING

from refit_agent.errors import OnnxMalformed
from refit_agent.weights import wire_writer as pb
from refit_agent.weights.scan import scan_model
from refit_agent.weights.wire import BYTES, VARINT, Wire

if TYPE_CHECKING:
    from refit_agent.manifest import Engine
    from refit_agent.refit.messages import Located

CONTEXT_NAME = "context.onnx"
_PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "tensorrt-rtx": "NvTensorRTRTXExecutionProvider"}
_DOMAIN = "com.microsoft"
#: ONNX Runtime's TensorRT execution provider asks for nothing newer; the oldest in which opsets have their form.
_IR_VERSION = 8
_INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 5, 11, 12, 15
_NODE, _GRAPH_NAME = 1, 2


def context_model(
    onnx: Located, engine: Engine, plan_name: str, runtime_version: str, compute_capability: str
) -> bytes:
    """The bytes of the ONNX file for the finished plan ``plan_name``, which is to lie in the same folder.

    ``onnx`` is the model that the plan was built from: inputs and outputs are taken over byte for byte.
    ``compute_capability`` is the GPU's, such as "8.9".

    Raises:
        OnnxError: the model's graph cannot be read.
        OSError: nor its file.
    """
    with open(onnx.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        wire = Wire(data, onnx.path)
        try:
            inputs, outputs, opset = _interface(wire)
        finally:
            wire.data = b""  # the map can only be closed when nobody looks at it
    node = b"".join(pb.text(1, name) for name, _ in inputs) + b"".join(pb.text(2, name) for name, _ in outputs)
    node += pb.text(3, "refit_agent") + pb.text(4, "EPContext") + pb.text(7, _DOMAIN)
    for attribute in (
        pb.attribute("main_context", 1),
        pb.attribute("embed_mode", 0),
        pb.text_attribute("ep_cache_context", plan_name),
        pb.text_attribute("ep_sdk_version", runtime_version),
        pb.text_attribute("hardware_architecture", _architecture(engine, compute_capability)),
        pb.text_attribute("partition_name", "refit_agent"),
        pb.text_attribute("source", _PROVIDERS[engine.runtime]),
        pb.text_attribute("onnx_model_filename", posixpath.basename(onnx.ref.path)),
    ):
        node += pb.blob(5, attribute)
    graph = pb.blob(_NODE, node) + pb.text(_GRAPH_NAME, "refit_agent")
    graph += b"".join(pb.blob(_INPUT, info) for _, info in inputs)
    graph += b"".join(pb.blob(_OUTPUT, info) for _, info in outputs)
    opsets = pb.blob(8, pb.integer(2, opset)) + pb.blob(8, pb.text(1, _DOMAIN) + pb.integer(2, 1))
    return pb.integer(1, _IR_VERSION) + pb.text(2, "refit-agent") + pb.blob(7, graph) + opsets


def _architecture(engine: Engine, compute_capability: str) -> str:
    return "80+" if engine.hardware_compatibility == "ampere-plus" else compute_capability.replace(".", "")


Info = tuple[str, bytes]


def _interface(wire: Wire) -> tuple[list[Info], list[Info], int]:
    """Name and ValueInfoProto of every input and output, and the version of the standard operators."""
    layout = scan_model(wire)
    held: set[str] = set()
    inputs: list[Info] = []
    outputs: list[Info] = []
    for number, kind, value, stop, _ in wire.fields(*layout.graph):
        if kind != BYTES:
            continue
        if number == _INITIALIZER:
            held.add(_text(wire, value, stop, 8))
        elif number == _SPARSE:
            held.update(_text(wire, v, s, 8) for n, k, v, s, _ in wire.fields(value, stop) if (n, k) == (1, BYTES))
        elif number in (_INPUT, _OUTPUT):
            info = _text(wire, value, stop, 1), bytes(wire.data[value:stop])
            (inputs if number == _INPUT else outputs).append(info)
    # Before IR version 4 weights stand among the inputs.
    inputs = [info for info in inputs if info[0] not in held]
    if not outputs:
        raise OnnxMalformed(path=wire.path, offset=layout.graph[0], detail="the graph has no outputs")
    return inputs, outputs, max((_opset(wire, *range_) for range_ in layout.opsets), default=1)


def _text(wire: Wire, start: int, stop: int, number: int) -> str:
    found = [wire.text(v, s) for n, k, v, s, _ in wire.fields(start, stop) if (n, k) == (number, BYTES)]
    return found[-1] if found else ""


def _opset(wire: Wire, start: int, stop: int) -> int:
    """The version, 0 for operators of another domain."""
    version = max((v for n, k, v, _, _ in wire.fields(start, stop) if (n, k) == (2, VARINT)), default=1)
    return version if _text(wire, start, stop, 1) in ("", "ai.onnx") else 0
