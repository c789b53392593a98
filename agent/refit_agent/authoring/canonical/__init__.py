"""The canonical form of an ONNX model: every weight an initializer with a name, all of them in one file.

``canonicalize`` runs the steps, one module each, in this order:

    source -> inlining -> constants -> batch_norm -> float64 -> layout -> write -> check -> publish

The graph is changed with the onnx package, while the weights stay in the source until they are written.
"""

from __future__ import annotations

from refit_agent.authoring.canonical.canonicalize import canonicalize
from refit_agent.authoring.canonical.reorder import reorder
from refit_agent.authoring.canonical.report import CanonicalReport, Check, Float64

__all__ = ["CanonicalReport", "Check", "Float64", "canonicalize", "reorder"]
