"""The oldest ONNX Runtime that runs a graph, as far as the graph itself tells.

Only a graph of the standard's own operators does: what ONNX Runtime adds of its own ("com.microsoft") changes from
release to release without a version that could be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from refit_agent.weights.parts import read_opsets
from refit_agent.weights.scan import Layout, scan_model
from refit_agent.weights.wire import BYTES, Wire

#: The oldest ONNX Runtime that this package works with, and the newest that it reads of each: found by giving the
#: release 1.18.0 models of each version. Source of the versions: ONNX Runtime's page "Compatibility".
OLDEST = "1.18"
_NEWEST_IR = 10
_NEWEST_OPSETS = {"": 21, "ai.onnx.ml": 5}
#: The standard's own operators have both names.
_STANDARD = {"ai.onnx": ""}


class OnnxNeeds(NamedTuple):
    """What a graph says of itself.

    Attributes:
        domains: those of its operators; "" is the ONNX standard.
        onnxruntime: the oldest version that runs it, or None where the graph does not tell.
    """

    domains: frozenset[str]
    onnxruntime: str | None


def read_needs(wire: Wire) -> OnnxNeeds:
    """Read every node of the model, those of nested graphs and of local functions too.

    Raises:
        OnnxMalformed: it is not a sound ONNX file.
    """
    layout = scan_model(wire)
    domains = frozenset(_domains(wire, layout))
    opsets = {_STANDARD.get(name, name): version for name, version in read_opsets(wire, layout.opsets).items()}
    known = layout.ir_version <= _NEWEST_IR and not layout.functions
    known = known and all(name in opsets and opsets[name] <= _NEWEST_OPSETS.get(name, -1) for name in domains)
    return OnnxNeeds(domains, OLDEST if known else None)


def _domains(wire: Wire, layout: Layout) -> Iterator[str]:
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
        domain = ""
        for number, kind, value, stop, _ in wire.fields(*nodes.pop()):
            if number == 7 and kind == BYTES:
                domain = wire.text(value, stop)
            elif number == 5 and kind == BYTES:
                graphs += [(v, s) for n, k, v, s, _ in wire.fields(value, stop) if n in (6, 11) and k == BYTES]
        yield _STANDARD.get(domain, domain)
