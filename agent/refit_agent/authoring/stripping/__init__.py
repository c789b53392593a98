"""Copies of an ONNX file without its weights, and the way back.

tensors (every place that can hold a value) ─► survey, rule (which of them lose it) ─► strip ─► marker
    splice (copies around them) ─► output_files (whole or not at all)       restore ◄─┘
"""

from __future__ import annotations

from refit_agent.authoring.stripping.restore import RestoredModel, restore_onnx
from refit_agent.authoring.stripping.strip import StrippedModel, strip_onnx, zeroed_copy

__all__ = ["RestoredModel", "StrippedModel", "restore_onnx", "strip_onnx", "zeroed_copy"]
