"""The oldest ONNX Runtime for a graph, as far as the graph itself tells.

A release promises operator sets, not every kernel of them. So only what is known to be there is promised, and where the
user's ONNX Runtime is older than the author's, the worker has it load the finished model before anybody gets it.
"""

from __future__ import annotations

from collections.abc import Iterator

from refit_agent.weights.parts import read_opsets
from refit_agent.weights.scan import Layout, scan_model
from refit_agent.weights.wire import BYTES, Wire

#: The oldest ONNX Runtime that this package works with. It reads opset 21 too, but lacks kernels of it, for 4-bit types
#: among others. Found by giving models of each version to the release 1.18.0.
OLDEST = "1.18"
_NEWEST_IR = 10
_NEWEST_OPSET = 20
#: Optimised in another way by each release, and with kernels that come and go.
_QUANTISED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}


def why_newer(wire: Wire) -> str:
    """Why `OLDEST` is not promised to run the model, a clause about "it"; "" where it is.

    Every node is read, those of nested graphs and of local functions too.

    Raises:
        OnnxMalformed: it is not a sound ONNX file.
    """
    layout = scan_model(wire)
    operators = set(_operators(wire, layout))
    others = sorted({domain for domain, _ in operators if domain})
    if others:
        return f"it has operators of {', '.join(others)}"
    if not _QUANTISED.isdisjoint(operator for _, operator in operators):
        return "it has quantised operators"
    if layout.functions:
        return "it has functions of its own"  # each with opsets of its own
    opsets = {version for name, version in read_opsets(wire, layout.opsets).items() if is_standard(name)}
    if not opsets:
        return "it names no opset"
    if max(opsets) > _NEWEST_OPSET:
        return f"its opset is {max(opsets)}, above {_NEWEST_OPSET}"
    if layout.ir_version > _NEWEST_IR:
        return f"its IR version is {layout.ir_version}, above {_NEWEST_IR}"
    return ""


def is_standard(domain: str) -> bool:
    """Whether that is one of the two names of the ONNX standard's own operators."""
    return domain in ("", "ai.onnx")


def _operators(wire: Wire, layout: Layout) -> Iterator[tuple[str, str]]:
    """Domain and type of each node, the domain "" for the standard."""
    graphs = [layout.graph]
    nodes = [
        (value, stop)
        for function in layout.functions
        for number, kind, value, stop, _ in wire.fields(*function)
        if number == 7 and kind == BYTES
    ]
    while graphs or nodes:
        if not nodes:
            nodes += [(v, s) for n, k, v, s, _ in wire.fields(*graphs.pop()) if n == 1 and k == BYTES]
            continue
        domain = operator = ""
        for number, kind, value, stop, _ in wire.fields(*nodes.pop()):
            if number == 7 and kind == BYTES:
                domain = wire.text(value, stop)
            elif number == 4 and kind == BYTES:
                operator = wire.text(value, stop)
            elif number == 5 and kind == BYTES:
                graphs += [(v, s) for n, k, v, s, _ in wire.fields(value, stop) if n in (6, 11) and k == BYTES]
        yield "" if is_standard(domain) else domain, operator
